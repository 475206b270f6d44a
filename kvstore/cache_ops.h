// CacheOps: what the memory must do so that it agrees with the books: plain numbers that travel in the StepPlan.
// Rank 0's KvBooks writes them, every rank's PageStorage executes them in order, before the kernels of the step.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

namespace quire {

struct CacheOp {
  enum class Kind : int32_t {
    kZeroPage,           // to
    kCopyPage,           // from → to
    kResetGroup,         // to
    kCopyGroup,          // from → to: columns [0, columns), the rest reset
    kRecomputeMetadata,  // group `to`, column columns − 1 with `slots` tokens; page ids in CacheOps::pages
  };
  Kind kind = Kind::kZeroPage;
  int32_t cache_group = 0;
  int32_t from = -1;
  int32_t to = -1;
  int32_t columns = 0;
  int32_t slots = 0;
  int32_t pages_begin = 0;  // its `columns` physical pages start here in CacheOps::pages
  bool operator==(const CacheOp&) const = default;
};
static_assert(std::is_trivially_copyable_v<CacheOp> && sizeof(CacheOp) == 28);

struct CacheOps {
  std::vector<CacheOp> ops;
  std::vector<int32_t> pages;  // lists of the recompute ops; −1 where a window has freed the page

  bool empty() const { return ops.empty(); }
  void Clear() {
    ops.clear();
    pages.clear();
  }
  bool operator==(const CacheOps&) const = default;
};

}  // namespace quire
