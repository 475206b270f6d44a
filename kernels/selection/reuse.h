// A page policy whose selection is used for several steps (LServe, Yang et al., arXiv 2502.14866, found no loss at 4):
// it selects at positions that R divides, and at the first step that finds no selection; in between a step reads the
// pages of the last one and all that were born since. Positions alone decide, so a sequence that is recomputed chooses
// alike.
//
// Remembers a float a page and KV head: whether the last selection has it. Not for policies with a history of their
// own. On a GPU the floats say there which rows select; the selector's kernels run at every step, over these rows
// alone.
#pragma once

#include <memory>

#include "kernels/selection/policy.h"

namespace quire {

class ReusingPolicy : public AttentionPolicy {
 public:
  // steps: R, at least 2.
  ReusingPolicy(std::unique_ptr<AttentionPolicy> selector, int steps);

  std::string_view name() const override { return selector_->name(); }
  int64_t token_budget() const override { return selector_->token_budget(); }
  bool RunsOnGpu() const override { return selector_->RunsOnGpu(); }
  PageDataNeeds Declare() const override;
  bool IsDense(int64_t length, int layer, int page_size) const override {
    return selector_->IsDense(length, layer, page_size);
  }
  // The selector's, and the pages that may be born before its next turn.
  int MaxPages(int64_t length, int page_size) const override;
  size_t SelectWorkspace(const SelectParams& params) const override;
  // Of the rows that select by their position; the others read what is remembered.
  int64_t SelectBytes(const SelectParams& params) const override;
  int64_t SelectLineBytes(const SelectParams& params) const override;
  void Select(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const override;

 private:
  bool Selects(const SelectParams& params, int row) const;
  void SelectOnCpu(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const;
  Status SelectOnGpu(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const;
  template <typename Bytes>
  int64_t Count(const SelectParams& params, Bytes&& bytes) const;
  void Keep(const SelectParams& params, int64_t list, const SelectionView& selection) const;
  void List(const SelectParams& params, int64_t list, const SelectionView& selection) const;

  std::unique_ptr<AttentionPolicy> selector_;
  int steps_;
};

}  // namespace quire
