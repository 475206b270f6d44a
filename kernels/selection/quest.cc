// Quest (Tang et al., arXiv 2406.10774): per page an upper bound of q·k from the channel-wise min and max of its keys;
// the pages with the largest bounds are read. One set per KV head, from the scores of its query group reduced by max,
// mean or sum. Sinks, the recent window and the partly filled page are always in and count towards the budget.
//
// Reads per step and KV head: 2 vectors a page (n / page_size · 2 · k_dim elements), then the budget's K and V.
#include <string>

#include "kernels/cpu/quest_scores.h"
#include "kernels/cuda/quest.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

constexpr int kGroupsPerTask = 16;  // 256 pages; 128 KB of metadata at d 128 in 16 bits

class QuestPolicy : public PagePolicy {
 public:
  using PagePolicy::PagePolicy;

  std::string_view name() const override { return "quest"; }

  size_t SelectWorkspace(const SelectParams& p) const override {
    return sizeof(float) * kPagesPerGroup * static_cast<size_t>(Groups(p)) * p.rows * p.table.format.kv_heads;
  }

  int64_t SelectBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    int64_t pages = 0;
    for (int row = 0; row < p.rows; ++row) pages += (p.row_len[row] + f.page_size - 1) / f.page_size;
    return pages * f.kv_heads * 2 * f.k_dim * ElementSize(f.dtype);
  }

  bool RunsOnGpu() const override { return true; }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    CheckParams(p);
    Dispatch(
        ctx, [&] { SelectOnCpu(ctx, p, selection, workspace); },
        [&](Stream stream) { return SelectOnGpu(stream, p, selection, workspace); });
  }

 private:
  Status SelectOnGpu(Stream stream, const SelectParams& p, SelectionView selection, void* workspace) const {
    cuda::QuestParams q = OnGpu(p);
    q.scores = static_cast<float*>(workspace);
    return cuda::QuestSelect(stream, DType::kF32, q, selection);
  }

  void SelectOnCpu(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const {
    const PageFormat& f = p.table.format;
    auto* scores = static_cast<float*>(workspace);  // [rows][kv_heads][groups][16]
    const int groups = Groups(p);
    ForFreeGroups(ctx, p, kGroupsPerTask, [&](int row, int head, int first, int last) {
      QuestScoreParams s;
      s.dtype = f.dtype;
      s.heads = p.q_heads / f.kv_heads;
      s.k_dim = f.k_dim;
      s.q = QueriesOf(p, row, head);
      s.meta = MetaOf(p, head);
      s.group_stride = f.meta_group_stride;
      s.group_ids = GroupIds(p, row) + first;
      s.groups = last - first;
      s.reduce = options().reduce;
      s.scores = scores + ((int64_t{row} * f.kv_heads + head) * groups + first) * kPagesPerGroup;
      QuestScores(s);
    });
    ctx.pool->ParallelFor(int64_t{p.rows} * f.kv_heads, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      selection.counts[list] = Choose(p, row, scores + list * groups * kPagesPerGroup,
                                      selection.pages + list * selection.max_pages, selection.max_pages);
    });
  }
};

}  // namespace

PolicyInfo QuestPolicyInfo() {
  return {"quest", "Tang et al., arXiv 2406.10774",
          "2·n/page_size vectors of page metadata, token_budget vectors of K and of V",
          std::string(kPageOptions).append(kReduceOption)};
}

Result<std::unique_ptr<AttentionPolicy>> MakeQuestPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("quest", options);
  ASSIGN_OR_RETURN(PageOptions page_options, PageOptions::Read("quest", &reader, page_size));
  RETURN_IF_ERROR(PageOptions::ReadReduce(&reader, &page_options.reduce));
  RETURN_IF_ERROR(reader.Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<QuestPolicy>(page_options, page_size));
}

}  // namespace quire
