// Blocks: x is a KV head and some of its query heads, y a part of the metadata groups, z a row. A warp takes a group at a time
// as quest's scores do (page_scores.cuh), unless all of its pages were read, and adds what its pages may weigh, tokens ·
// exp(bound − lse), for each query head. A second launch adds the parts: U / S of a head, and from it U / (U + S).
#include "kernels/cuda/missing_mass.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/decode_list.cuh"
#include "kernels/cuda/page_scores.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/mods.h"

namespace quire::cuda {
namespace {

struct PartsParams {
  MissingMassParams p;
  GroupBlocks c;
  float* parts;  // [rows][q_heads][c.parts]: U / S of a part's pages
};

// T: cache; kHeads: of the query group at once, a power of two.
template <typename T, int kHeads>
struct LeftOutKernel {
  using Params = PartsParams;
  using Sums = PageSums<T, kHeads>;
  static constexpr const char* kName = "left_out_mass";
  static constexpr int kMaxThreads = simt::kWarpSize * kMostScoreWarps;
  static constexpr int kMinBlocks = 2;
  static constexpr int kHeadLanes = simt::kWarpSize / kHeads;  // that hold pages of one head after AddLanes
  struct Layout {
    float left[kMostScoreWarps][kHeads];
  };  // then the queries [k_dim][kHeads]
  static size_t Bytes(int k_dim) { return sizeof(Layout) + sizeof(float) * static_cast<size_t>(k_dim * kHeads); }

  // Bounds of q · k over a group's pages; afterwards this lane's as AddLanes leaves them.
  QUIRE_DEVICE static void Bounds(const T* group, const float* q, int k_dim, float (&sum)[Sums::kValues]) {
#pragma unroll
    for (int v = 0; v < Sums::kValues; ++v) sum[v] = 0;
    const T* max = group + int64_t{k_dim} * kPagesPerGroup;
#pragma unroll 2
    for (int c = Sums::Channel(); c < k_dim; c += Sums::kChannels) {
      const int64_t at = int64_t{c} * kPagesPerGroup + Sums::FirstPage();
      float low[Sums::kPages], high[Sums::kPages];
      Sums::Widen(simt::LoadStreaming<simt::U32x4>(group + at), low);
      Sums::Widen(simt::LoadStreaming<simt::U32x4>(max + at), high);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float x = q[c * kHeads + h];
        const float plus = x < 0 ? 0.0f : x, minus = x < 0 ? x : 0.0f;
#pragma unroll
        for (int i = 0; i < Sums::kPages; ++i) {
          float& s = sum[h * Sums::kPages + i];
          s = simt::Fma(minus, low[i], simt::Fma(plus, high[i], s));
        }
      }
    }
    Sums::AddLanes(sum);
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const MissingMassParams& p = params.p;
    const PageFormat& f = p.table.format;
    auto& s = simt::Shared<Layout>();
    float* q = reinterpret_cast<float*>(simt::SharedBytes() + sizeof(Layout));
    const int heads = p.q_heads / f.kv_heads, chunks = (heads + kHeads - 1) / kHeads;
    const int kv_head = simt::BlockX() / chunks, first = simt::BlockX() % chunks * kHeads, row = simt::BlockZ();
    const int here = heads - first < kHeads ? heads - first : kHeads;
    const int first_head = kv_head * heads + first;
    LoadQueries<kHeads>(p.q + row * p.q_stride + int64_t{first_head} * f.k_dim, here, f.k_dim, q);
    simt::SyncThreads();

    const int seq = p.row_seq[row], length = seq < 0 ? 0 : p.row_len[row];
    const int pages = (length + f.page_size - 1) / f.page_size, groups = (pages + kPagesPerGroup - 1) / kPagesPerGroup;
    const int32_t* ids = seq < 0 ? nullptr : p.table.page_ids + p.table.page_begin[seq];
    const int64_t list = int64_t{row} * f.kv_heads + kv_head;
    const int32_t* read = p.selection.pages + list * p.selection.max_pages;
    const int count = seq < 0 ? 0 : p.selection.counts[list];
    const bool holds = Sums::Head() < here && simt::Lane() % Sums::kLanesPerSplit < Sums::kLanesPerChannel;
    const float lse = holds ? p.lse[int64_t{row} * p.q_heads + first_head + Sums::Head()] : 0.0f;
    const int block_groups = params.c.warps * params.c.groups_per_warp, begin = simt::BlockY() * block_groups;
    const int end = begin + block_groups < groups ? begin + block_groups : groups;
    float left = 0;  // of this lane's head and pages
    for (int g = begin + simt::Warp(); g < end; g += params.c.warps) {
      const int page = g * kPagesPerGroup + simt::Lane();
      bool out = simt::Lane() < kPagesPerGroup && page < pages && ids[page] >= 0;
      if (out) {
        const int at = FirstNotBelow(read, count, page);
        out = at == count || read[at] != page;
      }
      const uint32_t left_out = simt::Ballot(simt::kFullMask, out);  // pages of the group
      if (left_out == 0) continue;
      const int64_t id = p.table.group_ids[p.table.group_begin[seq] + g];
      const T* group = static_cast<const T*>(p.pages.meta) + id * f.meta_group_stride + kv_head * f.meta_head_stride;
      float sum[Sums::kValues];
      Bounds(group, q, f.k_dim, sum);
#pragma unroll
      for (int v = 0; v < Sums::kKept; ++v) {
        const int column = Sums::Page() + v;
        float score = p.scale * sum[v];
        if (!holds || (left_out >> column & 1) == 0 || score != score) continue;
        if (p.softcap > 0) score = SoftCap{p.softcap}(score, seq, first_head, 0, 0);
        const int behind = length - (g * kPagesPerGroup + column) * f.page_size;
        const int tokens = behind < f.page_size ? behind : f.page_size;
        left = simt::Fma(static_cast<float>(tokens), simt::Exp(score - lse), left);
      }
    }
    for (int distance = kHeadLanes / 2; distance > 0; distance /= 2) left += simt::ShuffleXor(simt::kFullMask, left, distance);
    if (simt::Lane() % kHeadLanes == 0) s.left[simt::Warp()][simt::Lane() / kHeadLanes] = left;
    simt::SyncThreads();
    const int head = simt::ThreadIndex();
    if (head >= here) return;
    float sum = 0;
    for (int w = 0; w < params.c.warps; ++w) sum += s.left[w][head];
    params.parts[(int64_t{row} * p.q_heads + first_head + head) * params.c.parts + simt::BlockY()] = sum;
  }
};

// A warp a row, a lane every 32nd head.
struct BoundsKernel {
  using Params = PartsParams;
  static constexpr const char* kName = "missing_mass_bounds";
  static constexpr int kMaxThreads = simt::kWarpSize;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& params) {
    const MissingMassParams& p = params.p;
    const int row = simt::BlockX();
    float sum = 0;
    for (int head = simt::Lane(); head < p.q_heads; head += simt::kWarpSize) {
      const float* parts = params.parts + (int64_t{row} * p.q_heads + head) * params.c.parts;
      float left = 0;
      for (int i = 0; i < params.c.parts; ++i) left += parts[i];
      sum += left == __builtin_huge_valf() ? 1.0f : left / (1 + left);
    }
    sum = simt::WarpSum(sum);
    if (simt::Lane() == 0) p.sums[row] = sum;
  }
};

GroupBlocks BlocksFor(const PageFormat& f, int rows, int q_heads, int max_groups) {
  const int heads = q_heads / f.kv_heads, at_once = HeadsAtOnce(heads);
  return GroupBlocks::For(int64_t{rows} * f.kv_heads * ((heads + at_once - 1) / at_once), max_groups, 2);
}

template <typename Kernel>
Status Launch(Stream stream, const PartsParams& params, int chunks) {
  const MissingMassParams& p = params.p;
  simt::LaunchShape shape;
  shape.grid_x = int64_t{p.table.format.kv_heads} * chunks;
  shape.grid_y = params.c.parts;
  shape.grid_z = p.rows;
  shape.threads = simt::kWarpSize * params.c.warps;
  shape.shared_bytes = Kernel::Bytes(p.table.format.k_dim);
  return simt::Launch<Kernel>(shape, stream, params);
}

}  // namespace

size_t MissingMassWorkspace(const PageFormat& format, int rows, int q_heads, int max_groups) {
  return sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(q_heads) *
         static_cast<size_t>(BlocksFor(format, rows, q_heads, max_groups).parts);
}

Status MissingMass(Stream stream, const MissingMassParams& p, void* workspace) {
  const PageFormat& f = p.table.format;
  if (p.pages.meta == nullptr || p.table.group_ids == nullptr || p.selection.slot_mask != nullptr) {
    return Internal("missing mass: it is bounded by page metadata, for selections of whole pages");
  }
  if (p.q_heads % f.kv_heads != 0) {
    return Internal("missing mass: " + std::to_string(p.q_heads) + " query heads on " + std::to_string(f.kv_heads) + " KV heads");
  }
  const PartsParams params{p, BlocksFor(f, p.rows, p.q_heads, p.max_groups), static_cast<float*>(workspace)};
  const int heads = p.q_heads / f.kv_heads;
  RETURN_IF_ERROR(VisitFloatDType(f.dtype, [&](auto t) {
    return VisitHeads(HeadsAtOnce(heads), [&](auto n) {
      constexpr int kHeads = decltype(n)::value;
      return Launch<LeftOutKernel<decltype(t), kHeads>>(stream, params, (heads + kHeads - 1) / kHeads);
    });
  }));
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.threads = BoundsKernel::kMaxThreads;
  return simt::Launch<BoundsKernel>(shape, stream, params);
}

}  // namespace quire::cuda
