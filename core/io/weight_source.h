// WeightSource: the named tensors of a checkpoint (safetensors, sharded or not; GGUF; dummy), readable by
// slices, so that a rank reads only its own part of the mapped file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/status.h"

namespace quire {

// How a tensor's elements are stored in the file.
enum class StorageType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4_K, kQ5_K, kQ6_K };

std::string_view StorageTypeName(StorageType type);  // "F32", …, "Q4_K"
// Elements per block, and bytes per block. 1 element for the float types.
int BlockElements(StorageType type);
int BlockBytes(StorageType type);

struct TensorInfo {
  std::string name;
  StorageType type;
  int64_t rows = 1;  // 1 for a vector
  int64_t cols = 0;  // the fastest dimension; quantised blocks run along it
};

// Half-open ranges of a [rows][cols] tensor.
struct TensorSlice {
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;
};

// The alignment of what WeightSource::Mapped gives: safetensors pads its header to it, and kernels load unaligned.
inline constexpr uintptr_t kMappedAlignment = 8;

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // nullptr when there is no tensor of that name.
  virtual const TensorInfo* Find(std::string_view name) const = 0;

  // Writes slice elements, converted to `dtype` (F32, BF16 or F16), row-major and dense, to dst. Quantised tensors
  // may be cut at any row, and at any column (whole blocks are read). NOT_FOUND for an unknown
  // name, INVALID_ARGUMENT for a slice outside the tensor.
  virtual Status Read(std::string_view name, const TensorSlice& slice, DType dtype, void* dst) const = 0;

  // Where the tensor lies in the mapped file, when it is stored as exactly `dtype` and suitably
  // aligned (8 bytes, as safetensors pads); nullptr otherwise. Valid as long as the source.
  virtual const void* Mapped(std::string_view name, DType dtype) const = 0;

  // Bytes read so far; shows that a rank reads its slices only. What is used in place is counted by who uses it, for only
  // they know which part that is.
  virtual int64_t bytes_read() const = 0;
  virtual void CountMapped(int64_t bytes) const = 0;
};

}  // namespace quire
