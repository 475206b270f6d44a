// GgufFile: the directory of a GGUF file (version 2 or 3, little endian): its metadata by key, and its tensors by
// name with type, dimensions and place. The layout is ggml's public format description; every number in it is
// untrusted and checked against the file's size before use. What the metadata mean is left to core/model (config)
// and the tokenizers; reading tensors is MakeGgufWeights (gguf_weights.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/status.h"
#include "core/io/file_mapping.h"

namespace quire {

// A metadata value. Small integers are widened: u8 … u64 to uint64_t, i8 … i64 to int64_t, f32 to double. Arrays of any
// integer type are vectors of int64_t (a u64 above 2^63 - 1 in an array is refused), arrays of bool are bytes 0 or 1.
struct GgufValue {
  std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<uint8_t>, std::vector<int64_t>,
               std::vector<double>, std::vector<std::string>>
      value;

  // The value as asked for, or nothing when it is of another kind or doesn't fit.
  std::optional<int64_t> AsInt() const;
  std::optional<double> AsDouble() const;  // integers too
  std::optional<bool> AsBool() const;
  // nullptr when it is of another kind.
  const std::string* AsString() const { return std::get_if<std::string>(&value); }
  const std::vector<std::string>* AsStrings() const { return std::get_if<std::vector<std::string>>(&value); }
  const std::vector<int64_t>* AsInts() const { return std::get_if<std::vector<int64_t>>(&value); }
  const std::vector<double>* AsDoubles() const { return std::get_if<std::vector<double>>(&value); }
  const std::vector<uint8_t>* AsBools() const { return std::get_if<std::vector<uint8_t>>(&value); }
  // "a string", "an array of integers", …: for messages.
  std::string_view KindName() const;
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;          // ggml's number; GgufTypeName says which
  std::vector<int64_t> dims;  // 1 to 4, fastest first, each ≥ 1
  uint64_t offset = 0;        // bytes from data()
};

// "Q4_K", …; "type 77" for a number that ggml has not given out.
std::string GgufTypeName(uint32_t type);

class GgufFile {
 public:
  // NOT_FOUND, or INVALID_ARGUMENT with what is wrong and where.
  static Result<GgufFile> Open(const std::string& path);
  // `bytes` must outlive the result; `name` is used in messages.
  static Result<GgufFile> Parse(std::span<const std::byte> bytes, std::string name);

  const std::string& name() const { return name_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // nullptr when there is no such key.
  const GgufValue* Find(std::string_view key) const;

  // Each of these: NOT_FOUND when there is no such key, INVALID_ARGUMENT when it is of another kind.
  Result<int64_t> Int(std::string_view key) const;
  Result<double> Double(std::string_view key) const;
  Result<std::string> String(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // Everything after the directory, where tensor offsets count from. May be empty (a file of a vocabulary only).
  std::span<const std::byte> data() const { return data_; }

 private:
  std::string name_;
  FileMapping mapping_;  // empty when parsed from memory
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::span<const std::byte> data_;
};

}  // namespace quire
