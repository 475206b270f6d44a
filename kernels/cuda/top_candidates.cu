// First launch: a block a (chunk, row) scales its logits and turns them into ordered keys in shared memory, does again those that
// the row's edits change, adds up exp relative to the chunk's maximum, finds the k-th key by radix search and writes the chosen keys in order of their ids. Second launch: a block a row
// does the same over the chunks' choices, which ascend in id, so that a tie again goes to the lower id; then each of the k
// finds its place by counting who goes before it, and the chunks' sums meet in order.
#include "kernels/cuda/top_candidates.h"

#include <algorithm>

#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMergeShared = 40 * 1024;

struct Workspace {
  uint32_t* keys = nullptr;  // [rows][chunks][kept]
  int32_t* ids = nullptr;    // [rows][chunks][kept]
  float* max = nullptr;      // [rows][chunks]
  float* sum = nullptr;      // [rows][chunks]
};

struct BothParams {
  TopCandidatesParams p;
  TopCandidatesConfig c;
  Workspace w;
};

// Bits as on the host: as an fma with 0 the product can't be fused with the difference behind it, which would round otherwise.
QUIRE_DEVICE float EditedOnDevice(float x, const LogitEdit& e) {
  constexpr float kMinusInf = -__builtin_huge_valf();
  x = e.bias == kMinusInf ? kMinusInf : x + e.bias;
  x = x > 0.0f ? x / e.repetition : simt::Fma(x, e.repetition, 0.0f);
  return x - e.subtract;
}

template <typename T>
struct ChunkKernel {
  using Params = BothParams;
  static constexpr const char* kName = "top_candidates_chunk";
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kMinBlocks = 4;
  struct Layout {
    RadixSelectShared select;
    CompactionShared compaction;
    float scratch[kThreads / 32];
    uint32_t keys[1];  // [chunk]
  };

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopCandidatesParams& p = params.p;
    auto& s = *reinterpret_cast<Layout*>(simt::SharedBytes());
    auto* keys = reinterpret_cast<uint32_t*>(simt::SharedBytes() + offsetof(Layout, keys));
    const int64_t row = simt::BlockY(), begin = int64_t{simt::BlockX()} * params.c.chunk;
    const int n = static_cast<int>(p.vocab - begin < params.c.chunk ? p.vocab - begin : params.c.chunk);
    CandidateRow which{static_cast<int32_t>(row), 1.0f, 0, 0};
    if (p.row_of != nullptr) which = simt::LoadReadOnly<CandidateRow>(p.row_of + row);
    const T* logits = static_cast<const T*>(p.logits) + which.row * p.stride + begin;
    for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) {
      keys[i] = OrderedKey(simt::ToFloat(logits[i]) * which.scale);
    }
    if (which.edits_begin < which.edits_end) {  // the whole block, or none of it
      simt::SyncThreads();
      for (int e = which.edits_begin + simt::ThreadIndex(); e < which.edits_end; e += simt::BlockThreads()) {
        const auto edit = simt::LoadReadOnly<LogitEdit>(p.edits + e);
        const int64_t i = int64_t{edit.id} - p.vocab_begin - begin;
        if (i < 0 || i >= n) continue;
        keys[i] = OrderedKey(EditedOnDevice(simt::ToFloat(logits[i]), edit) * which.scale);
      }
      simt::SyncThreads();
    }
    uint32_t best = 0;
    for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) best = keys[i] > best ? keys[i] : best;
    best = simt::ReduceMax(simt::kFullMask, best);
    if (simt::Lane() == 0) s.select.histogram[0][simt::Warp()] = best;
    simt::SyncThreads();
    for (int w = 0; w < simt::BlockThreads() / simt::kWarpSize; ++w) {
      best = s.select.histogram[0][w] > best ? s.select.histogram[0][w] : best;
    }
    const float max = best == 0 ? -__builtin_huge_valf() : KeyToFloat(best);
    float sum = 0;
    if (max - max == 0.0f) {  // finite
      for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) {
        if (keys[i] != 0) sum += simt::Exp(KeyToFloat(keys[i]) - max);
      }
    }
    sum = simt::BlockSum(sum, s.scratch);
    const int64_t at = row * params.c.chunks + simt::BlockX();
    if (simt::ThreadIndex() == 0) {
      params.w.max[at] = max;
      params.w.sum[at] = sum;
    }
    const int k = params.c.kept < n ? params.c.kept : n;
    const KeyThreshold t = FindThreshold([&](int i) { return keys[i]; }, n, k, s.select);
    OrderedCompaction compaction(t.ties);
    uint32_t* out_keys = params.w.keys + at * params.c.kept;
    int32_t* out_ids = params.w.ids + at * params.c.kept;
    for (int base = 0; base < n; base += simt::BlockThreads()) {
      const int i = base + simt::ThreadIndex();
      const int place = compaction.Place(i < n && t.Sure(keys[i]), i < n && t.Tie(keys[i]), s.compaction);
      if (place < 0) continue;
      out_keys[place] = keys[i];
      out_ids[place] = p.vocab_begin + static_cast<int32_t>(begin) + i;
    }
    // A last chunk smaller than k: entries that nobody chooses.
    for (int i = k + simt::ThreadIndex(); i < params.c.kept; i += simt::BlockThreads()) {
      out_keys[i] = 0;
      out_ids[i] = INT32_MAX;
    }
  }
};

struct MergeKernel {
  using Params = BothParams;
  static constexpr const char* kName = "top_candidates_merge";
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kMinBlocks = 2;
  struct Layout {
    RadixSelectShared select;
    CompactionShared compaction;
    uint32_t best_keys[kMaxCandidates];
    int32_t best_ids[kMaxCandidates];
    uint32_t keys[1];  // [merge_keys]
  };

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopCandidatesParams& p = params.p;
    auto& s = *reinterpret_cast<Layout*>(simt::SharedBytes());
    auto* cache = reinterpret_cast<uint32_t*>(simt::SharedBytes() + offsetof(Layout, keys));
    const int64_t row = simt::BlockX();
    const int n = params.c.chunks * params.c.kept;
    const uint32_t* keys = params.w.keys + row * n;
    const int32_t* ids = params.w.ids + row * n;
    const bool cached = params.c.merge_keys > 0;
    for (int i = simt::ThreadIndex(); cached && i < n; i += simt::BlockThreads()) cache[i] = keys[i];
    const auto key = [&](int i) { return cached ? cache[i] : keys[i]; };
    // Padding entries have key 0, as NaN has, and lie behind all others of their row.
    const KeyThreshold t = FindThreshold(key, n, p.k, s.select);
    OrderedCompaction compaction(t.ties);
    for (int base = 0; base < n; base += simt::BlockThreads()) {
      const int i = base + simt::ThreadIndex();
      const int place = compaction.Place(i < n && t.Sure(key(i)), i < n && t.Tie(key(i)), s.compaction);
      if (place < 0) continue;
      s.best_keys[place] = key(i);
      s.best_ids[place] = ids[i];
    }
    simt::SyncThreads();
    for (int i = simt::ThreadIndex(); i < p.k; i += simt::BlockThreads()) {
      const uint32_t mine = s.best_keys[i];
      int place = 0;
      for (int other = 0; other < p.k; ++other) {
        place += s.best_keys[other] > mine || (s.best_keys[other] == mine && other < i);
      }
      p.ids[row * p.k + place] = s.best_ids[i];
      p.values[row * p.k + place] = mine == 0 ? -__builtin_huge_valf() : KeyToFloat(mine);
    }
    if (simt::ThreadIndex() == 0) {
      const float* maxima = params.w.max + row * params.c.chunks;
      const float* sums = params.w.sum + row * params.c.chunks;
      float max = maxima[0];
      for (int c = 1; c < params.c.chunks; ++c) max = maxima[c] > max ? maxima[c] : max;
      float lse = max;
      if (max - max == 0.0f) {
        double sum = 0;
        for (int c = 0; c < params.c.chunks; ++c) {
          if (maxima[c] - maxima[c] == 0.0f) sum += double{sums[c]} * simt::Exp(maxima[c] - max);
        }
        lse = max + simt::Log(static_cast<float>(sum));
      }
      p.lse[row] = lse;
    }
  }
};

// A thread a logit.
template <typename T>
struct GatherKernel {
  using Params = GatherLogitsParams;
  static constexpr const char* kName = "gather_logits";
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& p) {
    const int64_t i = int64_t{simt::BlockX()} * simt::BlockThreads() + simt::ThreadIndex();
    if (i >= p.rows * p.k) return;
    const int64_t column = int64_t{p.ids[i]} - p.vocab_begin;
    const bool own = column >= 0 && column < p.vocab;
    const T* logits = static_cast<const T*>(p.logits);
    p.out[i] = own ? simt::ToFloat(logits[p.row_of[i / p.k].row * p.stride + column]) : 0.0f;
  }
};

}  // namespace

TopCandidatesConfig TopCandidatesConfig::For(int64_t rows, int64_t vocab, int k) {
  TopCandidatesConfig c;
  c.chunk = static_cast<int>(std::min<int64_t>(vocab, 4096));
  c.chunks = static_cast<int>((vocab + c.chunk - 1) / c.chunk);
  c.kept = std::min(k, c.chunk);
  c.shared_bytes = sizeof(ChunkKernel<float>::Layout) + sizeof(uint32_t) * static_cast<size_t>(c.chunk);
  const size_t keys = static_cast<size_t>(c.chunks) * static_cast<size_t>(c.kept);
  c.merge_shared_bytes = sizeof(MergeKernel::Layout);
  if (c.merge_shared_bytes + sizeof(uint32_t) * keys <= kMergeShared) {
    c.merge_keys = static_cast<int>(keys);
    c.merge_shared_bytes += sizeof(uint32_t) * keys;
  }
  c.workspace_bytes = static_cast<size_t>(rows) * (keys * (sizeof(uint32_t) + sizeof(int32_t)) +
                                                   static_cast<size_t>(c.chunks) * 2 * sizeof(float));
  return c;
}

std::string TopCandidatesConfig::ToString() const {
  return std::to_string(chunks) + " chunks of " + std::to_string(chunk) + ", " + std::to_string(kept) + " kept, " +
         std::to_string(merge_keys) + " keys cached in the merge, " + std::to_string(workspace_bytes) + " B workspace";
}

Status TopCandidates(Stream stream, DType dtype, const TopCandidatesParams& p) {
  if (p.k < 1 || p.k > p.vocab || p.k > kMaxCandidates) {
    return InvalidArgument("top candidates: k " + std::to_string(p.k) + " of a vocabulary of " + std::to_string(p.vocab) +
                           "; it is 1 to " + std::to_string(std::min<int64_t>(p.vocab, kMaxCandidates)));
  }
  BothParams params;
  params.p = p;
  params.c = TopCandidatesConfig::For(p.rows, p.vocab, p.k);
  const int64_t keys = p.rows * params.c.chunks * params.c.kept;
  params.w.keys = static_cast<uint32_t*>(p.workspace);
  params.w.ids = reinterpret_cast<int32_t*>(params.w.keys + keys);
  params.w.max = reinterpret_cast<float*>(params.w.ids + keys);
  params.w.sum = params.w.max + p.rows * params.c.chunks;
  simt::LaunchShape shape;
  shape.grid_x = params.c.chunks;
  shape.grid_y = static_cast<int>(p.rows);
  shape.threads = kThreads;
  shape.shared_bytes = params.c.shared_bytes;
  RETURN_IF_ERROR(VisitFloatDType(dtype, [&](auto t) { return simt::Launch<ChunkKernel<decltype(t)>>(shape, stream, params); }));
  shape.grid_x = p.rows;
  shape.grid_y = 1;
  shape.shared_bytes = params.c.merge_shared_bytes;
  return simt::Launch<MergeKernel>(shape, stream, params);
}

Status GatherLogits(Stream stream, DType dtype, const GatherLogitsParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = (p.rows * p.k + kThreads - 1) / kThreads;
  shape.threads = kThreads;
  return VisitFloatDType(dtype, [&](auto t) { return simt::Launch<GatherKernel<decltype(t)>>(shape, stream, p); });
}

}  // namespace quire::cuda
