// Scores for f32 caches, large query groups and odd widths; the usual kernel is in quest_scores_mma.cuh. A warp takes one
// metadata group of one (row, KV head) at a time: 8 KB in one piece at d 128. Each lane loads 16 bytes, the pages of half a
// group (a quarter in f32) for one channel, so that every load of the warp is 512 bytes in a row, eight of them under way while
// eight are worked on; it adds what its channels give to its pages for every head of the chunk, and the lanes' sums meet by a
// butterfly that halves the pages it carries at each step. The bound is Σ q⁺·max + q⁻·min with q⁺ = max(q, 0), q⁻ = min(q, 0),
// as on the CPU.
//
// Top pages. A block a list: radix search for the k-th key, then one ordered compaction over all pages in which forced ones
// are sure.
#include "kernels/cuda/quest.h"

#include <algorithm>

#include "kernels/cuda/quest_scores_mma.cuh"
#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kMaxWarps = 4;

// The cut of a row; the CPU's own arithmetic (kernels/selection/budget.h), whose functions are constexpr.
QUIRE_DEVICE ForcedPages Cut(const PageBudget& budget, int length, int page_size) {
  return ForcedPages::Create(budget, length, page_size);
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
  static constexpr int kMinBlocks = kHeads >= 4 ? 2 : 3;
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

  // Channels of a batch, whose loads are under way together: [i] is channel (first + i) · kChannels + Lane() / kLanesPerChannel.
  static constexpr int kBatch = 4;
  struct Words {
    simt::U32x4 low[kBatch], high[kBatch];
  };
  // group: of one KV head; null: nothing is loaded.
  QUIRE_DEVICE static void LoadBatch(const T* group, int first, int k_dim, Words* words) {
    if (group == nullptr) return;
    const int channel = simt::Lane() / kLanesPerChannel, at = simt::Lane() % kLanesPerChannel * kPages;
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
      const int c = (first + b) * kChannels + simt::Lane() / kLanesPerChannel;
      if (c >= k_dim) continue;
      float low[kPages], high[kPages];
      Widen(words.low[b], low);
      Widen(words.high[b], high);
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
    const int chunks = (heads + kHeads - 1) / kHeads;
    const int rounds = (f.k_dim + kChannels - 1) / kChannels;  // of loads for a group

    // What this lane's value is: head within the chunk and page within the group.
    constexpr int kSplits = kValues > kChannels ? kChannels : kValues;  // lanes that end with different values
    const int part = simt::Lane() / (simt::kWarpSize / kSplits);        // its bits from the top
    const int number = part * kKept;
    const int my_head = number / kPages, my_page = number % kPages + simt::Lane() % kLanesPerChannel * kPages;
    const bool is_max = p.reduce == GroupReduce::kMax;
    const int32_t* groups = p.table.group_ids + p.table.group_begin[seq];
    const int end = begin + config.warps * config.groups_per_warp < last ? begin + config.warps * config.groups_per_warp : last;
    const auto group_at = [&](int g) -> const T* {
      const int id = g < end ? groups[g] : -1;
      return id < 0 ? nullptr : static_cast<const T*>(p.pages.meta) + id * f.meta_group_stride + h * f.meta_head_stride;
    };
    const T* group = group_at(begin + simt::Warp());
    const T* ahead = group_at(begin + simt::Warp() + config.warps);
    Words next = {};
    LoadBatch(group, 0, f.k_dim, &next);
    float* q = reinterpret_cast<float*>(simt::SharedBytes());  // [chunks][k_dim][kHeads]
    const Q* from = static_cast<const Q*>(p.q) + row * p.q_stride + int64_t{h} * heads * f.k_dim;
    for (int i = simt::ThreadIndex(); i < chunks * kHeads * f.k_dim; i += simt::BlockThreads()) {
      const int head = i / f.k_dim, c = i % f.k_dim;
      q[(head / kHeads * f.k_dim + c) * kHeads + head % kHeads] = head < heads ? simt::ToFloat(from[i]) : 0.0f;
    }
    simt::SyncThreads();
    for (int g = begin + simt::Warp(); g < end; g += config.warps) {
      const T* after = group_at(g + 2 * config.warps);
      float* out = p.scores + (int64_t{row} * f.kv_heads + h) * p.max_groups * kPagesPerGroup + int64_t{g} * kPagesPerGroup;
      if (group == nullptr) {
        if (simt::Lane() < kPagesPerGroup) out[simt::Lane()] = simt::BitsFloat(0x7fc00000u);
        group = ahead;
        ahead = after;
        LoadBatch(group, 0, f.k_dim, &next);
        continue;
      }
      float total[kKept] = {};
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
      group = ahead;
      ahead = after;
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
  static constexpr int kRounds = 4;  // pages of a thread at once
  struct Layout {
    RadixSelectShared select;
    CompactionShared compaction;
    uint32_t keys[1];  // [cached_keys]
  };

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopPagesParams& p = params.p;
    auto& s = *reinterpret_cast<Layout*>(simt::SharedBytes());
    uint32_t* keys = reinterpret_cast<uint32_t*>(simt::SharedBytes() + offsetof(Layout, keys));
    const int row = simt::BlockY();
    const int64_t list = int64_t{row} * p.kv_heads + simt::BlockX();
    const int seq = p.row_seq == nullptr ? 0 : p.row_seq[row];
    const int length = seq < 0 ? 0 : p.row_len[row];
    const ForcedPages cut = Cut(p.budget, length, p.page_size);
    const float* scores = p.scores + list * p.score_stride;
    const int32_t* ids = p.page_ids == nullptr || seq < 0 ? nullptr : p.page_ids + p.page_begin[seq];
    const int n = cut.recent - cut.sinks;
    // Both loads at once; the score of a page that isn't there may be anything.
    const auto read = [&](int i) {
      const float score = scores[cut.sinks + i];
      return ids != nullptr && ids[cut.sinks + i] < 0 ? 0u : OrderedKey(score);
    };
    const bool cached = n <= params.c.cached_keys;
    const auto key = [&](int i) { return cached ? keys[i] : read(i); };
    KeyThreshold t;
    if (cut.free > 0 && cut.free < n) {
      if (cached) {
#pragma unroll 4
        for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) keys[i] = read(i);
      }
      t = FindThreshold(key, n, cut.free, s.select);
    }
    OrderedCompaction compaction(t.ties);
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    // A warp's pages of a round lie side by side: kRounds times 32.
    for (int base = 0; base < cut.pages; base += simt::BlockThreads() * kRounds) {
      const int first = base + simt::Warp() * simt::kWarpSize * kRounds + simt::Lane();
      bool sure[kRounds], tie[kRounds];
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int page = first + i * simt::kWarpSize;
        sure[i] = tie[i] = false;
        if (page >= cut.pages) continue;
        if (page < cut.sinks || page >= cut.recent) {
          sure[i] = ids == nullptr || ids[page] >= 0;
        } else if (cut.free >= n) {
          sure[i] = read(page - cut.sinks) != 0;
        } else if (cut.free > 0) {
          const uint32_t x = key(page - cut.sinks);
          sure[i] = t.Sure(x);
          // A NaN at the threshold takes a tie's place and is left out: fewer than k come back, as on the CPU.
          tie[i] = t.Tie(x) && x != 0;
        }
      }
      int places[kRounds];
      compaction.Places(sure, tie, s.compaction, places);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        if (places[i] >= 0) out[places[i]] = first + i * simt::kWarpSize;
      }
    }
    if (simt::ThreadIndex() == 0) p.selection.counts[list] = compaction.count();
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
  switch (c.heads_at_once) {
    case 1: return LaunchScores<QuestScoresKernel<T, Q, 1>>(stream, p, c);
    case 2: return LaunchScores<QuestScoresKernel<T, Q, 2>>(stream, p, c);
    case 4: return LaunchScores<QuestScoresKernel<T, Q, 4>>(stream, p, c);
    default: return LaunchScores<QuestScoresKernel<T, Q, 8>>(stream, p, c);
  }
}

}  // namespace

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
    c.heads_at_once = heads == 1 ? 1 : heads == 2 ? 2 : heads % 8 == 0 ? 8 : 4;
    c.shared_bytes = sizeof(float) * static_cast<size_t>((heads + c.heads_at_once - 1) / c.heads_at_once * c.heads_at_once) *
                     static_cast<size_t>(f.k_dim);
  }
  c.warps = std::clamp(max_groups, 1, kMaxWarps);
  // As many blocks as an H200 runs at once, where there is work for more: a block begins with reads that wait for one another.
  constexpr int kProcessors = 132;
  const int64_t lists = std::max<int64_t>(1, int64_t{rows} * f.kv_heads);
  const int64_t most_parts = std::max<int64_t>(1, (max_groups + c.warps - 1) / c.warps);
  const int64_t parts = std::clamp<int64_t>(blocks_of_a_processor * kProcessors / lists, 1, most_parts);
  c.groups_per_warp = static_cast<int>((max_groups + parts * c.warps - 1) / (parts * c.warps));
  c.groups_per_warp = std::max(c.groups_per_warp, 1);
  const int per_block = c.warps * c.groups_per_warp;
  c.parts = std::max(1, (max_groups + per_block - 1) / per_block);
  return c;
}

std::string QuestScoresConfig::ToString() const {
  return std::string(tensor_cores ? "tensor cores, " : "") + std::to_string(heads_at_once) + " heads, " +
         std::to_string(warps) + " warps of " + std::to_string(groups_per_warp) + " groups, " + std::to_string(parts) +
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
  shape.grid_x = p.kv_heads;
  shape.grid_y = p.rows;
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
