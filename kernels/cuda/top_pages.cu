// A block a list: radix search for the k-th key, then one ordered compaction over all entries, in which forced ones are sure.
#include "kernels/cuda/top_pages.h"

#include <algorithm>

#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"
#include "kernels/page_table.h"

namespace quire::cuda {
namespace {

struct TopListLayout {
  RadixSelectShared select;
  CompactionShared compaction;
  uint32_t keys[1];  // [cached_keys]
};

// Entries [0, before) and, behind n candidates, `after` more are listed where forced(entry) holds; of the candidates the k of
// the largest read(candidate), none whose key is 0. put(place, entry): entry e stands at that place of the list; candidate i
// is entry before + i. All threads of a block; the list's length comes back to all.
template <typename Read, typename Forced, typename Put>
QUIRE_DEVICE int ListTop(int before, int n, int after, int k, int cached_keys, const Read& read, const Forced& forced,
                         const Put& put) {
  constexpr int kRounds = 4;  // entries of a thread at once
  auto& s = *reinterpret_cast<TopListLayout*>(simt::SharedBytes());
  uint32_t* keys = reinterpret_cast<uint32_t*>(simt::SharedBytes() + offsetof(TopListLayout, keys));
  const bool cached = n <= cached_keys;
  const auto key = [&](int i) { return cached ? keys[i] : read(i); };
  KeyThreshold t;
  if (k > 0 && k < n) {
    if (cached) {
#pragma unroll 4
      for (int i = simt::ThreadIndex(); i < n; i += simt::BlockThreads()) keys[i] = read(i);
    }
    t = FindThreshold(key, n, k, s.select);
  }
  OrderedCompaction compaction(t.ties);
  // A warp's entries of a round lie side by side: kRounds times 32.
  const int all = before + n + after;
  for (int base = 0; base < all; base += simt::BlockThreads() * kRounds) {
    const int first = base + simt::Warp() * simt::kWarpSize * kRounds + simt::Lane();
    bool sure[kRounds], tie[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int entry = first + i * simt::kWarpSize;
      sure[i] = tie[i] = false;
      if (entry >= all) continue;
      if (entry < before || entry >= before + n) {
        sure[i] = forced(entry);
      } else if (k >= n) {
        sure[i] = read(entry - before) != 0;
      } else if (k > 0) {
        const uint32_t x = key(entry - before);
        sure[i] = t.Sure(x);
        // A NaN at the threshold takes a tie's place and is left out: fewer than k come back, as on the CPU.
        tie[i] = t.Tie(x) && x != 0;
      }
    }
    int places[kRounds];
    compaction.Places(sure, tie, s.compaction, places);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (places[i] >= 0) put(places[i], first + i * simt::kWarpSize);
    }
  }
  return compaction.count();
}

// kKept: candidates are the pages of kept groups.
template <bool kKept>
struct TopPagesKernel {
  struct Params {
    TopPagesParams p;
    TopPagesConfig c;
  };
  static constexpr const char* kName = "top_pages";
  static constexpr int kMaxThreads = 1024;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopPagesParams& p = params.p;
    const int row = simt::BlockY();
    const int64_t list = int64_t{row} * p.kv_heads + simt::BlockX();
    const int seq = p.row_seq == nullptr ? 0 : p.row_seq[row];
    const int length = seq < 0 ? 0 : p.row_len[row];
    const ForcedPages cut = ForcedPages::Create(p.budget, length, p.page_size);
    const float* scores = p.scores + list * p.score_stride;
    const int32_t* ids = p.page_ids == nullptr || seq < 0 ? nullptr : p.page_ids + p.page_begin[seq];
    const int32_t* kept = kKept ? p.kept_groups + list * p.kept_stride : nullptr;
    int n = cut.recent - cut.sinks;
    if constexpr (kKept) n = seq < 0 ? 0 : p.kept_counts[list] * kPagesPerGroup;
    const auto page_of = [&](int i) {
      return kKept ? kept[i / kPagesPerGroup] * kPagesPerGroup + i % kPagesPerGroup : cut.sinks + i;
    };
    // Both loads at once; the score of a page that isn't there may be anything.
    const auto read = [&](int i) {
      const int page = page_of(i);
      const float score = scores[kKept ? i : page];
      const bool free = !kKept || (page >= cut.sinks && page < cut.recent);
      return !free || (ids != nullptr && ids[page] < 0) ? 0u : OrderedKey(score);
    };
    const auto page_of_entry = [&](int entry) {
      const bool candidate = kKept && entry >= cut.sinks && entry < cut.sinks + n;
      const int behind = kKept && entry >= cut.sinks ? cut.recent - cut.sinks - n : 0;
      return candidate ? page_of(entry - cut.sinks) : entry + behind;
    };
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    const int count = ListTop(
        cut.sinks, n, cut.pages - cut.recent, cut.free, params.c.cached_keys, read,
        [&](int entry) { return ids == nullptr || ids[page_of_entry(entry)] >= 0; },
        [&](int place, int entry) { out[place] = page_of_entry(entry); });
    if (simt::ThreadIndex() == 0) p.selection.counts[list] = count;
  }
};

struct TopGroupsKernel {
  struct Params {
    TopGroupsParams p;
    TopPagesConfig c;
  };
  static constexpr const char* kName = "top_groups";
  static constexpr int kMaxThreads = 1024;
  static constexpr int kMinBlocks = 1;

  QUIRE_DEVICE static void Run(const Params& params) {
    const TopGroupsParams& p = params.p;
    const int row = simt::BlockY();
    const int64_t list = int64_t{row} * p.kv_heads + simt::BlockX();
    GroupCut cut;
    if (p.row_seq[row] >= 0) {
      cut = GroupCut::Create(ForcedPages::Create(p.budget, p.row_len[row], p.page_size), p.keep_billionths);
    }
    const float* scores = p.scores + list * p.max_groups;
    const bool all = cut.kept == cut.groups;
    int32_t* out = p.kept_groups + list * p.kept_stride;
    const int count = ListTop(
        0, cut.groups, 0, cut.kept, params.c.cached_keys, [&](int i) { return all ? 1u : OrderedKey(scores[i]); },
        [](int) { return true; }, [&](int place, int entry) { out[place] = cut.first + entry; });
    if (simt::ThreadIndex() == 0) p.kept_counts[list] = count;
  }
};

struct TopShareKernel {
  using Params = TopShareParams;
  static constexpr const char* kName = "top_share";
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 1;
  struct Layout {
    RadixSelectSharedOf<FixedSum> select;
    CompactionShared compaction;
    FixedSum total[kMaxThreads / simt::kWarpSize], held[kMaxThreads / simt::kWarpSize];
  };

  // Weights in steps of 2^−48, whose sums have one order as good as another. A list's is at most 2^15.
  QUIRE_DEVICE static FixedSum FixedOf(float weight) {
    return weight > 0 ? static_cast<FixedSum>(static_cast<double>(weight) * 281474976710656.0) : 0;
  }
  QUIRE_DEVICE static FixedSum SumOfWarp(FixedSum x) {
    for (int distance = simt::kWarpSize / 2; distance > 0; distance /= 2) x += simt::ShuffleXor(simt::kFullMask, x, distance);
    return x;
  }

  QUIRE_DEVICE static void Run(const Params& p) {
    auto& s = simt::Shared<Layout>();
    const int row = simt::BlockY();
    const int64_t list = int64_t{row} * p.kv_heads + simt::BlockX();
    const bool there = p.row_seq[row] >= 0;
    const ForcedPages cut = ForcedPages::Create(p.budget, there ? p.row_len[row] : 0, p.page_size);
    const int n = there ? p.counts[list] : 0;
    const float* weights = p.weights + list * p.list_stride;
    const int32_t* pages = p.lists + list * p.list_stride;
    const auto forced = [&](int i) { return pages[i] < cut.sinks || pages[i] >= cut.recent; };
    FixedSum total = 0, held = 0;
    for (int i = simt::ThreadIndex(); i < n; i += kMaxThreads) {
      const FixedSum x = FixedOf(weights[i]);
      total += x;
      held += forced(i) ? x : 0;
    }
    total = SumOfWarp(total);
    held = SumOfWarp(held);
    if (simt::Lane() == 0) {
      s.total[simt::Warp()] = total;
      s.held[simt::Warp()] = held;
    }
    simt::SyncThreads();
    total = held = 0;
    for (int w = 0; w < kMaxThreads / simt::kWarpSize; ++w) {
      total += s.total[w];
      held += s.held[w];
    }
    const double part = p.share * static_cast<double>(total);
    FixedSum wanted = static_cast<FixedSum>(part);
    wanted += static_cast<double>(wanted) < part ? 1 : 0;
    if (wanted > total) wanted = total;
    // Keys of pages that may be taken.
    const auto key = [&](int i) { return forced(i) ? 0u : OrderedKey(weights[i]); };
    WeightThreshold<FixedSum> t;
    int ties = 0;
    if (held < wanted) {
      t = FindWeightThreshold<FixedSum>(key, [&](int i) { return FixedOf(weights[i]); }, n, wanted - held, s.select);
      // All of them weigh the same, or all are needed.
      const FixedSum one = FixedOf(KeyToFloat(t.low));
      ties = t.low < t.last || one == 0 ? n : static_cast<int>((t.left + one - 1) / one);
    }
    OrderedCompaction compaction(ties);
    int32_t* out = p.selection.pages + list * p.selection.max_pages;
    for (int base = 0; base < n; base += kMaxThreads) {
      const int i = base + simt::ThreadIndex();
      const bool is_forced = i < n && forced(i);
      const uint32_t x = i < n && held < wanted && !is_forced ? key(i) : 0;
      const int place = compaction.Place(is_forced || x > t.last, x != 0 && x >= t.low && x <= t.last, s.compaction);
      if (place >= 0) out[place] = pages[i];
    }
    if (simt::ThreadIndex() == 0) p.selection.counts[list] = compaction.count();
  }
};

template <typename Kernel>
Status LaunchTop(Stream stream, int kv_heads, int rows, const TopPagesConfig& config, const typename Kernel::Params& params) {
  simt::LaunchShape shape;
  shape.grid_x = kv_heads;
  shape.grid_y = rows;
  shape.threads = config.threads;
  shape.shared_bytes = config.shared_bytes;
  return simt::Launch<Kernel>(shape, stream, params);
}

}  // namespace

TopPagesConfig TopPagesConfig::For(int longest) {
  TopPagesConfig c;
  c.threads = longest <= 1024 ? 256 : longest <= 4096 ? 512 : 1024;
  c.cached_keys = std::min(longest, 8192);  // 32 KB: below what needs asking for
  c.shared_bytes = sizeof(TopListLayout) + sizeof(uint32_t) * static_cast<size_t>(c.cached_keys);
  return c;
}

std::string TopPagesConfig::ToString() const {
  return std::to_string(threads) + " threads, " + std::to_string(cached_keys) + " keys cached, " + std::to_string(shared_bytes) +
         " B shared";
}

Status TopPages(Stream stream, const TopPagesParams& p, int longest) {
  const TopPagesConfig config = TopPagesConfig::For(longest);
  if (p.kept_groups == nullptr) return LaunchTop<TopPagesKernel<false>>(stream, p.kv_heads, p.rows, config, {p, config});
  return LaunchTop<TopPagesKernel<true>>(stream, p.kv_heads, p.rows, config, {p, config});
}

Status TopShare(Stream stream, const TopShareParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.kv_heads;
  shape.grid_y = p.rows;
  shape.threads = TopShareKernel::kMaxThreads;
  shape.shared_bytes = sizeof(TopShareKernel::Layout);
  return simt::Launch<TopShareKernel>(shape, stream, p);
}

Status TopGroups(Stream stream, const TopGroupsParams& p) {
  const TopPagesConfig config = TopPagesConfig::For(p.max_groups);
  return LaunchTop<TopGroupsKernel>(stream, p.kv_heads, p.rows, config, {p, config});
}

}  // namespace quire::cuda
