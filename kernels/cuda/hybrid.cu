// Each block chooses the channels of its (row, KV head) for itself, which costs it a microsecond and no launch. A run of 16
// pages of one channel is 32 bytes (64 in f32); what a warp does with a metadata group is in page_scores.cuh.
#include "kernels/cuda/hybrid.h"

#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/scored_groups.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/top_channels.cuh"

namespace quire::cuda {
namespace {

// T: cache; kHeads: of the query group at once, a power of two.
template <typename T, int kHeads>
struct HybridScoresKernel {
  using Sums = PageSums<T, kHeads>;
  struct Params {
    QuestParams p;
    int channels;
    GroupBlocks blocks;
  };
  static constexpr const char* kName = "hybrid_scores";
  static constexpr int kMaxThreads = simt::kWarpSize * kMostScoreWarps;
  static constexpr int kMinBlocks = 2;
  static constexpr int kBatch = 4;  // loads under way together
  static constexpr int kPages = Sums::kPages;

  struct Shared {
    uint32_t* top;  // TopSumsBytes(k_dim)
    int* runs;      // [channels] which · k_dim + channel
    float* q;       // [chunks][channels][kHeads]
  };
  static size_t Bytes(int k_dim, int channels, int heads) {
    const int rounded = (heads + kHeads - 1) / kHeads * kHeads;
    return TopSumsBytes(k_dim) + sizeof(float) * static_cast<size_t>(channels) * static_cast<size_t>(1 + rounded);
  }
  QUIRE_DEVICE static Shared Place(int k_dim, int channels) {
    Shared s;
    s.top = reinterpret_cast<uint32_t*>(simt::SharedBytes());
    s.runs = reinterpret_cast<int*>(simt::SharedBytes() + TopSumsBytes(k_dim));
    s.q = reinterpret_cast<float*>(s.runs + channels);
    return s;
  }

  // The runs of the chosen channels, and the queries there. Returns how many.
  QUIRE_DEVICE static int Choose(const float* q, int heads, int k_dim, int channels, const Shared& s) {
    const int chunks = (heads + kHeads - 1) / kHeads;
    return TopSums(
        k_dim, channels,
        [&](int c) {
          float size = 0;
          for (int h = 0; h < heads; ++h) {
            const float x = q[int64_t{h} * k_dim + c];
            size += x < 0 ? -x : x;
          }
          return size;
        },
        [&](int c, int place) {
          float sum = 0;
          for (int h = 0; h < chunks * kHeads; ++h) {
            const float x = h < heads ? q[int64_t{h} * k_dim + c] : 0.0f;
            sum += x;
            s.q[(h / kHeads * channels + place) * kHeads + h % kHeads] = x;
          }
          s.runs[place] = (sum >= 0 ? k_dim : 0) + c;
        },
        s.top);
  }

  struct Words {
    simt::U32x4 x[kBatch];
  };
  // [i] is run (first + i) · kChannels + Sums::Channel(). group: of one KV head; null: nothing is loaded.
  QUIRE_DEVICE static void LoadBatch(const T* group, const Shared& s, int first, int count, Words* words) {
    if (group == nullptr) return;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int run = (first + i) * Sums::kChannels + Sums::Channel();
      if (run >= count) continue;
      words->x[i] = simt::LoadReadOnly<simt::U32x4>(group + int64_t{s.runs[run]} * kPagesPerGroup + Sums::FirstPage());
    }
  }

  // q: shared, [run][kHeads].
  QUIRE_DEVICE static void AddBatch(const Words& words, const float* q, int first, int count, float (&sum)[Sums::kValues]) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int run = (first + b) * Sums::kChannels + Sums::Channel();
      if (run >= count) continue;
      float x[kPages];
      Sums::Widen(words.x[b], x);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float y = q[run * kHeads + h];
#pragma unroll
        for (int i = 0; i < kPages; ++i) sum[h * kPages + i] = simt::Fma(y, x[i], sum[h * kPages + i]);
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.p;
    const PageFormat& f = p.table.format;
    const GroupBlocks& blocks = params.blocks;
    const int kv_head = simt::BlockX(), row = simt::BlockZ(), heads = p.q_heads / f.kv_heads;
    const ScoredGroups scored = ScoredGroups::Create(p, row, kv_head);
    const int per_block = blocks.warps * blocks.groups_per_warp;
    const int begin = scored.first + simt::BlockY() * per_block, end = begin + per_block < scored.last ? begin + per_block : scored.last;
    if (begin >= end) return;
    const Shared s = Place(f.k_dim, params.channels);
    const int count = Choose(static_cast<const float*>(p.q) + row * p.q_stride + int64_t{kv_head} * heads * f.k_dim, heads, f.k_dim,
                             params.channels, s);
    const int chunks = (heads + kHeads - 1) / kHeads, rounds = (count + Sums::kChannels - 1) / Sums::kChannels;
    const bool is_max = p.reduce == GroupReduce::kMax;
    const auto group_at = [&](int g) -> const T* {
      const int id = g < end && count > 0 ? scored.Id(g) : -1;
      return id < 0 ? nullptr : static_cast<const T*>(p.pages.meta) + id * f.meta_group_stride + kv_head * f.meta_head_stride;
    };
    float* scores = p.scores + (int64_t{row} * f.kv_heads + kv_head) * p.max_groups * kPagesPerGroup;
    const T* group = group_at(begin + simt::Warp());
    Words next = {};
    LoadBatch(group, s, 0, count, &next);
    for (int g = begin + simt::Warp(); g < end; g += blocks.warps) {
      const T* ahead = group_at(g + blocks.warps);
      float* out = scores + int64_t{g} * kPagesPerGroup;
      if (group == nullptr) {
        Sums::WriteNan(out);
        group = ahead;
        LoadBatch(group, s, 0, count, &next);
        continue;
      }
      float total[Sums::kKept] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float sum[Sums::kValues];
#pragma unroll
        for (int v = 0; v < Sums::kValues; ++v) sum[v] = 0;
        for (int round = 0; round < rounds; round += kBatch) {
          const Words now = next;
          if (round + kBatch < rounds) {
            LoadBatch(group, s, round + kBatch, count, &next);
          } else {
            LoadBatch(chunk + 1 < chunks ? group : ahead, s, 0, count, &next);
          }
          AddBatch(now, s.q + chunk * params.channels * kHeads, round, count, sum);
        }
        Sums::AddLanes(sum);
        Sums::JoinHeads(is_max, heads - chunk * kHeads, chunk == 0, sum, total);
      }
      Sums::Write(total, HeadShare(p.reduce, heads), out);
      group = ahead;
    }
  }
};

}  // namespace

Status HybridScores(Stream stream, const QuestParams& p, int channels) {
  const PageFormat& f = p.table.format;
  if (p.pages.meta == nullptr || p.table.group_ids == nullptr) {
    return Internal("hybrid: the cache keeps no page metadata");
  }
  const int heads = p.q_heads / f.kv_heads;
  const GroupBlocks blocks = GroupBlocks::For(int64_t{p.rows} * f.kv_heads, p.max_groups, 3);
  simt::LaunchShape shape;
  shape.grid_x = f.kv_heads;
  shape.grid_y = blocks.parts;
  shape.grid_z = p.rows;
  shape.threads = simt::kWarpSize * blocks.warps;
  return VisitFloatDType(f.dtype, [&](auto t) {
    return VisitHeads(HeadsAtOnce(heads), [&](auto n) {
      using Kernel = HybridScoresKernel<decltype(t), decltype(n)::value>;
      shape.shared_bytes = Kernel::Bytes(f.k_dim, channels, heads);
      return simt::Launch<Kernel>(shape, stream, {p, channels, blocks});
    });
  });
}

Status HybridSelect(Stream stream, const QuestParams& p, int channels, SelectionView selection) {
  RETURN_IF_ERROR(HybridScores(stream, p, channels));
  return ListPages(stream, p, selection);
}

}  // namespace quire::cuda
