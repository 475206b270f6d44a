// Reads a little of every tensor of a source, whole blocks and cut ones, in every type: what the parser said about
// where tensors lie must hold under ASan.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/base/check.h"
#include "core/io/weight_source.h"

namespace quire {

inline void ReadTensors(const WeightSource& source) {
  constexpr int64_t kMost = 1024;
  std::vector<float> values(kMost);
  for (const TensorInfo& info : source.tensors()) {
    CHECK(source.Find(info.name) == &info);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      const int64_t cols = std::min(info.cols, kMost);
      // The first and the last elements of the first and the last row.
      const TensorSlice slices[] = {{0, std::min<int64_t>(info.rows, 1), 0, cols},
                                    {std::max<int64_t>(info.rows - 1, 0), info.rows, info.cols - cols, info.cols}};
      for (const TensorSlice& slice : slices) CHECK(source.Read(info.name, slice, dtype, values.data()).ok());
      const size_t bytes =
          static_cast<size_t>(info.rows) * static_cast<size_t>(info.cols) * static_cast<size_t>(ElementSize(dtype));
      const auto* mapped = static_cast<const volatile std::byte*>(source.Mapped(info.name, dtype));
      if (mapped != nullptr && bytes > 0) {
        (void)mapped[0];
        (void)mapped[bytes - 1];
      }
    }
  }
}

}  // namespace quire
