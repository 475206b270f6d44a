#include "core/io/gguf.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <unordered_set>
#include <utility>

namespace quire {

namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF", little endian
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kMaxTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxKeyBytes = 1 << 16;
constexpr uint32_t kMaxDims = 4;

// GGUF's metadata type numbers.
enum : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// The bytes that one value of a type takes at least.
uint64_t MinBytes(uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool: return 1;
    case kU16:
    case kI16: return 2;
    case kU32:
    case kI32:
    case kF32: return 4;
    default: return 8;
  }
}

// Reads the directory front to back; every read says what it was for when the file ends too early.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  Status Error(const std::string& what) const {
    return InvalidArgument(name_ + ": " + what + " (at byte " + std::to_string(position_) + " of " +
                           std::to_string(bytes_.size()) + ")");
  }

  template <typename T>
  Status Read(T* out, const char* what) {
    if (left() < sizeof(T)) return Error(std::string("the file ends inside ") + what);
    std::memcpy(out, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return OkStatus();
  }

  Status ReadString(std::string* out, const char* what, uint64_t max_bytes) {
    uint64_t length = 0;
    RETURN_IF_ERROR(Read(&length, what));
    if (length > max_bytes || length > left()) {
      return Error(std::string(what) + " claims " + std::to_string(length) + " bytes, but " + std::to_string(left()) +
                   " are left (at most " + std::to_string(max_bytes) + " are taken)");
    }
    out->assign(reinterpret_cast<const char*>(bytes_.data() + position_), length);
    position_ += length;
    return OkStatus();
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  uint64_t position_ = 0;
};

// One number of file type T, stored as U.
template <typename T, typename U>
Status ReadNumber(Reader& reader, U* out) {
  T number{};
  RETURN_IF_ERROR(reader.Read(&number, "a metadata value"));
  if constexpr (std::is_same_v<T, uint64_t> && std::is_same_v<U, int64_t>) {
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return reader.Error("the array element " + std::to_string(number) + " is too large");
    }
  }
  *out = static_cast<U>(number);
  return OkStatus();
}

template <typename T, typename U>
Status ReadNumbers(Reader& reader, uint64_t count, GgufValue* out) {
  std::vector<U> numbers(count);
  for (U& number : numbers) RETURN_IF_ERROR((ReadNumber<T, U>(reader, &number)));
  out->value = std::move(numbers);
  return OkStatus();
}

template <typename T, typename U>
Status ReadScalar(Reader& reader, GgufValue* out) {
  U number{};
  RETURN_IF_ERROR((ReadNumber<T, U>(reader, &number)));
  out->value = number;
  return OkStatus();
}

Status ReadArray(Reader& reader, GgufValue* out) {
  uint32_t type = 0;
  uint64_t count = 0;
  RETURN_IF_ERROR(reader.Read(&type, "an array's type"));
  RETURN_IF_ERROR(reader.Read(&count, "an array's length"));
  if (type > kF64 || type == kArray) {
    return reader.Error("arrays of value type " + std::to_string(type) + " are not supported");
  }
  if (count > reader.left() / MinBytes(type)) {
    return reader.Error("an array claims " + std::to_string(count) + " elements, more than the rest of the file holds");
  }
  switch (type) {
    case kU8: return ReadNumbers<uint8_t, int64_t>(reader, count, out);
    case kI8: return ReadNumbers<int8_t, int64_t>(reader, count, out);
    case kU16: return ReadNumbers<uint16_t, int64_t>(reader, count, out);
    case kI16: return ReadNumbers<int16_t, int64_t>(reader, count, out);
    case kU32: return ReadNumbers<uint32_t, int64_t>(reader, count, out);
    case kI32: return ReadNumbers<int32_t, int64_t>(reader, count, out);
    case kU64: return ReadNumbers<uint64_t, int64_t>(reader, count, out);
    case kI64: return ReadNumbers<int64_t, int64_t>(reader, count, out);
    case kF32: return ReadNumbers<float, double>(reader, count, out);
    case kF64: return ReadNumbers<double, double>(reader, count, out);
    case kBool: {
      RETURN_IF_ERROR((ReadNumbers<uint8_t, uint8_t>(reader, count, out)));
      for (uint8_t& b : std::get<std::vector<uint8_t>>(out->value)) b = b != 0;
      return OkStatus();
    }
    default: break;
  }
  std::vector<std::string> strings(count);
  for (std::string& s : strings) {
    RETURN_IF_ERROR(reader.ReadString(&s, "a string of an array", std::numeric_limits<uint32_t>::max()));
  }
  out->value = std::move(strings);
  return OkStatus();
}

Status ReadValue(Reader& reader, GgufValue* out) {
  uint32_t type = 0;
  RETURN_IF_ERROR(reader.Read(&type, "a metadata type"));
  switch (type) {
    case kU8: return ReadScalar<uint8_t, uint64_t>(reader, out);
    case kI8: return ReadScalar<int8_t, int64_t>(reader, out);
    case kU16: return ReadScalar<uint16_t, uint64_t>(reader, out);
    case kI16: return ReadScalar<int16_t, int64_t>(reader, out);
    case kU32: return ReadScalar<uint32_t, uint64_t>(reader, out);
    case kI32: return ReadScalar<int32_t, int64_t>(reader, out);
    case kU64: return ReadScalar<uint64_t, uint64_t>(reader, out);
    case kI64: return ReadScalar<int64_t, int64_t>(reader, out);
    case kF32: return ReadScalar<float, double>(reader, out);
    case kF64: return ReadScalar<double, double>(reader, out);
    case kBool: {
      uint8_t b = 0;
      RETURN_IF_ERROR(reader.Read(&b, "a metadata value"));
      out->value = b != 0;
      return OkStatus();
    }
    case kString: {
      std::string text;
      RETURN_IF_ERROR(reader.ReadString(&text, "a metadata string", std::numeric_limits<uint32_t>::max()));
      out->value = std::move(text);
      return OkStatus();
    }
    case kArray: return ReadArray(reader, out);
    default: return reader.Error("unknown metadata value type " + std::to_string(type));
  }
}

Status ReadTensor(Reader& reader, GgufTensor* tensor) {
  RETURN_IF_ERROR(reader.ReadString(&tensor->name, "a tensor's name", kMaxKeyBytes));
  uint32_t dims = 0;
  RETURN_IF_ERROR(reader.Read(&dims, "a tensor's number of dimensions"));
  if (dims == 0 || dims > kMaxDims) {
    return reader.Error("tensor '" + tensor->name + "' has " + std::to_string(dims) + " dimensions; 1 to 4 are legal");
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < dims; ++i) {
    uint64_t d = 0;
    RETURN_IF_ERROR(reader.Read(&d, "a tensor's dimensions"));
    if (d == 0 || d > (uint64_t{1} << 48) || elements > (int64_t{1} << 48) / static_cast<int64_t>(d)) {
      return reader.Error("tensor '" + tensor->name + "' has an impossible dimension of " + std::to_string(d));
    }
    elements *= static_cast<int64_t>(d);
    tensor->dims.push_back(static_cast<int64_t>(d));
  }
  RETURN_IF_ERROR(reader.Read(&tensor->type, "a tensor's type"));
  return reader.Read(&tensor->offset, "a tensor's offset");
}

}  // namespace

std::optional<int64_t> GgufValue::AsInt() const {
  if (const auto* i = std::get_if<int64_t>(&value)) return *i;
  if (const auto* u = std::get_if<uint64_t>(&value)) {
    if (*u <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return static_cast<int64_t>(*u);
  }
  return std::nullopt;
}

std::optional<double> GgufValue::AsDouble() const {
  if (const auto* d = std::get_if<double>(&value)) return *d;
  if (const auto* i = std::get_if<int64_t>(&value)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(&value)) return static_cast<double>(*u);
  return std::nullopt;
}

std::optional<bool> GgufValue::AsBool() const {
  if (const auto* b = std::get_if<bool>(&value)) return *b;
  return std::nullopt;
}

std::string_view GgufValue::KindName() const {
  constexpr std::string_view kNames[] = {
      "a boolean",          "an integer",           "an integer",           "a number",
      "a string",           "an array of booleans", "an array of integers", "an array of numbers",
      "an array of strings"};
  static_assert(std::size(kNames) == std::variant_size_v<decltype(value)>);
  return kNames[value.index()];
}

std::string GgufTypeName(uint32_t type) {
  // ggml's numbering; gaps are types that were withdrawn.
  static const std::map<uint32_t, const char*> kNames = {
      {0, "F32"},      {1, "F16"},     {2, "Q4_0"},     {3, "Q4_1"},   {6, "Q5_0"},    {7, "Q5_1"},   {8, "Q8_0"},
      {9, "Q8_1"},     {10, "Q2_K"},   {11, "Q3_K"},    {12, "Q4_K"},  {13, "Q5_K"},   {14, "Q6_K"},  {15, "Q8_K"},
      {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},
      {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},     {26, "I32"},   {27, "I64"},    {28, "F64"},   {29, "IQ1_M"},
      {30, "BF16"},    {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"}};
  const auto it = kNames.find(type);
  return it == kNames.end() ? "type " + std::to_string(type) : it->second;
}

Result<GgufFile> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(FileMapping mapping, FileMapping::Open(path));
  ASSIGN_OR_RETURN(GgufFile file, Parse(mapping.bytes(), path));
  file.mapping_ = std::move(mapping);  // the mapped bytes stay where they are
  return file;
}

Result<GgufFile> GgufFile::Parse(std::span<const std::byte> bytes, std::string name) {
  GgufFile file;
  file.name_ = std::move(name);
  Reader reader(bytes, file.name_);
  uint32_t magic = 0, version = 0;
  RETURN_IF_ERROR(reader.Read(&magic, "the magic number"));
  if (magic != kMagic) return reader.Error("this is no GGUF file: it does not begin with 'GGUF'");
  RETURN_IF_ERROR(reader.Read(&version, "the version"));
  if (version > 0xffff && (version & 0xffff) == 0) return reader.Error("big-endian GGUF files are not supported");
  if (version != 2 && version != 3) {
    return reader.Error("GGUF version " + std::to_string(version) + " is not supported; versions 2 and 3 are");
  }
  uint64_t tensors = 0, values = 0;
  RETURN_IF_ERROR(reader.Read(&tensors, "the number of tensors"));
  RETURN_IF_ERROR(reader.Read(&values, "the number of metadata values"));
  // A tensor's entry takes 32 bytes at least, a metadata value 13.
  if (tensors > kMaxTensors || tensors > reader.left() / 32) {
    return reader.Error("the header claims " + std::to_string(tensors) + " tensors, more than the file holds");
  }
  if (values > reader.left() / 13) {
    return reader.Error("the header claims " + std::to_string(values) + " metadata values, more than the file holds");
  }
  for (uint64_t i = 0; i < values; ++i) {
    std::string key;
    RETURN_IF_ERROR(reader.ReadString(&key, "a metadata key", kMaxKeyBytes));
    GgufValue value;
    Status status = ReadValue(reader, &value);
    if (!status.ok()) return status.WithContext("metadata '" + key + "'");
    if (!file.metadata_.emplace(key, std::move(value)).second) {
      return reader.Error("the metadata key '" + key + "' is there twice");
    }
  }
  std::unordered_set<std::string> names;
  file.tensors_.resize(tensors);
  for (GgufTensor& tensor : file.tensors_) {
    RETURN_IF_ERROR(ReadTensor(reader, &tensor));
    if (!names.insert(tensor.name).second) return reader.Error("tensor '" + tensor.name + "' is there twice");
  }

  uint64_t alignment = kDefaultAlignment;
  if (const GgufValue* value = file.Find("general.alignment")) {
    const auto given = value->AsInt();
    if (!given || *given < 1 || static_cast<uint64_t>(*given) > kMaxAlignment ||
        !std::has_single_bit(static_cast<uint64_t>(*given))) {
      return InvalidArgument(file.name_ + ": general.alignment must be a power of two up to " +
                             std::to_string(kMaxAlignment));
    }
    alignment = static_cast<uint64_t>(*given);
  }
  const uint64_t begin = (reader.position() + alignment - 1) / alignment * alignment;
  if (begin < bytes.size()) file.data_ = bytes.subspan(begin);
  for (const GgufTensor& tensor : file.tensors_) {
    if (tensor.offset % alignment != 0 || tensor.offset >= file.data_.size()) {
      return InvalidArgument(file.name_ + ": tensor '" + tensor.name + "' begins at byte " +
                             std::to_string(tensor.offset) + " of the data, which is not a multiple of " +
                             std::to_string(alignment) + " inside their " + std::to_string(file.data_.size()) +
                             " bytes");
    }
  }
  return file;
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

namespace {

template <typename T, typename Get>
Result<T> Typed(const GgufFile& file, std::string_view key, const char* kind, Get get) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr) return NotFound(file.name() + ": there is no metadata key '" + std::string(key) + "'");
  auto typed = get(*value);
  if (!typed) {
    return InvalidArgument(file.name() + ": the metadata key '" + std::string(key) + "' must be " + kind + ", but is " +
                           std::string(value->KindName()));
  }
  return T(*typed);
}

}  // namespace

Result<int64_t> GgufFile::Int(std::string_view key) const {
  return Typed<int64_t>(*this, key, "an integer", [](const GgufValue& v) { return v.AsInt(); });
}

Result<double> GgufFile::Double(std::string_view key) const {
  return Typed<double>(*this, key, "a number", [](const GgufValue& v) { return v.AsDouble(); });
}

Result<std::string> GgufFile::String(std::string_view key) const {
  return Typed<std::string>(*this, key, "a string", [](const GgufValue& v) { return v.AsString(); });
}

}  // namespace quire
