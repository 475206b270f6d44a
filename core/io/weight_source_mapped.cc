#include "core/io/weight_source_mapped.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/io/dequant.h"

namespace quire {

namespace {

// Elements converted at a time: the floats stay in the first-level cache.
constexpr int64_t kChunk = 4096;

bool StoredAs(StorageType type, DType dtype) {
  return (type == StorageType::kF32 && dtype == DType::kF32) || (type == StorageType::kBF16 && dtype == DType::kBF16) ||
         (type == StorageType::kF16 && dtype == DType::kF16);
}

// Elements [begin, end) of a run that starts at a block border; gives the bytes it read.
int64_t ReadRun(StorageType type, const std::byte* run, int64_t begin, int64_t end, DType dtype, std::byte* dst) {
  if (StoredAs(type, dtype)) {
    const int64_t size = ElementSize(dtype);
    std::memcpy(dst, run + begin * size, static_cast<size_t>((end - begin) * size));
    return (end - begin) * size;
  }
  const int64_t block = BlockElements(type), bytes = BlockBytes(type);
  alignas(64) float buffer[kChunk];
  static_assert(kChunk % 256 == 0, "whole blocks of every type");
  const int64_t first = begin / block * block;
  for (int64_t i = first; i < end; i += kChunk) {
    const int64_t blocks = std::min(kChunk / block, (end - i + block - 1) / block);
    const std::byte* src = run + i / block * bytes;
    if (block == 1) {
      ConvertToFloat(type, src, blocks, buffer);
    } else {
      DequantizeBlocks(type, src, blocks, buffer);
    }
    const int64_t from = std::max(i, begin), to = std::min(i + blocks * block, end);
    ConvertFromFloat(buffer + (from - i), to - from, dtype, dst + (from - begin) * ElementSize(dtype));
  }
  return ((end - first + block - 1) / block) * bytes;
}

}  // namespace

int64_t TensorBytes(const TensorInfo& info) {
  return info.rows * info.cols / BlockElements(info.type) * BlockBytes(info.type);
}

Status CheckSlice(std::string_view name, const TensorInfo* info, const TensorSlice& slice, DType dtype) {
  if (info == nullptr) return NotFound("the checkpoint has no tensor '" + std::string(name) + "'");
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    return InvalidArgument("weights can be read as float32, bfloat16 or float16, not as " +
                           std::string(DTypeName(dtype)));
  }
  const bool inside = 0 <= slice.row_begin && slice.row_begin <= slice.row_end && slice.row_end <= info->rows &&
                      0 <= slice.col_begin && slice.col_begin <= slice.col_end && slice.col_end <= info->cols;
  if (inside) return OkStatus();
  return InvalidArgument("rows [" + std::to_string(slice.row_begin) + ", " + std::to_string(slice.row_end) +
                         "), columns [" + std::to_string(slice.col_begin) + ", " + std::to_string(slice.col_end) +
                         ") are not inside tensor '" + std::string(name) + "' of " + std::to_string(info->rows) +
                         " × " + std::to_string(info->cols));
}

MappedWeights::MappedWeights(std::vector<MappedTensor> tensors, std::shared_ptr<const void> owner)
    : owner_(std::move(owner)) {
  infos_.reserve(tensors.size());
  data_.reserve(tensors.size());
  for (MappedTensor& tensor : tensors) {
    CHECK_EQ(tensor.info.cols % BlockElements(tensor.info.type), 0);
    data_.push_back(tensor.data);
    infos_.push_back(std::move(tensor.info));
  }
  for (size_t i = 0; i < infos_.size(); ++i) CHECK(index_.emplace(infos_[i].name, i).second);
}

const TensorInfo* MappedWeights::Find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &infos_[it->second];
}

Status MappedWeights::Read(std::string_view name, const TensorSlice& slice, DType dtype, void* dst) const {
  const TensorInfo* info = Find(name);
  RETURN_IF_ERROR(CheckSlice(name, info, slice, dtype));
  const std::byte* data = data_[static_cast<size_t>(info - infos_.data())];
  const int64_t rows = slice.row_end - slice.row_begin, cols = slice.col_end - slice.col_begin;
  if (rows == 0 || cols == 0) return OkStatus();
  const int64_t row_bytes = info->cols / BlockElements(info->type) * BlockBytes(info->type);
  data += slice.row_begin * row_bytes;
  std::byte* out = static_cast<std::byte*>(dst);
  int64_t read = 0;
  if (cols == info->cols) {
    read = ReadRun(info->type, data, 0, rows * cols, dtype, out);  // whole rows lie one behind the other
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      read += ReadRun(info->type, data + r * row_bytes, slice.col_begin, slice.col_end, dtype,
                      out + r * cols * ElementSize(dtype));
    }
  }
  bytes_read_.fetch_add(read, std::memory_order_relaxed);
  return OkStatus();
}

const void* MappedWeights::Mapped(std::string_view name, DType dtype) const {
  const TensorInfo* info = Find(name);
  if (info == nullptr || !StoredAs(info->type, dtype)) return nullptr;
  const std::byte* data = data_[static_cast<size_t>(info - infos_.data())];
  if (reinterpret_cast<uintptr_t>(data) % kMappedAlignment != 0) return nullptr;
  return data;
}

}  // namespace quire
