// MappedWeights: the WeightSource behind safetensors and GGUF files: tensors that lie in mapped bytes, each a dense
// row-major [rows][cols] of one storage type. Format readers decide where a tensor lies and have checked that it lies
// inside its file; this class only cuts slices and converts.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/io/weight_source.h"

namespace quire {

struct MappedTensor {
  TensorInfo info;
  const std::byte* data = nullptr;  // rows * cols elements; not owned
};

// The bytes a tensor occupies.
int64_t TensorBytes(const TensorInfo& info);

class MappedWeights final : public WeightSource {
 public:
  // `owner` keeps the bytes alive (file mappings). Names must be distinct; cols must be whole blocks.
  MappedWeights(std::vector<MappedTensor> tensors, std::shared_ptr<const void> owner);

  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* Find(std::string_view name) const override;
  Status Read(std::string_view name, const TensorSlice& slice, DType dtype, void* dst) const override;
  const void* Mapped(std::string_view name, DType dtype) const override;
  int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }
  void CountMapped(int64_t bytes) const override { bytes_read_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  std::vector<TensorInfo> infos_;
  std::vector<const std::byte*> data_;                  // beside infos_
  std::unordered_map<std::string_view, size_t> index_;  // views into infos_, which no longer changes
  std::shared_ptr<const void> owner_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

// Common to all sources: NOT_FOUND for info == nullptr, INVALID_ARGUMENT for a slice outside it or a dtype that is no
// float type.
Status CheckSlice(std::string_view name, const TensorInfo* info, const TensorSlice& slice, DType dtype);

}  // namespace quire
