// Mass of prompt rows for one Highway target, a template on the storage type and the Mod.
//
// A task is a run of pages of one KV head, about 256 keys: they are widened once into f32 panels, then all rows that
// see them pass by in tiles: S = Q·Kᵀ on the register blocks of prefill attention, e^(s − lse), sums by pages. A row's
// sums run over keys, then heads, in order, whatever rows are beside it, so its bits don't depend on how a prompt was
// cut.
#if defined(QUIRE_KERNELS_CPU_ATTENTION_MASS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_ATTENTION_MASS_INL_H_
#undef QUIRE_KERNELS_CPU_ATTENTION_MASS_INL_H_
#else
#define QUIRE_KERNELS_CPU_ATTENTION_MASS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/attention_mass.h"
#include "kernels/cpu/attention_mass_plan.h"
#include "kernels/cpu/attention_prefill-inl.h"
#include "kernels/cpu/mods-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace mass {

using prefill::FullF;
using prefill::kLanes;
using prefill::kPanel;
using prefill::kRows;

// K at positions [begin, begin + keys) of one KV head into panels; keys of freed pages are left as they are.
template <typename T>
void UnpackKeyRun(const PrefillMassParams& p, const int32_t* ids, int kv_head, int64_t begin, int keys, float* panels) {
  const PageFormat& f = p.table.format;
  for (int key = 0; key < keys;) {
    const int64_t page = (begin + key) / f.page_size;
    const int slot = static_cast<int>((begin + key) % f.page_size);
    const int slots = std::min(f.page_size - slot, keys - key);
    if (ids[page] >= 0) {
      const T* k = static_cast<const T*>(p.pages.k) + ids[page] * f.k_page_stride + kv_head * f.k_head_stride;
      for (int s = 0; s < slots;) {
        if ((key + s) % kLanes == 0 && s + kLanes <= slots) {
          prefill::UnpackKeys(FullF(), k, f.page_size, f.k_dim, slot + s, key + s, panels);
          s += kLanes;
        } else {
          prefill::UnpackKeys(OneLane(), k, f.page_size, f.k_dim, slot + s, key + s, panels);
          ++s;
        }
      }
    }
    key += slots;
  }
}

// scores [64] of keys [first, first + 64) become weights; keys from `end` on weigh nothing.
HWY_INLINE void Weigh(float* HWY_RESTRICT scores, float scale, float lse, int end) {
  const FullF d;
  const auto factor = hn::Set(d, scale);
  const auto shift = hn::Set(d, lse);
  const int padded = (end + kLanes - 1) / kLanes * kLanes;
  for (int i = 0; i < padded; i += kLanes) {
    // Rounding may put a score above the log-sum-exp of all.
    const auto x = hn::Sub(hn::Mul(hn::LoadU(d, scores + i), factor), shift);
    hn::StoreU(ExpNonPositive(d, hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Zero(d), x)), d, scores + i);
  }
}

// One tile of (row, head) pairs, [first, first + count) of the chunk's, over the keys of a run.
template <class Mod>
void Tile(const PrefillMassParams& p, const int32_t* ids, const MassScratch& w, int kv_head, int first, int count,
          int64_t begin, int keys, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  const auto row_of = [&](int i) { return (first + i) / group; };
  const auto head_of = [&](int i) { return kv_head * group + (first + i) % group; };
  const auto position = [&](int i) { return int64_t{p.chunk.start_pos} + row_of(i); };
  int r0 = 0;
  while (r0 < count && position(r0) < begin) ++r0;
  if (r0 == count) return;
  for (int i = r0; i < count; ++i) {
    std::memcpy(w.q + int64_t{i} * f.k_dim,
                p.q + (int64_t{p.chunk.first_row} + row_of(i)) * p.q_stride + int64_t{head_of(i)} * f.k_dim,
                sizeof(float) * static_cast<size_t>(f.k_dim));
  }
  for (int block = 0; block < keys; block += kPrefillKeyBlock) {
    while (r0 < count && position(r0) < begin + block) ++r0;
    const auto keys_of = [&](int i) {  // of the block, those that pair i sees
      const int64_t seen = position(i) + 1 - begin - block;
      return static_cast<int>(std::min<int64_t>({kPrefillKeyBlock, keys - block, seen}));
    };
    for (int r = r0; r < count; r += kRows) {
      const int rows = std::min(kRows, count - r);
      for (int panel = 0; panel * kPanel < keys_of(r + rows - 1); ++panel) {
        prefill::ProductRows(rows, w.q + int64_t{r} * f.k_dim, f.k_dim,
                             w.k + (int64_t{block} + panel * kPanel) * f.k_dim, f.k_dim,
                             w.scores + int64_t{r} * kPrefillKeyBlock + panel * kPanel, kPrefillKeyBlock, false);
      }
    }
    for (int r = r0; r < count; ++r) {
      float* s = w.scores + int64_t{r} * kPrefillKeyBlock;
      const int row = row_of(r), end = keys_of(r);
      const float lse = p.lse[(int64_t{p.chunk.first_row} + row) * p.q_heads + head_of(r)];
      if (std::isinf(lse)) continue;  // the row saw nothing
      float scale = p.scale;
      if constexpr (!Mod::kIsIdentity) {
        for (int i = 0; i < end; ++i) s[i] *= scale;
        scale = 1.0f;
        ApplyScore(mod.score, s, end, p.chunk.seq, head_of(r), position(r), begin + block);
        for (int i = 0; Mod::kHasMask && i < end; ++i) {
          if (!mod.Mask(p.chunk.seq, head_of(r), position(r), begin + block + i)) s[i] = prefill::kMinusInf;
        }
      }
      const auto first = static_cast<int>(std::clamp<int64_t>(mod.FirstKey(position(r)) - begin - block, 0, end));
      std::fill(s, s + first, prefill::kMinusInf);
      Weigh(s, scale, lse, end);
      float* mass = p.mass + (int64_t{row} * f.kv_heads + kv_head) * p.mass_pages;
      for (int i = 0; i < end;) {
        const int64_t page = (begin + block + i) / f.page_size;
        const int stop = static_cast<int>(std::min<int64_t>(end, (page + 1) * f.page_size - begin - block));
        if (p.by_token) {
          for (; i < stop; ++i) {
            if (ids[page] >= 0) mass[begin + block + i] += s[i];
          }
          continue;
        }
        float sum = 0;
        for (; i < stop; ++i) sum += s[i];
        if (ids[page] >= 0) mass[page] += sum;
      }
    }
  }
}

template <class Mod>
void Mass(const Context& ctx, const PrefillMassParams& p, const Mod& mod, void* workspace) {
  const PageFormat& f = p.table.format;
  const MassPlan plan = MassPlan::Create(p);
  const int32_t* ids = p.table.page_ids + p.table.page_begin[p.chunk.seq];
  const int64_t length = int64_t{p.chunk.start_pos} + p.chunk.rows;
  const int pairs = p.chunk.rows * (p.q_heads / f.kv_heads);
  VisitFloatDType(f.dtype, [&](auto t) {
    ctx.pool->ParallelFor(plan.tasks * f.kv_heads, [&](int64_t task, int worker) {
      const MassScratch scratch = MassScratch::Create(f, workspace, worker);
      const int kv_head = static_cast<int>(task % f.kv_heads);
      const int64_t first_page = task / f.kv_heads * plan.task_pages;
      const int64_t first_entry = task / f.kv_heads * plan.task_entries;
      const int64_t end_entry = std::min(p.mass_pages, first_entry + plan.task_entries);
      for (int row = 0; row < p.chunk.rows; ++row) {
        float* mass = p.mass + (int64_t{row} * f.kv_heads + kv_head) * p.mass_pages;
        std::fill(mass + first_entry, mass + end_entry, 0.0f);
      }
      const int64_t end = std::min(length, (first_page + plan.task_pages) * f.page_size);
      for (int64_t begin = first_page * f.page_size; begin < end; begin += kMassKeys) {
        const int keys = static_cast<int>(std::min<int64_t>(kMassKeys, end - begin));
        UnpackKeyRun<decltype(t)>(p, ids, kv_head, begin, keys, scratch.k);
        for (int first = 0; first < pairs; first += kPrefillTileRows) {
          Tile(p, ids, scratch, kv_head, first, std::min(kPrefillTileRows, pairs - first), begin, keys, mod);
        }
      }
    });
  });
}

}  // namespace mass
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
