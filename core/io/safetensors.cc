#include "core/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "core/io/file_mapping.h"
#include "core/io/json.h"

namespace quire {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int64_t kMaxElements = int64_t{1} << 48;

std::optional<StorageType> ParseType(const std::string& dtype) {
  if (dtype == "F32") return StorageType::kF32;
  if (dtype == "F16") return StorageType::kF16;
  if (dtype == "BF16") return StorageType::kBF16;
  return std::nullopt;
}

// rows and cols of a shape, with dimensions of size 1 dropped where more than two are given.
Status ParseShape(const Json& shape, const std::string& where, TensorInfo* info) {
  if (!shape.is_array()) return InvalidArgument(where + " has no 'shape' list");
  std::vector<int64_t> dims;
  int64_t elements = 1;
  for (const Json& d : shape) {
    if (!d.is_number_unsigned() || d.get<uint64_t>() > static_cast<uint64_t>(kMaxElements)) {
      return InvalidArgument(where + " has a dimension that is no sensible size: " + d.dump());
    }
    dims.push_back(static_cast<int64_t>(d.get<uint64_t>()));
    if (dims.back() != 0 && elements > kMaxElements / dims.back()) {
      return InvalidArgument(where + " has more elements than any file holds: " + shape.dump());
    }
    elements *= dims.back();
  }
  if (dims.size() > 2) std::erase(dims, 1);
  if (dims.size() > 2) {
    return InvalidArgument(where + " has shape " + shape.dump() +
                           "; weights of the models read here have one or two dimensions");
  }
  info->cols = dims.empty() ? 1 : dims.back();
  info->rows = dims.size() == 2 ? dims[0] : 1;
  return OkStatus();
}

struct Extent {
  uint64_t begin, end;  // of the data section
  const std::string* name;
};

// Reads one entry of the header; its extent is checked against dtype × shape and the data's size.
Status ParseEntry(const std::string& where, const Json& entry, uint64_t data_bytes, TensorInfo* info, Extent* extent) {
  if (!entry.is_object()) return InvalidArgument(where + " is not described by an object");
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return InvalidArgument(where + " has no 'dtype'");
  const auto type = ParseType(dtype->get_ref<const std::string&>());
  if (!type) {
    return InvalidArgument(where + " has dtype '" + dtype->get_ref<const std::string&>() +
                           "'; F32, F16 and BF16 are read");
  }
  info->type = *type;
  if (shape == entry.end()) return InvalidArgument(where + " has no 'shape' list");
  RETURN_IF_ERROR(ParseShape(*shape, where, info));
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return InvalidArgument(where + " has no 'data_offsets' of two numbers");
  }
  extent->begin = (*offsets)[0].get<uint64_t>();
  extent->end = (*offsets)[1].get<uint64_t>();
  if (extent->begin > extent->end || extent->end > data_bytes) {
    return InvalidArgument(where + " claims bytes [" + std::to_string(extent->begin) + ", " +
                           std::to_string(extent->end) + ") of the data, but the file holds " +
                           std::to_string(data_bytes) + " (truncated?)");
  }
  const auto needed = static_cast<uint64_t>(TensorBytes(*info));
  if (extent->end - extent->begin != needed) {
    return InvalidArgument(where + " has " + std::to_string(extent->end - extent->begin) + " bytes, but its shape " +
                           shape->dump() + " of " + std::string(StorageTypeName(info->type)) + " needs " +
                           std::to_string(needed));
  }
  return OkStatus();
}

// A shard's name from the index must be a plain file name: an index can't reach out of its folder.
bool PlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

struct Owner {
  std::vector<FileMapping> files;
};

Result<std::unique_ptr<WeightSource>> OpenOne(const std::string& path) {
  ASSIGN_OR_RETURN(FileMapping file, FileMapping::Open(path));
  ASSIGN_OR_RETURN(auto tensors, ParseSafetensors(file.bytes(), path));
  auto owner = std::make_shared<Owner>();
  owner->files.push_back(std::move(file));
  return std::unique_ptr<WeightSource>(std::make_unique<MappedWeights>(std::move(tensors), std::move(owner)));
}

Result<std::unique_ptr<WeightSource>> OpenSharded(const fs::path& folder, const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxHeaderBytes));
  ASSIGN_OR_RETURN(const Json index, ParseJson(text, index_path));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return InvalidArgument(index_path + " has no 'weight_map' of tensor names and files");
  }
  std::map<std::string, std::set<std::string>> shards;  // file: the tensors it must have
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !PlainFileName(file.get_ref<const std::string&>())) {
      return InvalidArgument(index_path + ": tensor '" + tensor + "' is mapped to " + file.dump() +
                             ", which is no file name inside the folder");
    }
    shards[file.get<std::string>()].insert(tensor);
  }
  auto owner = std::make_shared<Owner>();
  std::vector<MappedTensor> all;
  for (auto& [file_name, wanted] : shards) {
    const std::string path = (folder / file_name).string();
    auto file = FileMapping::Open(path);
    if (!file.ok()) return file.status().WithContext("a shard that " + index_path + " names");
    ASSIGN_OR_RETURN(auto tensors, ParseSafetensors(file->bytes(), path));
    for (MappedTensor& tensor : tensors) {
      if (wanted.erase(tensor.info.name) == 1) all.push_back(std::move(tensor));
    }
    if (!wanted.empty()) {
      return InvalidArgument(path + " lacks tensor '" + *wanted.begin() + "', which " + index_path + " promises there");
    }
    owner->files.push_back(std::move(*file));
  }
  return std::unique_ptr<WeightSource>(std::make_unique<MappedWeights>(std::move(all), std::move(owner)));
}

}  // namespace

Result<std::vector<MappedTensor>> ParseSafetensors(std::span<const std::byte> bytes, const std::string& name) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return InvalidArgument(name + " has " + std::to_string(bytes.size()) + " bytes: too short for a safetensors file");
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - sizeof(header_bytes)) {
    return InvalidArgument(name + " claims a header of " + std::to_string(header_bytes) + " bytes, but the file has " +
                           std::to_string(bytes.size()) + " (truncated, or no safetensors file)");
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + sizeof(header_bytes), header_bytes);
  const std::span<const std::byte> data = bytes.subspan(sizeof(header_bytes) + header_bytes);
  ASSIGN_OR_RETURN(const Json json, ParseJson(header, name + ": the header"));
  if (!json.is_object()) return InvalidArgument(name + ": the header is not a JSON object");

  std::vector<MappedTensor> tensors;
  tensors.reserve(json.size());
  std::vector<Extent> extents;
  for (const auto& [tensor_name, entry] : json.items()) {
    if (tensor_name == "__metadata__") continue;
    MappedTensor tensor;
    tensor.info.name = tensor_name;
    Extent extent{};
    RETURN_IF_ERROR(ParseEntry(name + ": tensor '" + tensor_name + "'", entry, data.size(), &tensor.info, &extent));
    tensor.data = data.data() + extent.begin;
    tensors.push_back(std::move(tensor));
    extent.name = &tensors.back().info.name;  // no reallocation: reserved above
    extents.push_back(extent);
  }
  // The data section must be covered without overlap, gap or rest, as the format demands.
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t end = 0;
  const std::string* before = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin < end) {
      return InvalidArgument(name + ": tensors '" + *before + "' and '" + *extent.name + "' overlap");
    }
    if (extent.begin > end) {
      return InvalidArgument(name + ": " + std::to_string(extent.begin - end) + " bytes before tensor '" +
                             *extent.name + "' belong to no tensor");
    }
    end = extent.end;
    before = extent.name;
  }
  if (end != data.size()) {
    return InvalidArgument(name + ": " + std::to_string(data.size() - end) + " bytes at the end belong to no tensor");
  }
  return tensors;
}

Result<std::unique_ptr<WeightSource>> OpenSafetensors(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return OpenOne(path);
  const fs::path folder(path);
  const fs::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (fs::exists(single, ignored)) return OpenOne(single.string());
  if (fs::exists(index, ignored)) return OpenSharded(folder, index.string());
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    if (fs::exists(folder / other, ignored)) {
      return NotFound(path + " has only " + other + ", which can run code when read; convert it to model.safetensors");
    }
  }
  return NotFound(path + " has neither model.safetensors nor model.safetensors.index.json");
}

}  // namespace quire
