// Prefill attention for one Highway target, a template on the storage type and the Mod.
//
// A task is one tile of up to 96 (row, head) pairs of one chunk and KV head. It walks the keys in blocks of 64 that
// start at absolute positions: K and V of the block are widened once into f32 panels, then S = Q·Kᵀ, softmax with a running
// maximum (Dao et al., arXiv 2205.14135), O = O·correction + P·V, all on register blocks of 6 rows by 2 or 4 vectors.
// A row takes part in a block exactly when it sees a key there, and each of its sums runs in the order of channels
// and of keys, so its bits depend on its own position alone: not on the chunk, the tile or the rows beside it. (Keys of
// later positions in a row's last block weigh 0; only an infinite or NaN V there would show.)
//
// A Mod's mask is asked for whole blocks first: those masked for all of the tile's rows are skipped, open ones run
// without the test. Of the others a word per row says which of the 64 keys it sees; keys of pages that no row sees are
// not read.
//
// FLOPs: 2 · pairs · (k_dim + v_dim) for each visible (row, head, key); blocks on the diagonal cost up to 64 keys a row.
#if defined(QUIRE_KERNELS_CPU_ATTENTION_PREFILL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_ATTENTION_PREFILL_INL_H_
#undef QUIRE_KERNELS_CPU_ATTENTION_PREFILL_INL_H_
#else
#define QUIRE_KERNELS_CPU_ATTENTION_PREFILL_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attention_prefill_plan.h"
#include "kernels/cpu/mods-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace prefill {

using FullF = hn::ScalableTag<float>;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr int kLanes = static_cast<int>(hn::MaxLanes(FullF()));
// 6 x 2 sums, 2 operands and a broadcast fill AVX2's 16 registers; targets with 32 take twice the width.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSE2
constexpr int kVectors = 2;
#else
constexpr int kVectors = 4;
#endif
constexpr int kPanel = kVectors * kLanes;  // columns of a panel
constexpr int kRows = 6;
static_assert(kPrefillKeyBlock % kPanel == 0 && kPrefillPanelMost % kPanel == 0);

// c [rows][kPanel] (+)= a [rows][k] · b [k][kPanel], row strides lda and ldc.
template <int kBlockRows>
HWY_INLINE void Product(const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b, int k,
                        float* HWY_RESTRICT c, int64_t ldc, bool accumulate) {
  const FullF d;
  VecF<FullF> sum[kBlockRows][kVectors];
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = accumulate ? hn::LoadU(d, c + r * ldc + v * kLanes) : hn::Zero(d);
  }
  for (int i = 0; i < k; ++i) {
    VecF<FullF> bi[kVectors];
    for (int v = 0; v < kVectors; ++v) bi[v] = hn::LoadU(d, b + int64_t{i} * kPanel + v * kLanes);
    for (int r = 0; r < kBlockRows; ++r) {
      const auto ai = hn::Set(d, a[r * lda + i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(ai, bi[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, c + r * ldc + v * kLanes);
  }
}

inline HWY_NOINLINE void ProductRows(int rows, const float* a, int64_t lda, const float* b, int k, float* c, int64_t ldc,
                                     bool accumulate) {
  switch (rows) {
    case 6: return Product<6>(a, lda, b, k, c, ldc, accumulate);
    case 5: return Product<5>(a, lda, b, k, c, ldc, accumulate);
    case 4: return Product<4>(a, lda, b, k, c, ldc, accumulate);
    case 3: return Product<3>(a, lda, b, k, c, ldc, accumulate);
    case 2: return Product<2>(a, lda, b, k, c, ldc, accumulate);
    default: return Product<1>(a, lda, b, k, c, ldc, accumulate);
  }
}

// Where key `key` of the block, channel c lies in the K panels [key panel][k_dim][kPanel].
HWY_INLINE int64_t KeyAt(int key, int c, int k_dim) {
  return (int64_t{key / kPanel} * k_dim + c) * kPanel + key % kPanel;
}
// And in the V panels [channel panel][64 keys][kPanel].
HWY_INLINE int64_t ValueAt(int key, int c) {
  return (int64_t{c / kPanel} * kPrefillKeyBlock + key) * kPanel + c % kPanel;
}

template <typename T, class D>
HWY_INLINE void UnpackKeys(D d, const T* k, int page_size, int k_dim, int slot, int key, float* panels) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  for (int c = 0; c < k_dim; c += kWord) {
    const T* from = k + (int64_t{c / kWord} * page_size + slot) * kWord;
    VecF<D> e[2];
    if constexpr (kWord == 1) {
      LoadWords(d, from, e[0]);
    } else {
      LoadWords(d, from, e[0], e[1]);
    }
    for (int w = 0; w < kWord; ++w) hn::StoreU(e[w], d, panels + KeyAt(key, c + w, k_dim));
  }
}

template <typename T, class D>
HWY_INLINE void UnpackValues(D d, const T* words, int c, const int* keys, float* panels) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  VecF<D> e[2];
  if constexpr (kWord == 1) {
    LoadWords(d, words + int64_t{c} * kWord, e[0]);
  } else {
    LoadWords(d, words + int64_t{c} * kWord, e[0], e[1]);
  }
  for (int w = 0; w < kWord; ++w) {
    if (keys[w] >= 0) hn::StoreU(e[w], d, panels + ValueAt(keys[w], c));
  }
}

constexpr uint64_t kAllKeys = ~uint64_t{0};
static_assert(kPrefillKeyBlock == 64);
// Bits [first, end) of a block's keys.
HWY_INLINE uint64_t KeyBits(int first, int end) {
  return first >= end ? 0 : kAllKeys >> (64 - (end - first)) << first;
}

// Widens positions [block, block + keys) of one KV head into the panels. Freed pages, and those of which no key is in
// `seen`, become zeroes.
template <typename T>
void UnpackBlock(const AttentionPrefillParams& p, const int32_t* ids, int kv_head, int64_t block, int keys,
                 uint64_t seen, float* HWY_RESTRICT k_panels, float* HWY_RESTRICT v_panels) {
  const FullF d;
  const OneLane d1;
  const PageFormat& f = p.table.format;
  constexpr int kWord = 4 / static_cast<int>(sizeof(T));
  for (int key = 0; key < keys;) {
    const int64_t page = (block + key) / f.page_size;
    const int slot = static_cast<int>((block + key) % f.page_size);
    const int slots = std::min(f.page_size - slot, keys - key);
    if (ids[page] < 0 || (seen & KeyBits(key, key + slots)) == 0) {
      for (int s = 0; s < slots; ++s) {
        for (int c = 0; c < f.k_dim; ++c) k_panels[KeyAt(key + s, c, f.k_dim)] = 0;
        for (int c = 0; c < f.v_dim; ++c) v_panels[ValueAt(key + s, c)] = 0;
      }
      key += slots;
      continue;
    }
    const T* k = static_cast<const T*>(p.pages.k) + ids[page] * f.k_page_stride + kv_head * f.k_head_stride;
    const T* v = static_cast<const T*>(p.pages.v) + ids[page] * f.v_page_stride + kv_head * f.v_head_stride;
    for (int s = 0; s < slots;) {
      if ((key + s) % kLanes == 0 && s + kLanes <= slots) {
        UnpackKeys(d, k, f.page_size, f.k_dim, slot + s, key + s, k_panels);
        s += kLanes;
      } else {
        UnpackKeys(d1, k, f.page_size, f.k_dim, slot + s, key + s, k_panels);
        ++s;
      }
    }
    for (int word = slot / kWord; word * kWord < slot + slots; ++word) {
      int at[kWord];  // keys of the word's tokens; −1 outside the block
      for (int w = 0; w < kWord; ++w) {
        const int s = word * kWord + w;
        at[w] = s >= slot && s < slot + slots ? key + s - slot : -1;
      }
      const T* words = v + int64_t{word} * f.v_dim * kWord;
      int c = 0;
      for (; c + kLanes <= f.v_dim; c += kLanes) UnpackValues(d, words, c, at, v_panels);
      for (; c < f.v_dim; ++c) UnpackValues(d1, words, c, at, v_panels);
    }
    key += slots;
  }
}

// One row's block of raw scores s [64] becomes weights; updates its running max and sum. Keys [first, end) are visible,
// weights are written for [0, padded). Returns what the row's output must be multiplied by.
HWY_INLINE float SoftmaxBlock(float* HWY_RESTRICT s, float scale, int first, int end, int padded, float& max, float& sum) {
  const FullF d;
  for (int i = 0; i < first; ++i) s[i] = kMinusInf;
  for (int i = end; i < padded; ++i) s[i] = kMinusInf;
  auto block_max = hn::Set(d, kMinusInf);
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < padded; i += kLanes) {
    const auto x = hn::Mul(hn::LoadU(d, s + i), factor);
    hn::StoreU(x, d, s + i);
    block_max = hn::Max(block_max, x);
  }
  const float new_max = std::max(max, hn::GetLane(hn::MaxOfLanes(d, block_max)));
  if (new_max == kMinusInf) {  // a Mod masked everything, or every score is −inf
    for (int i = 0; i < padded; ++i) s[i] = 0;
    return 1.0f;
  }
  auto block_sum = hn::Zero(d);
  const auto shift = hn::Set(d, new_max);
  for (int i = 0; i < padded; i += kLanes) {
    const auto w = ExpNonPositive(d, hn::Sub(hn::LoadU(d, s + i), shift));
    hn::StoreU(w, d, s + i);
    block_sum = hn::Add(block_sum, w);
  }
  const float correction = max == new_max ? 1.0f : ExpNonPositive(max - new_max);
  sum = sum * correction + hn::GetLane(hn::SumOfLanes(d, block_sum));
  max = new_max;
  return correction;
}

// Which keys of the block each row sees by a mixed mask: bits [r0, r1), cut to [first(r), end(r)). Returns all of them.
template <class Mod, class First, class End>
uint64_t MaskRows(const Mod& mod, const PrefillTile& tile, int seq, int group, int start_pos, int64_t block, int r0,
                  int r1, const First& first, const End& end, uint64_t* bits) {
  uint64_t seen = 0;
  for (int r = r0; r < r1; ++r) {
    const int64_t q = int64_t{start_pos} + (tile.first + r) / group;
    const int head = tile.kv_head * group + (tile.first + r) % group;
    if (!Mod::kPerHead && r > r0 && (tile.first + r) % group != 0) {  // another head of the same token
      bits[r] = bits[r - 1];
      continue;
    }
    bits[r] = 0;
    for (int i = first(r); i < end(r); ++i) bits[r] |= uint64_t{mod.Mask(seq, head, q, block + i)} << i;
    seen |= bits[r];
  }
  return seen;
}

template <typename T, class Mod>
void Tile(const AttentionPrefillParams& p, const PrefillTile& tile, float* scratch, const Mod& mod) {
  const FullF d;
  const PageFormat& f = p.table.format;
  const PrefillChunk& chunk = p.chunks[tile.chunk];
  const PrefillScratch w = PrefillScratch::Create(f, scratch);
  const int32_t* ids = p.table.page_ids + p.table.page_begin[chunk.seq];
  const int group = p.q_heads / f.kv_heads;
  const int count = tile.count;
  const auto position = [&](int i) HWY_ATTR { return int64_t{chunk.start_pos} + (tile.first + i) / group; };
  const auto first_visible = [&](int i) HWY_ATTR { return mod.FirstKey(position(i)); };
  for (int i = 0; i < count; ++i) {
    const int64_t row = chunk.first_row + (tile.first + i) / group;
    const int head = tile.kv_head * group + (tile.first + i) % group;
    std::memcpy(w.q + int64_t{i} * f.k_dim, p.q + row * p.q_stride + int64_t{head} * f.k_dim, sizeof(float) * f.k_dim);
    w.max[i] = kMinusInf;
    w.sum[i] = 0;
  }
  std::memset(w.out, 0, sizeof(float) * static_cast<size_t>(count) * w.v_padded);

  // Where the mask is taken at its word, rows see the chunk's later keys too.
  const int64_t chunk_end = int64_t{chunk.start_pos} + chunk.rows;
  const auto end_of = [&](int i) HWY_ATTR { return Mod::kSeesFuture ? chunk_end : position(i) + 1; };
  const int64_t limit = end_of(count - 1);
  for (int64_t block = first_visible(0) / kPrefillKeyBlock * kPrefillKeyBlock; block < limit; block += kPrefillKeyBlock) {
    // The rows that see a key of this block are neighbours: [r0, r1).
    int r0 = 0, r1 = count;
    while (r0 < r1 && end_of(r0) <= block) ++r0;
    while (r1 > r0 && first_visible(r1 - 1) >= block + kPrefillKeyBlock) --r1;
    // With a window, early rows may have left the block behind.
    while (r0 < r1 && first_visible(r0) >= block + kPrefillKeyBlock) ++r0;
    if (r0 == r1) continue;
    const auto keys_of = [&](int i) HWY_ATTR {  // visible end of row i
      return static_cast<int>(std::min<int64_t>(kPrefillKeyBlock, end_of(i) - block));
    };
    const auto first_of = [&](int i) HWY_ATTR {  // and its visible beginning
      return static_cast<int>(std::max<int64_t>(0, first_visible(i) - block));
    };
    const int keys = keys_of(r1 - 1);
    uint64_t seen = KeyBits(first_of(r0), keys);
    bool tested = false;
    uint64_t bits[Mod::kHasMask ? kPrefillTileRows : 1];
    if constexpr (Mod::kHasMask) {
      const MaskState state = mod.State(chunk.seq, tile.kv_head * group, group,
                                        {position(r0), position(r1 - 1) + 1, block, block + keys});
      if (state == MaskState::kMasked) continue;
      tested = state == MaskState::kMixed;
      if (tested) seen = MaskRows(mod, tile, chunk.seq, group, chunk.start_pos, block, r0, r1, first_of, keys_of, bits);
      if (seen == 0) continue;
    }
    UnpackBlock<T>(p, ids, tile.kv_head, block, keys, seen, w.k, w.v);
    for (int panel = 0; panel * kPanel < keys; ++panel) {
      for (int r = r0; r < r1; r += kRows) {
        const int rows = std::min(kRows, r1 - r);
        if (panel * kPanel >= keys_of(r + rows - 1)) continue;
        ProductRows(rows, w.q + int64_t{r} * f.k_dim, f.k_dim, w.k + int64_t{panel} * f.k_dim * kPanel, f.k_dim,
                    w.scores + int64_t{r} * kPrefillKeyBlock + panel * kPanel, kPrefillKeyBlock, false);
      }
    }
    for (int r = r0; r < r1; ++r) {
      float* s = w.scores + int64_t{r} * kPrefillKeyBlock;
      const int first = first_of(r), end = keys_of(r);
      float scale = p.scale;
      if constexpr (!Mod::kIsIdentity) {
        for (int i = first; i < end; ++i) s[i] *= scale;
        scale = 1.0f;
        ApplyScore(mod.score, s + first, end - first, chunk.seq, tile.kv_head * group + (tile.first + r) % group,
                   position(r), block + first);
        for (int i = first; tested && i < end; ++i) s[i] = (bits[r] >> i & 1) != 0 ? s[i] : kMinusInf;
      }
      const float correction = SoftmaxBlock(s, scale, first, end, kPrefillKeyBlock, w.max[r], w.sum[r]);
      if (correction == 1.0f) continue;
      float* out = w.out + int64_t{r} * w.v_padded;
      const auto factor = hn::Set(d, correction);
      for (int c = 0; c < w.v_padded; c += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, out + c), factor), d, out + c);
    }
    for (int panel = 0; panel * kPanel < f.v_dim; ++panel) {
      for (int r = r0; r < r1; r += kRows) {
        const int rows = std::min(kRows, r1 - r);
        ProductRows(rows, w.scores + int64_t{r} * kPrefillKeyBlock, kPrefillKeyBlock,
                    w.v + int64_t{panel} * kPrefillKeyBlock * kPanel, keys_of(r + rows - 1),
                    w.out + int64_t{r} * w.v_padded + panel * kPanel, w.v_padded, true);
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    const int64_t row = chunk.first_row + (tile.first + i) / group;
    const int head = tile.kv_head * group + (tile.first + i) % group;
    float* out = p.out + row * p.out_stride + int64_t{head} * f.v_dim;
    const float share = w.sum[i] == 0.0f ? 0.0f : 1.0f / w.sum[i];
    for (int c = 0; c < f.v_dim; ++c) out[c] = w.out[int64_t{i} * w.v_padded + c] * share;
    if (p.lse != nullptr) {
      p.lse[row * p.q_heads + head] = w.sum[i] == 0.0f ? kMinusInf : w.max[i] + std::log(w.sum[i]);
    }
  }
}

template <class Mod>
void Prefill(const Context& ctx, const AttentionPrefillParams& p, const Mod& mod, void* workspace) {
  const PageFormat& f = p.table.format;
  const size_t scratch_bytes = PrefillScratch::Bytes(f);
  VisitFloatDType(f.dtype, [&](auto t) {
    ctx.pool->ParallelFor(PrefillTile::Count(p), [&](int64_t task, int worker) {
      auto* scratch = reinterpret_cast<float*>(static_cast<char*>(workspace) + worker * scratch_bytes);
      Tile<decltype(t)>(p, PrefillTile::At(p, task), scratch, mod);
    });
  });
}

}  // namespace prefill
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
