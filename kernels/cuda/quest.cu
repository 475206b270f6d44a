// Scores for f32 caches, large query groups and odd widths; the usual kernel is in quest_scores_mma.cuh. What a warp does with a
// metadata group is in page_scores.cuh: 8 KB in one piece at d 128, of which eight loads are under way while eight are worked
// on. The bound is Σ q⁺·max + q⁻·min with q⁺ = max(q, 0), q⁻ = min(q, 0), as on the CPU.
#include "kernels/cuda/quest.h"

#include <algorithm>

#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/quest_scores_mma.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/top_pages.h"

namespace quire::cuda {
namespace {

// T: cache; Q: query; kHeads: of the query group at once, a power of two.
template <typename T, typename Q, int kHeads>
struct QuestScoresKernel {
  struct Params {
    QuestParams p;
    QuestScoresConfig c;
  };
  static constexpr const char* kName = "quest_scores";
  using Sums = PageSums<T, kHeads>;
  static constexpr int kMaxThreads = simt::kWarpSize * kMostScoreWarps;
  static constexpr int kMinBlocks = kHeads >= 4 ? 2 : 3;
  static constexpr int kPages = Sums::kPages, kChannels = Sums::kChannels, kValues = Sums::kValues;

  // Channels of a batch, whose loads are under way together: [i] is channel (first + i) · kChannels + Sums::Channel().
  static constexpr int kBatch = 4;
  struct Words {
    simt::U32x4 low[kBatch], high[kBatch];
  };
  // group: of one KV head; null: nothing is loaded.
  QUIRE_DEVICE static void LoadBatch(const T* group, int first, int k_dim, Words* words) {
    if (group == nullptr) return;
    const int channel = Sums::Channel(), at = Sums::FirstPage();
    const T* max = group + int64_t{k_dim} * kPagesPerGroup;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int c = (first + i) * kChannels + channel;
      if (c >= k_dim) continue;
      words->low[i] = simt::LoadStreaming<simt::U32x4>(group + int64_t{c} * kPagesPerGroup + at);
      words->high[i] = simt::LoadStreaming<simt::U32x4>(max + int64_t{c} * kPagesPerGroup + at);
    }
  }

  // q: shared, [channel][kHeads].
  QUIRE_DEVICE static void AddBatch(const Words& words, const float* q, int first, int k_dim, float (&sum)[kValues]) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int c = (first + b) * kChannels + Sums::Channel();
      if (c >= k_dim) continue;
      float low[kPages], high[kPages];
      Sums::Widen(words.low[b], low);
      Sums::Widen(words.high[b], high);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float x = q[c * kHeads + h];
        const float plus = x < 0 ? 0.0f : x, minus = x < 0 ? x : 0.0f;
#pragma unroll
        for (int i = 0; i < kPages; ++i) {
          sum[h * kPages + i] = simt::Fma(minus, low[i], simt::Fma(plus, high[i], sum[h * kPages + i]));
        }
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.p;
    const QuestScoresConfig& config = params.c;
    const PageFormat& f = p.table.format;
    const int h = simt::BlockX(), row = simt::BlockZ();
    const ScoredGroups scored = ScoredGroups::Create(p, row, h);
    const int begin = scored.first + simt::BlockY() * config.warps * config.groups_per_warp;
    if (begin >= scored.last) return;
    const int heads = p.q_heads / f.kv_heads;
    const int chunks = (heads + kHeads - 1) / kHeads;
    const int rounds = (f.k_dim + kChannels - 1) / kChannels;  // of loads for a group
    const bool is_max = p.reduce == GroupReduce::kMax;
    const int end = begin + config.warps * config.groups_per_warp < scored.last ? begin + config.warps * config.groups_per_warp
                                                                                 : scored.last;
    const auto group_at = [&](int g) -> const T* {
      const int id = g < end ? scored.Id(g) : -1;
      return id < 0 ? nullptr : static_cast<const T*>(p.pages.meta) + id * f.meta_group_stride + h * f.meta_head_stride;
    };
    const T* group = group_at(begin + simt::Warp());
    const T* ahead = group_at(begin + simt::Warp() + config.warps);
    Words next = {};
    LoadBatch(group, 0, f.k_dim, &next);
    float* q = reinterpret_cast<float*>(simt::SharedBytes());  // [chunks][k_dim][kHeads]
    LoadQueries<kHeads>(static_cast<const Q*>(p.q) + row * p.q_stride + int64_t{h} * heads * f.k_dim, heads, f.k_dim, q);
    simt::SyncThreads();
    for (int g = begin + simt::Warp(); g < end; g += config.warps) {
      const T* after = group_at(g + 2 * config.warps);
      float* out = p.scores + (int64_t{row} * f.kv_heads + h) * p.max_groups * kPagesPerGroup + int64_t{g} * kPagesPerGroup;
      if (group == nullptr) {
        Sums::WriteNan(out);
        group = ahead;
        ahead = after;
        LoadBatch(group, 0, f.k_dim, &next);
        continue;
      }
      float total[Sums::kKept] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float sum[kValues];
#pragma unroll
        for (int v = 0; v < kValues; ++v) sum[v] = 0;
        for (int round = 0; round < rounds; round += kBatch) {
          const Words now = next;
          if (round + kBatch < rounds) {
            LoadBatch(group, round + kBatch, f.k_dim, &next);
          } else {
            LoadBatch(chunk + 1 < chunks ? group : ahead, 0, f.k_dim, &next);
          }
          AddBatch(now, q + int64_t{chunk} * kHeads * f.k_dim, round, f.k_dim, sum);
        }
        Sums::AddLanes(sum);
        Sums::JoinHeads(is_max, heads - chunk * kHeads, chunk == 0, sum, total);
      }
      Sums::Write(total, HeadShare(p.reduce, heads), out);
      group = ahead;
      ahead = after;
    }
  }
};

template <typename Kernel>
Status LaunchScores(Stream stream, const QuestParams& p, const QuestScoresConfig& config) {
  simt::LaunchShape shape;
  shape.grid_x = p.table.format.kv_heads;
  shape.grid_y = config.parts;
  shape.grid_z = p.rows;
  shape.threads = 32 * config.warps;
  shape.shared_bytes = config.shared_bytes;
  return simt::Launch<Kernel>(shape, stream, {p, config});
}

template <typename T, typename Q>
Status LaunchHeads(Stream stream, const QuestParams& p) {
  const QuestScoresConfig c = QuestScoresConfig::For(p.table.format, p.rows, p.q_heads, p.max_groups);
  if constexpr (sizeof(T) == 2) {
    if (c.tensor_cores) {
      return c.heads_at_once == 4 ? LaunchScores<TensorQuestScoresKernel<T, Q, 1>>(stream, p, c)
                                  : LaunchScores<TensorQuestScoresKernel<T, Q, 2>>(stream, p, c);
    }
  }
  return VisitHeads(c.heads_at_once, [&](auto n) { return LaunchScores<QuestScoresKernel<T, Q, decltype(n)::value>>(stream, p, c); });
}

}  // namespace

GroupBlocks GroupBlocks::For(int64_t lists, int max_groups, int blocks_of_a_processor) {
  constexpr int kProcessors = 132;
  GroupBlocks c;
  c.warps = std::clamp(max_groups, 1, kMostScoreWarps);
  const int64_t most_parts = std::max<int64_t>(1, (max_groups + c.warps - 1) / c.warps);
  const int64_t parts = std::clamp<int64_t>(blocks_of_a_processor * kProcessors / std::max<int64_t>(1, lists), 1, most_parts);
  c.groups_per_warp = static_cast<int>((max_groups + parts * c.warps - 1) / (parts * c.warps));
  c.groups_per_warp = std::max(c.groups_per_warp, 1);
  const int per_block = c.warps * c.groups_per_warp;
  c.parts = std::max(1, (max_groups + per_block - 1) / per_block);
  return c;
}

QuestScoresConfig QuestScoresConfig::For(const PageFormat& f, int rows, int q_heads, int max_groups) {
  QuestScoresConfig c;
  const int heads = q_heads / f.kv_heads;
  c.tensor_cores = ElementSize(f.dtype) == 2 && f.k_dim % 16 == 0 && f.k_dim <= 256 && heads <= 8;
  int blocks_of_a_processor = 3;
  if (c.tensor_cores) {
    c.heads_at_once = heads <= 4 ? 4 : 8;
    c.shared_bytes = heads <= 4 ? TensorQuestScoresKernel<BF16, float, 1>::Bytes(f.k_dim)
                                : TensorQuestScoresKernel<BF16, float, 2>::Bytes(f.k_dim);
    constexpr size_t kSharedOfAProcessor = 220 * 1024;
    blocks_of_a_processor = static_cast<int>(std::clamp<size_t>(kSharedOfAProcessor / c.shared_bytes, 1, 3));
  } else {
    c.heads_at_once = HeadsAtOnce(heads);
    c.shared_bytes = sizeof(float) * static_cast<size_t>((heads + c.heads_at_once - 1) / c.heads_at_once * c.heads_at_once) *
                     static_cast<size_t>(f.k_dim);
  }
  static_cast<GroupBlocks&>(c) = GroupBlocks::For(int64_t{rows} * f.kv_heads, max_groups, blocks_of_a_processor);
  return c;
}

std::string QuestScoresConfig::ToString() const {
  return std::string(tensor_cores ? "tensor cores, " : "") + std::to_string(heads_at_once) + " heads, " +
         std::to_string(warps) + " warps of " + std::to_string(groups_per_warp) + " groups, " + std::to_string(parts) +
         " parts, " + std::to_string(shared_bytes) + " B shared";
}

Status QuestScores(Stream stream, DType q_dtype, const QuestParams& p) {
  const PageFormat& f = p.table.format;
  if (p.pages.meta == nullptr || p.table.group_ids == nullptr) {
    return Internal("quest: the cache keeps no page metadata");
  }
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("quest: " + std::to_string(p.q_heads) + " query heads on " + std::to_string(f.kv_heads) + " KV heads");
  }
  return VisitFloatDType(f.dtype, [&](auto t) {
    using T = decltype(t);
    if (q_dtype == f.dtype) return LaunchHeads<T, T>(stream, p);
    if (q_dtype == DType::kF32) return LaunchHeads<T, float>(stream, p);
    return InvalidArgument("quest: queries of " + std::string(DTypeName(q_dtype)) + " over a cache of " +
                           std::string(DTypeName(f.dtype)) + "; they are float32 or of the cache's type");
  });
}

Status ListPages(Stream stream, const QuestParams& p, SelectionView selection) {
  const PageFormat& f = p.table.format;
  TopPagesParams t;
  t.scores = p.scores;
  t.score_stride = int64_t{p.max_groups} * kPagesPerGroup;
  t.rows = p.rows;
  t.kv_heads = f.kv_heads;
  t.page_size = f.page_size;
  t.budget = p.budget;
  t.row_seq = p.row_seq;
  t.row_len = p.row_len;
  t.page_ids = p.table.page_ids;
  t.page_begin = p.table.page_begin;
  t.kept_groups = p.kept_groups;
  t.kept_counts = p.kept_counts;
  t.kept_stride = p.max_groups;
  t.selection = selection;
  return TopPages(stream, t, p.max_groups * kPagesPerGroup);
}

Status QuestSelect(Stream stream, DType q_dtype, const QuestParams& p, SelectionView selection) {
  RETURN_IF_ERROR(QuestScores(stream, q_dtype, p));
  return ListPages(stream, p, selection);
}

}  // namespace quire::cuda
