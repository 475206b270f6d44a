// Scores. A warp takes one metadata group of one (row, KV head) at a time: 8 KB in one piece at d 128. Each lane loads 16
// bytes, the pages of half a group (a quarter in f32) for one channel, so that every load of the warp is 512 bytes in a row;
// it adds what its channels give to its pages for every head of the chunk, and the lanes' sums meet by a butterfly that halves
// the pages it carries at each step. The bound is Σ q⁺·max + q⁻·min with q⁺ = max(q, 0), q⁻ = min(q, 0), as on the CPU.
//
// Top pages. A block a list: radix search for the k-th key, then one ordered compaction over all pages in which forced ones
// are sure.
#include "kernels/cuda/quest.h"

#include <algorithm>

#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kMaxWarps = 4;

// The cut of a row; the CPU's own arithmetic (kernels/selection/budget.h), whose functions are constexpr.
QUIRE_DEVICE ForcedPages Cut(const PageBudget& budget, int length, int page_size) {
  return ForcedPages::Create(budget, length, page_size);
}

QUIRE_DEVICE float MaxOrNan(float a, float b) {
  if (a != a) return a;
  return b > a || b != b ? b : a;
}

// T: cache; Q: query; kHeads: of the query group at once, a power of two.
template <typename T, typename Q, int kHeads>
struct QuestScoresKernel {
  struct Params {
    QuestParams p;
    QuestScoresConfig c;
  };
  static constexpr const char* kName = "quest_scores";
  static constexpr int kMaxThreads = 32 * kMaxWarps;
  static constexpr int kMinBlocks = kHeads >= 8 ? 3 : 4;
  static constexpr int kPages = 16 / static_cast<int>(sizeof(T));        // of a 16-byte load
  static constexpr int kLanesPerChannel = kPagesPerGroup / kPages;       // 2, in f32 4
  static constexpr int kChannels = simt::kWarpSize / kLanesPerChannel;   // of a load of the warp
  static constexpr int kValues = kHeads * kPages;

  QUIRE_DEVICE static void Widen(const simt::U32x4& v, float (&x)[kPages]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        x[i] = simt::BitsFloat(words[i]);
      } else {
        x[2 * i] = simt::LowFloat<T>(words[i]);
        x[2 * i + 1] = simt::HighFloat<T>(words[i]);
      }
    }
  }

  // q: shared, [channel][kHeads].
  QUIRE_DEVICE static void AddChannels(const T* group, const float* q, int k_dim, float (&sum)[kValues]) {
    const int channel = simt::Lane() / kLanesPerChannel, at = simt::Lane() % kLanesPerChannel * kPages;
    const T* max = group + int64_t{k_dim} * kPagesPerGroup;
#pragma unroll 4
    for (int c = channel; c < k_dim; c += kChannels) {
      float low[kPages], high[kPages];
      Widen(simt::LoadStreaming<simt::U32x4>(group + int64_t{c} * kPagesPerGroup + at), low);
      Widen(simt::LoadStreaming<simt::U32x4>(max + int64_t{c} * kPagesPerGroup + at), high);
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

  // Adds the lanes of a page's channels. Afterwards this lane holds values[0 … kept): of value number
  // (its bits from the top, then the index).
  static constexpr int kKept = kValues > kChannels ? kValues / kChannels : 1;
  QUIRE_DEVICE static void AddLanes(float (&sum)[kValues]) {
    int n = kValues;
#pragma unroll
    for (int bit = simt::kWarpSize / 2; bit >= kLanesPerChannel; bit /= 2) {
      if (n > 1) {
        n /= 2;
        const bool upper = (simt::Lane() & bit) != 0;
#pragma unroll
        for (int i = 0; i < kValues / 2; ++i) {
          if (i >= n) continue;
          const float mine = upper ? sum[n + i] : sum[i], other = upper ? sum[i] : sum[n + i];
          sum[i] = mine + simt::ShuffleXor(simt::kFullMask, other, bit);
        }
      } else {
        sum[0] += simt::ShuffleXor(simt::kFullMask, sum[0], bit);
      }
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const QuestParams& p = params.p;
    const QuestScoresConfig& config = params.c;
    const PageFormat& f = p.table.format;
    const int h = simt::BlockX(), row = simt::BlockZ();
    const int seq = p.row_seq[row];
    if (seq < 0) return;
    const ForcedPages cut = Cut(p.budget, p.row_len[row], f.page_size);
    const int first = cut.sinks / kPagesPerGroup, last = (cut.recent + kPagesPerGroup - 1) / kPagesPerGroup;
    const int begin = first + simt::BlockY() * config.warps * config.groups_per_warp;
    if (cut.free == 0 || begin >= last) return;
    const int heads = p.q_heads / f.kv_heads;
    float* q = reinterpret_cast<float*>(simt::SharedBytes());  // [chunks][k_dim][kHeads]
    const int chunks = (heads + kHeads - 1) / kHeads;
    const Q* from = static_cast<const Q*>(p.q) + row * p.q_stride + int64_t{h} * heads * f.k_dim;
    for (int i = simt::ThreadIndex(); i < chunks * kHeads * f.k_dim; i += simt::BlockThreads()) {
      const int head = i / f.k_dim, c = i % f.k_dim;
      q[(head / kHeads * f.k_dim + c) * kHeads + head % kHeads] = head < heads ? simt::ToFloat(from[i]) : 0.0f;
    }
    simt::SyncThreads();

    // What this lane's value is: head within the chunk and page within the group.
    constexpr int kSplits = kValues > kChannels ? kChannels : kValues;  // lanes that end with different values
    const int part = simt::Lane() / (simt::kWarpSize / kSplits);        // its bits from the top
    const int number = part * kKept;
    const int my_head = number / kPages, my_page = number % kPages + simt::Lane() % kLanesPerChannel * kPages;
    const bool is_max = p.reduce == GroupReduce::kMax;
    const int32_t* groups = p.table.group_ids + p.table.group_begin[seq];
    for (int i = simt::Warp(); i < config.warps * config.groups_per_warp; i += config.warps) {
      const int g = begin + i;
      if (g >= last) break;
      float* out = p.scores + (int64_t{row} * f.kv_heads + h) * p.max_groups * kPagesPerGroup + int64_t{g} * kPagesPerGroup;
      if (groups[g] < 0) {
        if (simt::Lane() < kPagesPerGroup) out[simt::Lane()] = simt::BitsFloat(0x7fc00000u);
        continue;
      }
      const T* group = static_cast<const T*>(p.pages.meta) + groups[g] * f.meta_group_stride + h * f.meta_head_stride;
      float total[kKept] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float sum[kValues];
#pragma unroll
        for (int v = 0; v < kValues; ++v) sum[v] = 0;
        AddChannels(group, q + int64_t{chunk} * kHeads * f.k_dim, f.k_dim, sum);
        AddLanes(sum);
        const bool there = chunk * kHeads + my_head < heads;
#pragma unroll
        for (int v = 0; v < kKept; ++v) {
          float x = there ? sum[v] : (is_max ? -__builtin_huge_valf() : 0.0f);
          // Heads lie in the upper bits.
#pragma unroll
          for (int bit = simt::kWarpSize / 2; bit > simt::kWarpSize / 2 / kHeads; bit /= 2) {
            const float other = simt::ShuffleXor(simt::kFullMask, x, bit);
            x = is_max ? MaxOrNan(x, other) : x + other;
          }
          total[v] = chunk == 0 ? x : (is_max ? MaxOrNan(total[v], x) : total[v] + x);
        }
      }
      const float share = p.reduce == GroupReduce::kMean ? 1.0f / static_cast<float>(heads) : 1.0f;
      // One lane of those that hold the same page writes it.
      const bool writes = my_head == 0 && simt::Lane() % (simt::kWarpSize / kSplits) < kLanesPerChannel;
#pragma unroll
      for (int v = 0; v < kKept; ++v) {
        if (writes) out[my_page + v] = total[v] * share;
      }
    }
  }
};

struct TopPagesKernel {
  struct Params {
    TopPagesParams p;
    TopPagesConfig c;
  };
  static constexpr const char* kName = "top_pages";
  static constexpr int kMaxThreads = 1024;
  static constexpr int kMinBlocks = 1;
  struct Layout {
    RadixSelectShared select;
    CompactionShared compaction;
    uint32_t keys[1];  // [cached_keys]
  };

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopPagesParams& p = params.p;
    auto& s = *reinterpret_cast<Layout*>(simt::SharedBytes());
    uint32_t* keys = reinterpret_cast<uint32_t*>(simt::SharedBytes() + offsetof(Layout, keys));
    const int64_t list = simt::BlockX();
    const int row = static_cast<int>(list / p.kv_heads);
    const int seq = p.row_seq == nullptr ? 0 : p.row_seq[row];
    const int length = seq < 0 ? 0 : p.row_len[row];
    const ForcedPages cut = Cut(p.budget, length, p.page_size);
    const float* scores = p.scores + list * p.score_stride;
    const int32_t* ids = p.page_ids == nullptr || seq < 0 ? nullptr : p.page_ids + p.page_begin[seq];
    const int n = cut.recent - cut.sinks;
    const auto read = [&](int i) {
      return ids != nullptr && ids[cut.sinks + i] < 0 ? 0u : OrderedKey(scores[cut.sinks + i]);
    };
    const bool cached = n <= params.c.cached_keys;
    const auto key = [&](int i) { return cached ? keys[i] : read(i); };
    KeyThreshold t;
    if (cut.free > 0 && cut.free < n) {
      if (cached) {
        for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) keys[i] = read(i);
      }
      t = FindThreshold(key, n, cut.free, s.select);
    }
    OrderedCompaction compaction(t.ties);
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    for (int base = 0; base < cut.pages; base += simt::BlockThreads()) {
      const int page = base + simt::ThreadIndex();
      bool sure = false, tie = false;
      if (page < cut.pages) {
        if (page < cut.sinks || page >= cut.recent) {
          sure = ids == nullptr || ids[page] >= 0;
        } else if (cut.free >= n) {
          sure = read(page - cut.sinks) != 0;
        } else if (cut.free > 0) {
          const uint32_t x = key(page - cut.sinks), prefix = x & t.mask;
          sure = prefix > t.prefix;
          tie = prefix == t.prefix;
          // A NaN at the threshold takes a tie's place and is left out: fewer than k come back, as on the CPU.
          tie = tie && x != 0;
        }
      }
      const int place = compaction.Place(sure, tie, s.compaction);
      if (place >= 0) out[place] = page;
    }
    if (simt::ThreadIndex() == 0) p.selection.counts[list] = compaction.count();
  }
};

template <typename T, typename Q, int kHeads>
Status LaunchScores(Stream stream, const QuestParams& p) {
  using Kernel = QuestScoresKernel<T, Q, kHeads>;
  const PageFormat& f = p.table.format;
  const int heads = p.q_heads / f.kv_heads;
  const QuestScoresConfig config = QuestScoresConfig::For(p.max_groups, heads, f.k_dim);
  simt::LaunchShape shape;
  shape.grid_x = f.kv_heads;
  shape.grid_y = config.parts;
  shape.grid_z = p.rows;
  shape.threads = 32 * config.warps;
  shape.shared_bytes = config.shared_bytes;
  return simt::Launch<Kernel>(shape, stream, {p, config});
}

// Heads that a warp's registers hold at once.
constexpr int HeadsAtOnce(int heads) { return heads == 1 ? 1 : heads == 2 ? 2 : heads % 8 == 0 ? 8 : 4; }

template <typename T, typename Q>
Status LaunchHeads(Stream stream, const QuestParams& p) {
  switch (HeadsAtOnce(p.q_heads / p.table.format.kv_heads)) {
    case 1: return LaunchScores<T, Q, 1>(stream, p);
    case 2: return LaunchScores<T, Q, 2>(stream, p);
    case 4: return LaunchScores<T, Q, 4>(stream, p);
    default: return LaunchScores<T, Q, 8>(stream, p);
  }
}

}  // namespace

QuestScoresConfig QuestScoresConfig::For(int max_groups, int group_heads, int k_dim) {
  QuestScoresConfig c;
  c.warps = std::clamp(max_groups, 1, kMaxWarps);
  // Long lists: more work a block, so that reading q costs less than the groups.
  c.groups_per_warp = max_groups >= 64 ? 4 : 1;
  const int per_block = c.warps * c.groups_per_warp;
  c.parts = (max_groups + per_block - 1) / per_block;
  const int at_once = HeadsAtOnce(group_heads);
  c.shared_bytes = sizeof(float) * static_cast<size_t>((group_heads + at_once - 1) / at_once * at_once) * static_cast<size_t>(k_dim);
  return c;
}

std::string QuestScoresConfig::ToString() const {
  return std::to_string(warps) + " warps of " + std::to_string(groups_per_warp) + " groups, " + std::to_string(parts) +
         " parts, " + std::to_string(shared_bytes) + " B shared";
}

TopPagesConfig TopPagesConfig::For(int longest) {
  TopPagesConfig c;
  c.threads = longest <= 1024 ? 256 : longest <= 4096 ? 512 : 1024;
  c.cached_keys = std::min(longest, 8192);  // 32 KB: below what needs asking for
  c.shared_bytes = sizeof(TopPagesKernel::Layout) + sizeof(uint32_t) * static_cast<size_t>(c.cached_keys);
  return c;
}

std::string TopPagesConfig::ToString() const {
  return std::to_string(threads) + " threads, " + std::to_string(cached_keys) + " keys cached, " + std::to_string(shared_bytes) +
         " B shared";
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

Status TopPages(Stream stream, const TopPagesParams& p, int longest) {
  const TopPagesConfig config = TopPagesConfig::For(longest);
  simt::LaunchShape shape;
  shape.grid_x = int64_t{p.rows} * p.kv_heads;
  shape.threads = config.threads;
  shape.shared_bytes = config.shared_bytes;
  return simt::Launch<TopPagesKernel>(shape, stream, {p, config});
}

Status QuestSelect(Stream stream, DType q_dtype, const QuestParams& p, SelectionView selection) {
  RETURN_IF_ERROR(QuestScores(stream, q_dtype, p));
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
  t.selection = selection;
  return TopPages(stream, t, p.max_groups * kPagesPerGroup);
}

}  // namespace quire::cuda
