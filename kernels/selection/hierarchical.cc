// Hierarchical quest: metadata groups of 16 pages have a min and max of their own. Groups are scored first, as quest
// scores pages; the best `keep` share of them stays, only their pages are scored, and the best of these fill the
// budget. A group's bound is at least that of each of its pages, so a group left out by its score holds no page above
// it.
//
// The groups kept are never fewer than the budget needs, whichever they are, so a budget is always filled; where that
// is all of them, or keep is 1, groups needn't be scored, and quest's pages come out.
//
// metadata=int8: the pages of groups that are whole are scored by codes of 8 bits, rounded outward
// (kernels/metadata_codes.h): half of what is read for pages, for a bound that is a little looser.
//
// Reads per step and KV head: 2 vectors a group, 2 vectors a page of the groups kept, then the budget's K and V.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/base/check.h"
#include "kernels/cpu/code_scores.h"
#include "kernels/cpu/group_scores.h"
#include "kernels/cpu/quest_scores.h"
#include "kernels/cpu/top_k.h"
#include "kernels/cuda/hierarchical.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"
#include "kernels/selection/reuse.h"

namespace quire {
namespace {

constexpr int kGroupsPerTask = 64;  // of group scores: 32 KB at d 128 in 16 bits
constexpr int kKeptPerTask = 16;    // of page scores: 128 KB

class HierarchicalPolicy : public PagePolicy {
 public:
  HierarchicalPolicy(const PageOptions& options, int page_size, double keep, bool codes)
      : PagePolicy(options, page_size), keep_billionths_(std::llround(keep * GroupCut::kAll)), codes_(codes) {}

  std::string_view name() const override { return "hierarchical"; }
  PageDataNeeds Declare() const override { return {.min_max = true, .codes = codes_}; }

  size_t SelectWorkspace(const SelectParams& p) const override {
    const size_t groups = static_cast<size_t>(Groups(p));
    return static_cast<size_t>(p.rows) * p.table.format.kv_heads * groups * kListBytesPerGroup;
  }

  int64_t SelectBytes(const SelectParams& p) const override {
    const PageFormat& f = p.table.format;
    int64_t bytes = 0;  // a channel of min or max
    for (int row = 0; row < p.rows; ++row) {
      const GroupCut cut = CutOf(p, row);
      const int64_t element = ElementSize(f.dtype);
      // Of the groups kept all but the last are taken to be whole: the latest pages are not to be chosen.
      bytes += (cut.kept < cut.groups ? cut.groups : 0) * element;
      bytes += cut.kept * (codes_ ? kPagesPerGroup + element : kPagesPerGroup * element);
    }
    return bytes * f.kv_heads * 2 * f.k_dim;
  }

  bool RunsOnGpu() const override { return true; }

  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const override {
    CheckParams(p);
    CHECK(!codes_ || p.pages.codes != nullptr);
    Dispatch(
        ctx, [&] { SelectOnCpu(ctx, p, selection, workspace); },
        [&](Stream stream) { return SelectOnGpu(stream, p, selection, workspace); });
  }

 private:
  Status SelectOnGpu(Stream stream, const SelectParams& p, SelectionView selection, void* workspace) const {
    const Memory memory(workspace, int64_t{p.rows} * p.table.format.kv_heads, Groups(p));
    cuda::HierarchicalParams h;
    h.quest = OnGpu(p);
    h.quest.scores = memory.page_scores;
    h.longest = p.longest;
    h.keep_billionths = keep_billionths_;
    h.codes = codes_;
    h.group_scores = memory.group_scores;
    h.kept = memory.kept;
    h.kept_counts = memory.kept_ids;
    return cuda::HierarchicalSelect(stream, h, selection);
  }

  void SelectOnCpu(const Context& ctx, const SelectParams& p, SelectionView selection, void* workspace) const {
    const PageFormat& f = p.table.format;
    const int groups = Groups(p);
    const int64_t lists = int64_t{p.rows} * f.kv_heads;
    const Memory memory(workspace, lists, groups);
    const int group_parts = (groups + kGroupsPerTask - 1) / kGroupsPerTask;
    ctx.pool->ParallelFor(lists * group_parts, [&](int64_t task, int) {
      const int64_t list = task / group_parts;
      ScoreGroups(p, list, static_cast<int>(task % group_parts), memory);
    });
    int most = 0;
    for (int row = 0; row < p.rows; ++row) most = std::max(most, CutOf(p, row).kept);
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) { KeepGroups(p, list, memory); });
    const int kept_parts = (most + kKeptPerTask - 1) / kKeptPerTask;
    ctx.pool->ParallelFor(lists * kept_parts, [&](int64_t task, int) {
      ScorePages(p, task / kept_parts, static_cast<int>(task % kept_parts), memory);
    });
    ctx.pool->ParallelFor(lists, [&](int64_t list, int) {
      const int row = static_cast<int>(list / f.kv_heads);
      selection.counts[list] = ListWith(p, row, selection.pages + list * selection.max_pages, selection.max_pages,
                                        [&](int k, int32_t* out) { return TakePages(p, list, k, memory, out); });
    });
  }

  // Page scores, group score, kept logical and physical group of a group of one list. (The GPU keeps no physical ones but
  // how many groups a list has, in their place.)
  static constexpr size_t kListBytesPerGroup = sizeof(float) * (kPagesPerGroup + 1) + sizeof(int32_t) * 2;

  struct Memory {
    Memory(void* workspace, int64_t lists, int groups)
        : groups(groups),
          page_scores(static_cast<float*>(workspace)),
          group_scores(page_scores + lists * groups * kPagesPerGroup),
          kept(reinterpret_cast<int32_t*>(group_scores + lists * groups)),
          kept_ids(kept + lists * groups) {}
    int groups;
    float* page_scores;   // [lists][groups][16], the groups kept first
    float* group_scores;  // [lists][groups]
    int32_t* kept;        // [lists][groups] logical groups kept, ascending; −1 where NaN scores left a place empty
    int32_t* kept_ids;    // [lists][groups] their metadata groups
  };

  GroupCut CutOf(const SelectParams& p, int row) const {
    return GroupCut::Create(Forced(p.row_len[row]), keep_billionths_);
  }

  void ScoreGroups(const SelectParams& p, int64_t list, int part, const Memory& memory) const {
    const PageFormat& f = p.table.format;
    const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
    const GroupCut cut = CutOf(p, row);
    const int begin = part * kGroupsPerTask, end = std::min(cut.groups, begin + kGroupsPerTask);
    if (cut.kept == cut.groups || begin >= end) return;
    GroupScoreParams s;
    s.dtype = f.dtype;
    s.heads = p.q_heads / f.kv_heads;
    s.k_dim = f.k_dim;
    s.q = QueriesOf(p, row, head);
    s.over = static_cast<const char*>(p.pages.over) + head * f.over_head_stride * ElementSize(f.dtype);
    s.group_stride = f.over_group_stride;
    s.group_ids = GroupIds(p, row) + cut.first + begin;
    s.groups = end - begin;
    s.reduce = options().reduce;
    s.scores = memory.group_scores + list * memory.groups + begin;
    GroupScores(s);
  }

  void KeepGroups(const SelectParams& p, int64_t list, const Memory& memory) const {
    const int row = static_cast<int>(list / p.table.format.kv_heads);
    const GroupCut cut = CutOf(p, row);
    int32_t* kept = memory.kept + list * memory.groups;
    int count = 0;
    if (cut.kept == cut.groups) {
      for (; count < cut.groups; ++count) kept[count] = cut.first + count;
    } else {
      count = TopPages(memory.group_scores + list * memory.groups, cut.groups, cut.kept, cut.first, kept);
    }
    const int32_t* ids = GroupIds(p, row);
    int32_t* kept_ids = memory.kept_ids + list * memory.groups;
    for (int i = 0; i < count; ++i) kept_ids[i] = ids[kept[i]];
    for (int i = count; i < cut.kept; ++i) kept[i] = kept_ids[i] = -1;
  }

  void ScorePages(const SelectParams& p, int64_t list, int part, const Memory& memory) const {
    const PageFormat& f = p.table.format;
    const int row = static_cast<int>(list / f.kv_heads), head = static_cast<int>(list % f.kv_heads);
    const int begin = part * kKeptPerTask, end = std::min(CutOf(p, row).kept, begin + kKeptPerTask);
    if (begin >= end) return;
    QuestScoreParams s;
    s.dtype = f.dtype;
    s.heads = p.q_heads / f.kv_heads;
    s.k_dim = f.k_dim;
    s.q = QueriesOf(p, row, head);
    s.meta = MetaOf(p, head);
    s.group_stride = f.meta_group_stride;
    s.group_ids = memory.kept_ids + list * memory.groups + begin;
    s.groups = end - begin;
    s.reduce = options().reduce;
    s.scores = memory.page_scores + (list * memory.groups + begin) * kPagesPerGroup;
    if (!codes_) return QuestScores(s);
    // Groups that are whole have codes; those kept ascend, and places left empty come behind.
    const int64_t whole = p.row_len[row] / (int64_t{f.page_size} * kPagesPerGroup);
    const int32_t* kept = memory.kept + list * memory.groups;
    int coded = 0;
    while (coded < s.groups && kept[begin + coded] >= 0 && kept[begin + coded] < whole) ++coded;
    CodeScoreParams c;
    c.exact = s;
    c.exact.groups = coded;
    c.format = f;
    c.codes = p.pages.codes + head * f.meta_head_stride;
    c.over = static_cast<const char*>(p.pages.over) + head * f.over_head_stride * ElementSize(f.dtype);
    CodeScores(c);
    s.group_ids += coded;
    s.groups -= coded;
    s.scores += int64_t{coded} * kPagesPerGroup;
    QuestScores(s);
  }

  // The k best pages of the groups kept. Groups ascend, so the places of their pages are in the pages' order.
  int TakePages(const SelectParams& p, int64_t list, int k, const Memory& memory, int32_t* out) const {
    const int row = static_cast<int>(list / p.table.format.kv_heads);
    const GroupCut cut = CutOf(p, row);
    const ForcedPages forced = Forced(p.row_len[row]);
    const int32_t* ids = PageIds(p, row);
    const int32_t* kept = memory.kept + list * memory.groups;
    float* scores = memory.page_scores + list * memory.groups * kPagesPerGroup;
    for (int i = 0; i < cut.kept; ++i) {
      for (int column = 0; column < kPagesPerGroup; ++column) {
        const int page = kept[i] * kPagesPerGroup + column;
        // Forced pages are listed anyway, freed ones never; of a place left empty QuestScores has made NaN.
        if (kept[i] >= 0 && page >= forced.sinks && page < forced.recent && ids[page] >= 0) continue;
        scores[i * kPagesPerGroup + column] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    const int count = TopPages(scores, cut.kept * kPagesPerGroup, k, 0, out);
    for (int i = 0; i < count; ++i) {
      out[i] = kept[out[i] / kPagesPerGroup] * kPagesPerGroup + out[i] % kPagesPerGroup;
    }
    return count;
  }

  int64_t keep_billionths_;
  bool codes_;
};

}  // namespace

PolicyInfo HierarchicalPolicyInfo() {
  return {
      "hierarchical", "Tang et al., arXiv 2406.10774, over groups of 16 pages",
      "2·n/(16·page_size) vectors of group metadata, keep·2·n/page_size of page metadata, token_budget vectors of K "
      "and of V",
      std::string(kPageOptions).append(kReduceOption) +
          ", keep (share of groups whose pages are scored, 0.001 to 1; default 0.25), reuse (steps that a selection is "
          "used for, 1 to 64: made at positions that it divides, with all pages born since; default 1), metadata (cache or "
          "int8: of pages of whole groups, in 8 bits rounded outward, half of what is read of them for a 32nd of the cache "
          "more memory at 16 tokens a page; default cache, as K is kept)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeHierarchicalPolicy(const PolicyOptions& options, int page_size) {
  OptionReader reader("hierarchical", options);
  ASSIGN_OR_RETURN(PageOptions page_options, PageOptions::Read("hierarchical", &reader, page_size));
  RETURN_IF_ERROR(PageOptions::ReadReduce(&reader, &page_options.reduce));
  double keep = 0.25;
  RETURN_IF_ERROR(reader.Number("keep", 0.001, 1, &keep));
  int64_t reuse = 1;
  RETURN_IF_ERROR(reader.Integer("reuse", 1, 64, &reuse));
  int codes = 0;
  RETURN_IF_ERROR(reader.Choice("metadata", {"cache", "int8"}, &codes));
  RETURN_IF_ERROR(reader.Finish());
  std::unique_ptr<AttentionPolicy> policy = std::make_unique<HierarchicalPolicy>(page_options, page_size, keep, codes == 1);
  if (reuse > 1) policy = std::make_unique<ReusingPolicy>(std::move(policy), static_cast<int>(reuse));
  return policy;
}

}  // namespace quire
