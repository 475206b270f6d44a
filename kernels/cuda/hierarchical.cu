// A metadata group's min and max over its pages lie by channels, 512 bytes at d 128 in 16 bits: a warp takes several groups at
// once, a lane the same words of each, and the lanes' sums meet by a butterfly.
#include "kernels/cuda/hierarchical.h"

#include "kernels/cuda/code_scores.h"
#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/top_pages.h"

namespace quire::cuda {
namespace {

constexpr int kGroupsAtOnce = 4;  // of a warp

// T: cache; kHeads: of the query group at once.
template <typename T, int kHeads>
struct GroupScoresKernel {
  struct Params {
    HierarchicalParams h;
    GroupBlocks blocks;  // of kGroupsAtOnce groups
  };
  static constexpr const char* kName = "group_scores";
  static constexpr int kMaxThreads = simt::kWarpSize * kMostScoreWarps;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));

  QUIRE_DEVICE static void Widen(uint32_t word, float (&x)[kWord]) {
    if constexpr (kWord == 1) {
      x[0] = simt::BitsFloat(word);
    } else {
      x[0] = simt::LowFloat<T>(word);
      x[1] = simt::HighFloat<T>(word);
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.h.quest;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX(), row = simt::BlockZ(), seq = p.row_seq[row];
    if (seq < 0) return;
    const GroupCut cut =
        GroupCut::Create(ForcedPages::Create(p.budget, p.row_len[row], f.page_size), params.h.keep_billionths);
    const int per_block = params.blocks.warps * params.blocks.groups_per_warp * kGroupsAtOnce;
    const int begin = simt::BlockY() * per_block, end = begin + per_block < cut.groups ? begin + per_block : cut.groups;
    if (cut.kept == cut.groups || begin >= end) return;
    const int heads = p.q_heads / f.kv_heads, chunks = (heads + kHeads - 1) / kHeads, words = f.k_dim / kWord;
    float* q = reinterpret_cast<float*>(simt::SharedBytes());  // [chunks][k_dim][kHeads]
    LoadQueries<kHeads>(static_cast<const float*>(p.q) + row * p.q_stride + int64_t{kv_head} * heads * f.k_dim, heads, f.k_dim, q);
    simt::SyncThreads();
    const int32_t* ids = p.table.group_ids + p.table.group_begin[seq] + cut.first;
    const T* base = static_cast<const T*>(p.pages.over) + kv_head * f.over_head_stride;
    float* out = params.h.group_scores + (int64_t{row} * f.kv_heads + kv_head) * p.max_groups;
    const bool is_max = p.reduce == GroupReduce::kMax;
    for (int first = begin + simt::Warp() * kGroupsAtOnce; first < end; first += params.blocks.warps * kGroupsAtOnce) {
      const T* over[kGroupsAtOnce];  // null: not there
#pragma unroll
      for (int g = 0; g < kGroupsAtOnce; ++g) {
        const int id = first + g < end ? ids[first + g] : -1;
        over[g] = id < 0 ? nullptr : base + id * f.over_group_stride;
      }
      float total[kGroupsAtOnce] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float sum[kGroupsAtOnce][kHeads] = {};
        for (int w = simt::Lane(); w < words; w += simt::kWarpSize) {
          uint32_t low[kGroupsAtOnce] = {}, high[kGroupsAtOnce] = {};
#pragma unroll
          for (int g = 0; g < kGroupsAtOnce; ++g) {
            if (over[g] == nullptr) continue;
            low[g] = simt::LoadReadOnly<uint32_t>(over[g] + w * kWord);
            high[g] = simt::LoadReadOnly<uint32_t>(over[g] + f.k_dim + w * kWord);
          }
#pragma unroll
          for (int g = 0; g < kGroupsAtOnce; ++g) {
            float min[kWord], max[kWord];
            Widen(low[g], min);
            Widen(high[g], max);
#pragma unroll
            for (int i = 0; i < kWord; ++i) {
#pragma unroll
              for (int h = 0; h < kHeads; ++h) {
                const float x = q[(chunk * f.k_dim + w * kWord + i) * kHeads + h];
                const float plus = x < 0 ? 0.0f : x, minus = x < 0 ? x : 0.0f;
                sum[g][h] = simt::Fma(minus, min[i], simt::Fma(plus, max[i], sum[g][h]));
              }
            }
          }
        }
#pragma unroll
        for (int g = 0; g < kGroupsAtOnce; ++g) {
#pragma unroll
          for (int h = 0; h < kHeads; ++h) {
            const float x = simt::WarpSum(sum[g][h]);
            if (chunk * kHeads + h >= heads) continue;
            total[g] = chunk == 0 && h == 0 ? x : is_max ? MaxOrNan(total[g], x) : total[g] + x;
          }
        }
      }
      const float share = HeadShare(p.reduce, heads);
#pragma unroll
      for (int g = 0; g < kGroupsAtOnce; ++g) {
        if (simt::Lane() != g || first + g >= end) continue;
        out[first + g] = over[g] == nullptr ? simt::BitsFloat(0x7fc00000u) : total[g] * share;
      }
    }
  }
};

}  // namespace

Status GroupScores(Stream stream, const HierarchicalParams& p) {
  const PageFormat& f = p.quest.table.format;
  if (p.quest.pages.over == nullptr || p.quest.table.group_ids == nullptr) {
    return Internal("hierarchical: the cache keeps no page metadata");
  }
  const int heads = p.quest.q_heads / f.kv_heads;
  const int units = (p.quest.max_groups + kGroupsAtOnce - 1) / kGroupsAtOnce;
  const GroupBlocks blocks = GroupBlocks::For(int64_t{p.quest.rows} * f.kv_heads, units, 2);
  simt::LaunchShape shape;
  shape.grid_x = f.kv_heads;
  shape.grid_y = blocks.parts;
  shape.grid_z = p.quest.rows;
  shape.threads = simt::kWarpSize * blocks.warps;
  return VisitFloatDType(f.dtype, [&](auto t) {
    return VisitHeads(HeadsAtOnce(heads), [&](auto n) {
      constexpr int kHeads = decltype(n)::value;
      shape.shared_bytes = sizeof(float) * static_cast<size_t>((heads + kHeads - 1) / kHeads * kHeads * f.k_dim);
      return simt::Launch<GroupScoresKernel<decltype(t), kHeads>>(shape, stream, {p, blocks});
    });
  });
}

Status HierarchicalSelect(Stream stream, const HierarchicalParams& p, SelectionView selection) {
  // All groups are kept at any length: that is quest.
  if (p.keep_billionths >= GroupCut::kAll && !p.codes) return QuestSelect(stream, DType::kF32, p.quest, selection);
  const PageFormat& f = p.quest.table.format;
  const int most = GroupCut::MostKept(p.quest.budget, p.longest, f.page_size, p.keep_billionths);
  RETURN_IF_ERROR(GroupScores(stream, p));
  TopGroupsParams t;
  t.scores = p.group_scores;
  t.max_groups = p.quest.max_groups;
  t.rows = p.quest.rows;
  t.kv_heads = f.kv_heads;
  t.page_size = f.page_size;
  t.budget = p.quest.budget;
  t.keep_billionths = p.keep_billionths;
  t.row_seq = p.quest.row_seq;
  t.row_len = p.quest.row_len;
  t.kept_groups = p.kept;
  t.kept_counts = p.kept_counts;
  t.kept_stride = most;
  RETURN_IF_ERROR(TopGroups(stream, t));
  QuestParams pages = p.quest;
  pages.max_groups = most;
  pages.kept_groups = p.kept;
  pages.kept_counts = p.kept_counts;
  if (p.codes) {
    RETURN_IF_ERROR(CodeScores(stream, pages));
    return ListPages(stream, pages, selection);
  }
  return QuestSelect(stream, DType::kF32, pages, selection);
}

}  // namespace quire::cuda
