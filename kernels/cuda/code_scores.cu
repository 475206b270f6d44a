// A warp takes one metadata group of one (row, KV head) at a time: each lane loads 16 bytes, the codes of one channel for all 16
// pages, so that every load of the warp is 512 bytes in a row. q · (lo + step · code) is summed in two parts: q · step · code by
// pages, and q · lo, which all pages of a group share. How the lanes' sums meet is in page_scores.cuh.
//
// Groups that aren't whole (one of a list at most holds pages to choose) or have no codes are scored in the same launch from
// their metadata.
#include "kernels/cuda/code_scores.h"

#include <algorithm>

#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/scored_groups.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/metadata_codes.h"

namespace quire::cuda {
namespace {

constexpr int kMostHeads = 4;  // of a group at once: 16 sums of each are a lane's

// T: cache; kHeads: of the query group at once, a power of two.
template <typename T, int kHeads>
struct CodeScoresKernel {
  struct Params {
    QuestParams p;
    GroupBlocks blocks;
  };
  static constexpr const char* kName = "code_scores";
  static constexpr int kMaxThreads = simt::kWarpSize * kMostScoreWarps;
  static constexpr int kMinBlocks = 2;
  static constexpr int kBatch = 4;  // loads of minima, and of maxima, that are under way together

  // The queries of a (row, KV head): shared, [chunks of kHeads][k_dim][kHeads].
  struct Queries {
    const float* q;
    int heads, k_dim;
    GroupReduce reduce;
    QUIRE_DEVICE int Chunks() const { return (heads + kHeads - 1) / kHeads; }
    QUIRE_DEVICE const float* Chunk(int chunk) const { return q + int64_t{chunk} * kHeads * k_dim; }
  };

  // The scores of a group from the sums of its chunks' heads: add(q of a chunk, sum).
  template <typename Sums, typename Add>
  QUIRE_DEVICE static void Score(const Queries& queries, float* out, const Add& add) {
    const bool is_max = queries.reduce == GroupReduce::kMax;
    float total[Sums::kKept] = {};
    for (int chunk = 0; chunk < queries.Chunks(); ++chunk) {
      float sum[Sums::kValues];
#pragma unroll
      for (int v = 0; v < Sums::kValues; ++v) sum[v] = 0;
      add(queries.Chunk(chunk), sum);
      Sums::AddLanes(sum);
      Sums::JoinHeads(is_max, queries.heads - chunk * kHeads, chunk == 0, sum, total);
    }
    Sums::Write(total, HeadShare(queries.reduce, queries.heads), out);
  }

  // A NaN goes on as q⁺.
  QUIRE_DEVICE static float Plus(float x) { return x < 0 ? 0.0f : x; }
  QUIRE_DEVICE static float Minus(float x) { return x < 0 ? x : 0.0f; }

  // Byte i of 16. (2^23 + the code has the code as its last bits.)
  QUIRE_DEVICE static float Code(const simt::U32x4& codes, int i) {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    return simt::BitsFloat(0x4b000000u | (words[i / 4] >> 8 * (i % 4) & 255u)) - 8388608.0f;
  }

  // As HasCodes has it.
  QUIRE_DEVICE static bool HasCodes(const uint8_t* codes, int k_dim) {
    bool none = false;
    for (int c = simt::Lane() * kCodeChannels; c < k_dim; c += simt::kWarpSize * kCodeChannels) {
      none = none || codes[int64_t{c} * kPagesPerGroup] > codes[(int64_t{k_dim} + c) * kPagesPerGroup];
    }
    return !simt::Any(simt::kFullMask, none);
  }

  QUIRE_DEVICE static void ScoreCodes(const Queries& queries, const uint8_t* codes, const T* over, float* out) {
    using Sums = PageSums<uint8_t, kHeads>;
    const int k_dim = queries.k_dim;
    Score<Sums>(queries, out, [&](const float* q, float (&sum)[Sums::kValues]) {
      float base[kHeads] = {};
      for (int first = 0; first < k_dim; first += kBatch * Sums::kChannels) {
        simt::U32x4 low[kBatch], high[kBatch];
        float lo[kBatch], step[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int c = first + b * Sums::kChannels + Sums::Channel();
          low[b] = high[b] = {};
          lo[b] = step[b] = 0;
          if (c >= k_dim) continue;
          low[b] = simt::LoadStreaming<simt::U32x4>(codes + int64_t{c} * kPagesPerGroup);
          high[b] = simt::LoadStreaming<simt::U32x4>(codes + (int64_t{k_dim} + c) * kPagesPerGroup);
          lo[b] = simt::ToFloat(over[c]);
          step[b] = CodeStep(lo[b], simt::ToFloat(over[k_dim + c]));
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int c = first + b * Sums::kChannels + Sums::Channel();
          if (c >= k_dim) continue;
          float min[kPagesPerGroup], max[kPagesPerGroup];
#pragma unroll
          for (int i = 0; i < kPagesPerGroup; ++i) {
            min[i] = Code(low[b], i);
            max[i] = Code(high[b], i);
          }
#pragma unroll
          for (int h = 0; h < kHeads; ++h) {
            const float x = q[c * kHeads + h], plus = Plus(x) * step[b], minus = Minus(x) * step[b];
            base[h] = simt::Fma(x, lo[b], base[h]);
#pragma unroll
            for (int i = 0; i < kPagesPerGroup; ++i) {
              float& s = sum[h * kPagesPerGroup + i];
              s = simt::Fma(minus, min[i], simt::Fma(plus, max[i], s));
            }
          }
        }
      }
#pragma unroll
      for (int v = 0; v < Sums::kValues; ++v) sum[v] += base[v / kPagesPerGroup];
    });
  }

  QUIRE_DEVICE static void ScoreMetadata(const Queries& queries, const T* group, float* out) {
    using Sums = PageSums<T, kHeads>;
    const int k_dim = queries.k_dim;
    Score<Sums>(queries, out, [&](const float* q, float (&sum)[Sums::kValues]) {
      for (int c = Sums::Channel(); c < k_dim; c += Sums::kChannels) {
        const T* at = group + int64_t{c} * kPagesPerGroup + Sums::FirstPage();
        float min[Sums::kPages], max[Sums::kPages];
        Sums::Widen(simt::LoadStreaming<simt::U32x4>(at), min);
        Sums::Widen(simt::LoadStreaming<simt::U32x4>(at + int64_t{k_dim} * kPagesPerGroup), max);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float x = q[c * kHeads + h];
#pragma unroll
          for (int i = 0; i < Sums::kPages; ++i) {
            float& s = sum[h * Sums::kPages + i];
            s = simt::Fma(Minus(x), min[i], simt::Fma(Plus(x), max[i], s));
          }
        }
      }
    });
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.p;
    const PageFormat& f = p.table.format;
    const int kv_head = simt::BlockX(), row = simt::BlockZ();
    const ScoredGroups scored = ScoredGroups::Create(p, row, kv_head);
    const int per_block = params.blocks.warps * params.blocks.groups_per_warp;
    const int begin = simt::BlockY() * per_block, end = begin + per_block < scored.last ? begin + per_block : scored.last;
    if (begin >= end) return;
    const int heads = p.q_heads / f.kv_heads, whole = p.row_len[row] / f.page_size / kPagesPerGroup;
    float* q = reinterpret_cast<float*>(simt::SharedBytes());
    LoadQueries<kHeads>(static_cast<const float*>(p.q) + row * p.q_stride + int64_t{kv_head} * heads * f.k_dim, heads, f.k_dim, q);
    simt::SyncThreads();
    const Queries queries{q, heads, f.k_dim, p.reduce};
    float* scores = p.scores + (int64_t{row} * f.kv_heads + kv_head) * p.max_groups * kPagesPerGroup;
    for (int g = begin + simt::Warp(); g < end; g += params.blocks.warps) {
      const int id = scored.Id(g);
      float* out = scores + int64_t{g} * kPagesPerGroup;
      if (id < 0) {
        PageSums<T, kHeads>::WriteNan(out);
        continue;
      }
      const int64_t at = id * f.meta_group_stride + kv_head * f.meta_head_stride;
      const uint8_t* codes = p.pages.codes + at;
      if (scored.Group(g) < whole && HasCodes(codes, f.k_dim)) {
        ScoreCodes(queries, codes, static_cast<const T*>(p.pages.over) + id * f.over_group_stride + kv_head * f.over_head_stride, out);
      } else {
        ScoreMetadata(queries, static_cast<const T*>(p.pages.meta) + at, out);
      }
    }
  }
};

}  // namespace

Status CodeScores(Stream stream, const QuestParams& p) {
  const PageFormat& f = p.table.format;
  if (p.pages.codes == nullptr || p.pages.meta == nullptr || p.kept_groups == nullptr) {
    return Internal("hierarchical: the cache keeps no page metadata in 8 bits");
  }
  const int heads = p.q_heads / f.kv_heads;
  const GroupBlocks blocks = GroupBlocks::For(int64_t{p.rows} * f.kv_heads, p.max_groups, 2);
  simt::LaunchShape shape;
  shape.grid_x = f.kv_heads;
  shape.grid_y = blocks.parts;
  shape.grid_z = p.rows;
  shape.threads = simt::kWarpSize * blocks.warps;
  return VisitFloatDType(f.dtype, [&](auto t) {
    return VisitHeads(std::min(HeadsAtOnce(heads), kMostHeads), [&](auto n) {
      constexpr int kHeads = std::min<int>(decltype(n)::value, kMostHeads);
      shape.shared_bytes = sizeof(float) * static_cast<size_t>((heads + kHeads - 1) / kHeads * kHeads * f.k_dim);
      return simt::Launch<CodeScoresKernel<decltype(t), kHeads>>(shape, stream, {p, blocks});
    });
  });
}

}  // namespace quire::cuda
