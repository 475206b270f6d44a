// What policies share that choose pages by the attention they were given before, not by the query: the selection from
// scores that are made of a history, and what it reads. What is remembered, and how it becomes a score, is each
// policy's own.
#pragma once

#include "kernels/cuda/page_history.h"
#include "kernels/selection/page_policy.h"

namespace quire {

class HistoryPolicy : public PagePolicy {
 public:
  using PagePolicy::PagePolicy;

  size_t SelectWorkspace(const SelectParams& params) const override;
  int64_t SelectBytes(const SelectParams& params) const override;
  void Select(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const override;
  Status RememberOnGpu(Stream stream, const RememberParams& params) const override;
  bool RunsOnGpu() const override { return true; }

 protected:
  // How a GPU does what Remember and Score do.
  virtual cuda::HistoryRule rule() const = 0;
  // Scores of the first `pages` pages of a KV head; NaN: never chosen. Larger is better.
  virtual void Score(const PageHistory& history, int head, int64_t pages, float* scores) const = 0;

 private:
  Status SelectOnGpu(Stream stream, const SelectParams& params, SelectionView selection, void* workspace) const;
  void SelectOnCpu(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const;
};

}  // namespace quire
