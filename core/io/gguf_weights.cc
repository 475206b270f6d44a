#include "core/io/gguf_weights.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/io/weight_source_mapped.h"

namespace quire {

namespace {

// ggml's type numbers.
std::optional<StorageType> FromGgmlType(uint32_t type) {
  switch (type) {
    case 0: return StorageType::kF32;
    case 1: return StorageType::kF16;
    case 2: return StorageType::kQ4_0;
    case 3: return StorageType::kQ4_1;
    case 6: return StorageType::kQ5_0;
    case 7: return StorageType::kQ5_1;
    case 8: return StorageType::kQ8_0;
    case 12: return StorageType::kQ4_K;
    case 13: return StorageType::kQ5_K;
    case 14: return StorageType::kQ6_K;
    case 30: return StorageType::kBF16;
    default: return std::nullopt;
  }
}

}  // namespace

Result<std::unique_ptr<WeightSource>> MakeGgufWeights(GgufFile file) {
  const auto owner = std::make_shared<const GgufFile>(std::move(file));
  if (const GgufValue* parts = owner->Find("split.count"); parts != nullptr && parts->AsInt().value_or(0) > 1) {
    return Unimplemented(owner->name() + " is one of " + std::to_string(*parts->AsInt()) +
                         " parts of a model; merge them into one GGUF file");
  }
  std::vector<MappedTensor> tensors;
  struct Extent {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (const GgufTensor& tensor : owner->tensors()) {
    const std::string where = owner->name() + ": tensor '" + tensor.name + "'";
    const auto type = FromGgmlType(tensor.type);
    if (!type) {
      return Unimplemented(where + " has type " + GgufTypeName(tensor.type) +
                           "; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are read");
    }
    for (size_t i = 2; i < tensor.dims.size(); ++i) {
      if (tensor.dims[i] != 1) {
        return InvalidArgument(where + " has " + std::to_string(tensor.dims.size()) +
                               " dimensions; weights of the models read here have one or two");
      }
    }
    MappedTensor mapped;
    mapped.info = {tensor.name, *type, tensor.dims.size() > 1 ? tensor.dims[1] : 1, tensor.dims[0]};
    if (mapped.info.cols % BlockElements(*type) != 0) {
      return InvalidArgument(where + " has rows of " + std::to_string(mapped.info.cols) +
                             " elements, which are no whole blocks of " + std::string(StorageTypeName(*type)));
    }
    // rows * cols ≤ 2^48 (checked by the directory reader), so the bytes can't overflow.
    const uint64_t bytes = static_cast<uint64_t>(TensorBytes(mapped.info));
    if (tensor.offset > owner->data().size() || bytes > owner->data().size() - tensor.offset) {
      return InvalidArgument(where + " needs " + std::to_string(bytes) + " bytes from byte " +
                             std::to_string(tensor.offset) + " of the data, which have only " +
                             std::to_string(owner->data().size()) + ": the file is truncated");
    }
    mapped.data = owner->data().data() + tensor.offset;
    extents.push_back({tensor.offset, tensor.offset + bytes, &tensor.name});
    tensors.push_back(std::move(mapped));
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) {
      return InvalidArgument(owner->name() + ": tensors '" + *extents[i - 1].name + "' and '" + *extents[i].name +
                             "' overlap");
    }
  }
  return std::unique_ptr<WeightSource>(std::make_unique<MappedWeights>(std::move(tensors), owner));
}

}  // namespace quire
