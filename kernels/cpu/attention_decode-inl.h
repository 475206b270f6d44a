// Decode attention for one Highway target, a template on the storage type and the Mod.
//
// A (row, KV head)'s list of pages is cut into chunks of about 256 tokens, by the number of listed pages alone. A task
// is one chunk of one (row, KV head), or of several KV heads that read the same list (dense): scores of all its tokens
// (K pass), softmax against the chunk's own maximum, then the weighted sum (V pass), left in the workspace as a partial
// result (max, sum, acc). The merge goes over a row's chunks in order. The inner loops are in
// attention_decode_loops-inl.h. What is to be read next is asked for while the current block is worked on: blocks of 4 KB
// are shorter than hardware follows. Where all KV heads read the same pages, those of four pages are read side by side,
// one KV head after the other, so that memory is read in longer runs.
#if defined(QUIRE_KERNELS_CPU_ATTENTION_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_KERNELS_CPU_ATTENTION_DECODE_INL_H_
#undef QUIRE_KERNELS_CPU_ATTENTION_DECODE_INL_H_
#else
#define QUIRE_KERNELS_CPU_ATTENTION_DECODE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/check.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_decode_loops-inl.h"
#include "kernels/cpu/attention_decode_plan.h"
#include "kernels/cpu/mods-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quire {
namespace HWY_NAMESPACE {
namespace decode {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
// Pages whose blocks of one KV head are worked on one after the other, before the next KV head's: its queries, weights and
// sums then stay in the first-level cache. What is asked for meanwhile is as many blocks further on.
constexpr int kDecodeGroup = 4;

// In place: scores [n] become e^(score − max); returns {max, sum}. n is padded to whole vectors with −inf by the
// caller.
HWY_INLINE void Softmax(float* HWY_RESTRICT scores, int n, float& max_out, float& sum_out) {
  const FullF d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(FullF()));
  auto max = hn::Set(d, kMinusInf);
  for (int i = 0; i < n; i += kLanes) max = hn::Max(max, hn::LoadU(d, scores + i));
  const float m = hn::GetLane(hn::MaxOfLanes(d, max));
  max_out = m;
  sum_out = 0;
  if (m == kMinusInf) {
    // Nothing to read, unless a NaN hides behind a maximum that ignores it.
    for (int i = 0; i < n; ++i) scores[i] = scores[i] != scores[i] ? scores[i] : 0.0f;
    for (int i = 0; i < n; ++i) sum_out += scores[i];
    return;
  }
  auto sum = hn::Zero(d);
  const auto shift = hn::Set(d, m);
  for (int i = 0; i < n; i += kLanes) {
    const auto p = ExpNonPositive(d, hn::Sub(hn::LoadU(d, scores + i), shift));
    hn::StoreU(p, d, scores + i);
    sum = hn::Add(sum, p);
  }
  sum_out = hn::GetLane(hn::SumOfLanes(d, sum));
}

// A chunk's pages [begin, end) of the list, and what the Mod's mask leaves of each for all heads that the chunk serves.
// A page that is masked counts as one that isn't there: neither its K nor its V is read.
template <class Mod>
struct ChunkPages {
  const DecodeList& list;
  const int32_t* ids;
  int begin, end;
  MaskState states[Mod::kHasMask ? kDecodeChunkTokens : 1];

  // Heads [first_head, first_head + heads) of the row, whose query is the last of the positions that it sees.
  void Look(const Mod& mod, int seq, int first_head, int heads, int page_size) {
    if constexpr (Mod::kHasMask) {
      const int64_t q = list.length - 1;
      for (int i = begin; i < end; ++i) {
        const int64_t page = int64_t{list.Page(i)} * page_size;
        const int64_t first = std::max(page, list.first_pos), stop = std::min(page + page_size, list.length);
        MaskState state = first >= stop ? MaskState::kMasked : mod.State(seq, first_head, heads, {q, q + 1, first, stop});
        if (state == MaskState::kMixed) {
          bool open = false;  // for any head and slot
          for (int h = 0; h < (Mod::kPerHead ? heads : 1) && !open; ++h) {
            for (int64_t pos = first; pos < stop && !open; ++pos) {
              open = list.Visible(i, static_cast<int>(pos - page), pos) && mod.Mask(seq, first_head + h, q, pos);
            }
          }
          if (!open) state = MaskState::kMasked;
        }
        states[i - begin] = state;
      }
    }
  }
  MaskState State(int i) const { return Mod::kHasMask ? states[i - begin] : MaskState::kOpen; }
  template <typename T>
  const T* Block(int i, const T* base, int64_t page_stride) const {
    return State(i) == MaskState::kMasked ? nullptr : list.Block(i, ids, base, page_stride);
  }
  // True when every slot of the i-th page counts for every head.
  bool Whole(int i, int page_size) const { return State(i) == MaskState::kOpen && list.Whole(i, page_size); }
};

// The chunk's scores by AMX tiles: of all its pages that are there. q: [heads][k_dim].
template <typename T, class Mod>
void TileScores(const AttentionDecodeParams& p, const DecodePlan& plan, const ChunkPages<Mod>& chunk, const T* k_base,
                const float* q, int heads, float* scores) {
  const PageFormat& f = p.table.format;
  AmxQueries queries;
  queries.Set(q, heads, f.k_dim, plan.stacked);
  const BF16* k[kDecodeTilePages];
  int64_t at[kDecodeTilePages];
  int pages = 0;
  for (int i = chunk.begin; i < chunk.end; ++i) {
    const T* block = chunk.Block(i, k_base, f.k_page_stride);
    if (block == nullptr) continue;
    k[pages] = reinterpret_cast<const BF16*>(block);
    at[pages++] = int64_t{i - chunk.begin} * plan.page_slots;
  }
  if (pages > 0) AmxScorePages(queries, k, at, pages, f.page_size, p.scale, scores, plan.chunk_slots);
}

// The weighted sums over the chunk's whole pages by AMX tiles; the others are left to vectors.
template <typename T, class Mod>
void TileSums(const AttentionDecodeParams& p, const DecodePlan& plan, const ChunkPages<Mod>& chunk, const T* v_base,
              const float* weights, int heads, float* acc) {
  const PageFormat& f = p.table.format;
  AmxPage pages[kDecodeTilePages];
  AmxOperand operands[kDecodeChunkTokens / 16];
  int count = 0;
  for (int i = chunk.begin; i < chunk.end; ++i) {
    const T* block = chunk.Block(i, v_base, f.v_page_stride);
    if (block == nullptr || !chunk.Whole(i, f.page_size)) continue;
    pages[count++] = {reinterpret_cast<const BF16*>(block), int64_t{i - chunk.begin} * plan.page_slots};
  }
  if (count > 0) {
    AmxAccumulatePages(pages, count, f.page_size, f.v_dim, weights, plan.chunk_slots, heads, plan.stacked, operands,
                       acc);
  }
}

// Query heads [h0, h0 + heads) of the groups of KV heads [kv_begin, kv_end), which all read the same list, over one
// chunk. Pages are walked in the outer loop, so that a page is read in the order of its addresses over all those heads.
template <typename T>
struct ChunkHeads {
  int kv_begin = 0, kv_end = 0;
  int h0 = 0, heads = 0;
  const float* q = nullptr;  // [q_heads][k_dim] of the row
  float* q_words = nullptr;  // [kv_end - kv_begin][heads][k_dim] scratch: q, interleaved by blocks of heads
  const T* k = nullptr;      // KV head 0's first block
  const T* v = nullptr;
  float* scores = nullptr;     // [kv_end - kv_begin][heads][plan.chunk_slots] scratch
  float* weights = nullptr;    // as many, scratch: e^(score − max), interleaved by blocks of heads
  float* records = nullptr;    // [kv_end - kv_begin][plan.record_floats] out
  float* page_sums = nullptr;  // nullable: [page of the chunk][q_heads] sums of e^(score − max) out
  // KV head kv_begin's first blocks of K that the thread reads after this chunk; null where it reads none.
  const T* then[kDecodeGroup] = {};

  float* Scores(int kv_head, const DecodePlan& plan) const {
    return scores + int64_t{kv_head - kv_begin} * heads * plan.chunk_slots;
  }
  float* Weights(int kv_head, const DecodePlan& plan) const {
    return weights + int64_t{kv_head - kv_begin} * heads * plan.chunk_slots;
  }
  float* QueryWords(int kv_head, int k_dim) const { return q_words + int64_t{kv_head - kv_begin} * heads * k_dim; }
  float* Stats(int kv_head, const DecodePlan& plan) const {  // [heads][2]: max and sum
    return records + (kv_head - kv_begin) * plan.record_floats + 2 * h0;
  }
  float* Acc(int kv_head, int group, const DecodePlan& plan,
             int v_dim) const {  // [heads][v_dim]: Σ e^(score − max) · v
    return records + (kv_head - kv_begin) * plan.record_floats + 2 * group + int64_t{h0} * v_dim;
  }
};

// The order in which a chunk's blocks are read: K of all its pages, then V, then what comes after the chunk; of a group of
// pages one KV head's blocks after the other's.
template <typename T, class Mod>
struct BlockOrder {
  const PageFormat& f;
  const ChunkPages<Mod>& chunk;
  const ChunkHeads<T>& c;

  // What to ask for while KV head kv's block of the t-th page is worked on: the block of the same place in the next turn,
  // or, where there is none, the block itself.
  const T* AheadOf(int t, int kv) const {
    const T* next = kv + 1 < c.kv_end ? Block(t, kv + 1) : Block(t + kDecodeGroup, c.kv_begin);
    return next != nullptr ? next : Block(t, kv);
  }

 private:
  // KV head kv's block of the t-th page in that order; null where there is none.
  const T* Block(int t, int kv) const {
    const int begin = chunk.begin, pages = chunk.end - begin;
    if (t < pages) return Of(chunk.Block(begin + t, c.k, f.k_page_stride), kv * f.k_head_stride);
    if (t < 2 * pages) return Of(chunk.Block(begin + t - pages, c.v, f.v_page_stride), kv * f.v_head_stride);
    return t < 2 * pages + kDecodeGroup ? c.then[t - 2 * pages] : nullptr;
  }
  static const T* Of(const T* page, int64_t offset) { return page == nullptr ? nullptr : page + offset; }
};

// The scores of KV head kv's heads over all of a chunk become weights against their own maximum. used: slots with a score.
template <typename T>
void WeighChunk(const AttentionDecodeParams& p, const DecodePlan& plan, const ChunkHeads<T>& c, int kv, int used) {
  const int group = p.q_heads / p.table.format.kv_heads;
  const int padded = plan.PadSlots(used);
  float* stats = c.Stats(kv, plan);
  for (int h = 0; h < c.heads; ++h) {
    float* s = c.Scores(kv, plan) + int64_t{h} * plan.chunk_slots;
    std::fill(s + used, s + padded, kMinusInf);
    Softmax(s, padded, stats[2 * h], stats[2 * h + 1]);
    if (c.page_sums == nullptr) continue;
    for (int i = 0; i < used / plan.page_slots; ++i) {
      float sum = 0;
      for (int slot = 0; slot < plan.page_slots; ++slot) sum += s[i * plan.page_slots + slot];
      c.page_sums[int64_t{i} * p.q_heads + kv * group + c.h0 + h] = sum;
    }
  }
  ForHeadBlocks(c.heads, InterleaveBlocks<kWord<T>>{c.Scores(kv, plan), plan.chunk_slots, padded, c.Weights(kv, plan),
                                                    plan.chunk_slots});
}

template <typename T, class Mod>
void Chunk(const AttentionDecodeParams& p, const DecodePlan& plan, const DecodeList& list, int row, int chunk,
           const ChunkHeads<T>& c, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int seq = p.row_seq[row];
  const int group = p.q_heads / f.kv_heads;
  const int heads = c.heads;
  const int begin = chunk * plan.chunk_pages, end = std::min(list.count, begin + plan.chunk_pages);
  ChunkPages<Mod> pages{list, p.table.page_ids + p.table.page_begin[seq], begin, end, {}};
  pages.Look(mod, seq, c.kv_begin * group + c.h0, (c.kv_end - 1 - c.kv_begin) * group + heads, f.page_size);
  const int slots = plan.chunk_slots;
  const int page_slots = plan.page_slots;  // page_size rounded up to a word

  // K pass. Pages that hold nothing visible are not touched; their scores are −inf.
  if (plan.tiles) {
    for (int kv = c.kv_begin; kv < c.kv_end; ++kv) {
      TileScores(p, plan, pages, c.k + kv * f.k_head_stride, c.q + (int64_t{kv} * group + c.h0) * f.k_dim, heads,
                 c.Scores(kv, plan));
    }
  }
  if (!plan.tiles) {
    for (int kv = c.kv_begin; kv < c.kv_end; ++kv) {
      ForHeadBlocks(heads, InterleaveBlocks<kWord<T>>{c.q + (int64_t{kv} * group + c.h0) * f.k_dim, f.k_dim, f.k_dim,
                                                      c.QueryWords(kv, f.k_dim), f.k_dim});
    }
  }
  const BlockOrder<T, Mod> order{f, pages, c};
  for (int group_begin = begin; group_begin < end; group_begin += kDecodeGroup) {
    for (int kv = c.kv_begin; kv < c.kv_end; ++kv) {
      const int first_head = kv * group + c.h0;
      for (int i = group_begin; i < std::min(end, group_begin + kDecodeGroup); ++i) {
        const T* page = pages.Block(i, c.k, f.k_page_stride);
        const int64_t first_pos = int64_t{list.Page(i)} * f.page_size;
        float* page_scores = c.Scores(kv, plan) + int64_t{i - begin} * page_slots;
        if (page != nullptr && !plan.tiles) {
          ForHeadBlocks(heads, ScoreBlocks<T>{page + kv * f.k_head_stride, order.AheadOf(i - begin, kv), f.page_size,
                                              f.k_dim, c.QueryWords(kv, f.k_dim), p.scale, page_scores, slots});
        }
        if (Mod::kHasScore && page != nullptr) {
          const int64_t first = std::max(first_pos, list.first_pos);
          const int64_t stop = std::min(first_pos + f.page_size, list.length);
          for (int h = 0; h < heads; ++h) {
            ApplyScore(mod.score, page_scores + int64_t{h} * slots + (first - first_pos),
                       static_cast<int>(stop - first), seq, first_head + h, list.length - 1, first);
          }
        }
        if (page != nullptr && pages.Whole(i, f.page_size) && page_slots == f.page_size) continue;
        const bool tested = Mod::kHasMask && pages.State(i) == MaskState::kMixed;
        for (int h = 0; h < heads; ++h) {
          float* s = page_scores + int64_t{h} * slots;
          for (int slot = 0; slot < page_slots; ++slot) {
            const int64_t pos = first_pos + slot;
            if (page == nullptr || slot >= f.page_size || !list.Visible(i, slot, pos) ||
                (tested && !mod.Mask(seq, first_head + h, list.length - 1, pos))) {
              s[slot] = kMinusInf;
            }
          }
        }
      }
      // In between, so that memory goes on with what has been asked for.
      if (group_begin + kDecodeGroup >= end) WeighChunk(p, plan, c, kv, (end - begin) * page_slots);
    }
  }

  // V pass.
  for (int kv = c.kv_begin; kv < c.kv_end; ++kv) {
    float* acc = c.Acc(kv, group, plan, f.v_dim);
    std::memset(acc, 0, sizeof(float) * static_cast<size_t>(heads) * f.v_dim);
    if (plan.tiles) TileSums(p, plan, pages, c.v + kv * f.v_head_stride, c.Scores(kv, plan), heads, acc);
  }
  for (int group_begin = begin; group_begin < end; group_begin += kDecodeGroup) {
    const int group_end = std::min(end, group_begin + kDecodeGroup);
    for (int kv = c.kv_begin; kv < c.kv_end; ++kv) {
      float* acc = c.Acc(kv, group, plan, f.v_dim);
      for (int i = group_begin, count = 1; i < group_end; i += count) {
        // Neighbours of which every slot counts are summed up in one go.
        const T* v[kDecodeGroup];
        const T* ahead[kDecodeGroup];
        const auto take = [&](int n) {
          const T* page = pages.Block(i + n, c.v, f.v_page_stride);
          if (page == nullptr) return false;
          v[n] = page + kv * f.v_head_stride;
          ahead[n] = order.AheadOf(end - begin + i + n - begin, kv);
          return true;
        };
        count = 0;
        while (i + count < group_end && page_slots == f.page_size && pages.Whole(i + count, f.page_size) &&
               take(count)) {
          ++count;
        }
        const int first_slot = (i - begin) * page_slots;
        if (count > 0) {
          if (plan.tiles) continue;
          ForHeadBlocks(heads, AccumulateBlocks<false, T>{v, ahead, count, f.page_size, f.v_dim,
                                                          c.Weights(kv, plan), slots, first_slot, acc});
        } else {
          count = 1;
          if (!take(0)) continue;
          // At most the first and the last page of a list, and masked ones.
          const AccumulateBlocks<true, T> blocks{v,  ahead, 1, f.page_size, f.v_dim, c.Scores(kv, plan), slots,
                                                 first_slot, acc};
          for (int h = 0; h < heads; ++h) blocks.template Run<1>(h);
        }
      }
    }
  }
}

// Merges the chunks of one (row, KV head) in order: out, lse, mass. records: [chunk] at record_step floats.
HWY_INLINE void Merge(const AttentionDecodeParams& p, const DecodePlan& plan, const DecodeList& list, int row,
                      int kv_head, const float* records, int64_t record_step, const float* page_sums) {
  const FullF d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(FullF()));
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  const int chunks = plan.Chunks(list.count);
  const int64_t block = int64_t{row} * f.kv_heads + kv_head;
  float* mass = p.mass == nullptr ? nullptr : p.mass + block * p.mass_pages;
  if (mass != nullptr) std::fill(mass, mass + p.mass_pages, 0.0f);
  for (int h = 0; h < group; ++h) {
    const int head = kv_head * group + h;
    float* out = p.out + row * p.out_stride + int64_t{head} * f.v_dim;
    float max = kMinusInf;
    for (int i = 0; i < chunks; ++i) max = std::max(max, records[i * record_step + 2 * h]);
    // A chunk's weight; 0 where it holds nothing (its maximum is −inf, and −inf − −inf is no number).
    const auto weight = [&](int i) {
      const float m = records[i * record_step + 2 * h], l = records[i * record_step + 2 * h + 1];
      return l == 0.0f ? 0.0f : m == max ? 1.0f : ExpNonPositive(m - max);
    };
    float sum = 0;
    for (int c = 0; c < f.v_dim; ++c) out[c] = 0;
    for (int i = 0; i < chunks; ++i) {
      const float w = weight(i);
      if (w == 0.0f) continue;
      const float* record = records + i * record_step;
      sum += w * record[2 * h + 1];
      const float* acc = record + 2 * group + int64_t{h} * f.v_dim;
      int c = 0;
      for (; c + kLanes <= f.v_dim; c += kLanes) {
        hn::StoreU(hn::MulAdd(hn::Set(d, w), hn::LoadU(d, acc + c), hn::LoadU(d, out + c)), d, out + c);
      }
      const OneLane d1;
      for (; c < f.v_dim; ++c) {
        hn::StoreU(hn::MulAdd(hn::Set(d1, w), hn::LoadU(d1, acc + c), hn::LoadU(d1, out + c)), d1, out + c);
      }
    }
    const bool empty = sum == 0.0f;
    const float share = empty ? 0.0f : 1.0f / sum;
    for (int c = 0; c < f.v_dim; ++c) out[c] *= share;
    if (p.lse != nullptr) p.lse[int64_t{row} * p.q_heads + head] = empty ? kMinusInf : max + std::log(sum);
    if (mass != nullptr && !empty) {
      for (int i = 0; i < list.count; ++i) {
        CHECK_LT(list.Page(i), p.mass_pages);
        mass[list.Page(i)] += page_sums[int64_t{i} * p.q_heads + head] * weight(i / plan.chunk_pages) * share;
      }
    }
    if (p.selection != nullptr && p.selection->alpha != nullptr) {
      const float alpha = p.selection->alpha[int64_t{row} * p.q_heads + head];
      const float* mean = p.selection->v_mean == nullptr ? nullptr : p.selection->v_mean + block * f.v_dim;
      for (int c = 0; c < f.v_dim; ++c) out[c] = alpha * out[c] + (mean == nullptr ? 0.0f : (1 - alpha) * mean[c]);
    }
  }
}

// Where a task works. Tasks count blocks of KV heads within records.
struct TaskPlace {
  int row, chunk, kv_begin;
  int64_t record;
  DecodeList list;

  template <class Mod>
  static TaskPlace Of(const AttentionDecodeParams& p, const DecodeWorkspace& w, int kv_block, int64_t task,
                      const Mod& mod) {
    const int blocks = (p.table.format.kv_heads + kv_block - 1) / kv_block;
    TaskPlace at;
    at.record = task / blocks;
    at.row =
        static_cast<int>(std::upper_bound(w.first_record, w.first_record + p.rows, at.record) - w.first_record) - 1;
    at.chunk = static_cast<int>(at.record - w.first_record[at.row]);
    at.kv_begin = static_cast<int>(task % blocks) * kv_block;
    at.list = DecodeList::Create(p, at.row, at.kv_begin, mod);
    return at;
  }
};

// All passes of one chunk: groups larger than a pass's heads take several. next: the task that this thread does then;
// -1 if there is none.
template <typename T, class Mod>
void ChunkTask(const AttentionDecodeParams& p, const DecodePlan& plan, const DecodeWorkspace& w, int kv_block,
               int64_t task, int64_t next, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  const auto [row, chunk, kv_begin, record, list] = TaskPlace::Of(p, w, kv_block, task, mod);
  ChunkHeads<T> c;
  c.kv_begin = kv_begin;
  c.kv_end = std::min(c.kv_begin + kv_block, f.kv_heads);
  if (chunk >= plan.Chunks(list.count)) return;
  HWY_ALIGN float stack[2][kDecodeStackHeads * kDecodeStackSlots];
  HWY_ALIGN float q_words[kDecodeStackChannels];
  const int64_t first_record = record * f.kv_heads + c.kv_begin;
  c.q_words = q_words;
  if (plan.ScoresOnStack()) {
    c.scores = stack[0], c.weights = stack[1];
  } else {
    c.scores = w.scores + 2 * first_record * kDecodeHeadsPerPass * plan.chunk_slots;
    c.weights = c.scores + int64_t{kDecodeHeadsPerPass} * plan.chunk_slots;
  }
  c.records = w.records + first_record * plan.record_floats;
  if (p.mass != nullptr) {
    c.page_sums = w.page_sums + (w.first_page[row] + int64_t{chunk} * plan.chunk_pages) * p.q_heads;
  }
  c.q = p.q + row * p.q_stride;
  c.k = static_cast<const T*>(p.pages.k);
  c.v = static_cast<const T*>(p.pages.v);
  if (next >= 0) {
    const TaskPlace then = TaskPlace::Of(p, w, kv_block, next, mod);
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[then.row]];
    const int first = then.chunk * plan.chunk_pages;
    for (int i = 0; i < kDecodeGroup && first + i < then.list.count; ++i) {
      c.then[i] = then.list.Block(first + i, ids, c.k + then.kv_begin * f.k_head_stride, f.k_page_stride);
    }
  }
  for (c.h0 = 0; c.h0 < group; c.h0 += plan.pass_heads) {
    c.heads = std::min(group - c.h0, plan.pass_heads);
    Chunk<T>(p, plan, list, row, chunk, c, mod);
  }
}

template <class Mod>
void Decode(const Context& ctx, const AttentionDecodeParams& p, const Mod& mod, void* workspace) {
  const PageFormat& f = p.table.format;
  const DecodePlan plan = DecodePlan::Create(p);
  DecodeWorkspace w;
  DecodeWorkspace::Layout(
      p, plan, [&](int row) { return DecodeWorkspace::ListedPages(p, row, mod); }, workspace, &w);
  VisitFloatDType(f.dtype, [&](auto t) {
    const int64_t records = w.first_record[p.rows];
    // Where masks differ between heads, a page is skipped head by head.
    const int kv_block = Mod::kHasMask && Mod::kPerHead ? 1 : plan.KvBlock(p, records, ctx.pool->threads());
    // A thread takes several tasks one after another, so that it knows what it reads next.
    const int64_t tasks = records * ((f.kv_heads + kv_block - 1) / kv_block);
    const int64_t run = std::clamp<int64_t>(tasks / (int64_t{8} * ctx.pool->threads()), 1, 16);
    ctx.pool->ParallelFor((tasks + run - 1) / run, [&](int64_t i, int) {
      const int64_t end = std::min(tasks, (i + 1) * run);
      for (int64_t task = i * run; task < end; ++task) {
        ChunkTask<decltype(t)>(p, plan, w, kv_block, task, task + 1 < end ? task + 1 : -1, mod);
      }
    });
  });
  ctx.pool->ParallelFor(int64_t{p.rows} * f.kv_heads, [&](int64_t i, int) {
    const int row = static_cast<int>(i / f.kv_heads), kv_head = static_cast<int>(i % f.kv_heads);
    const float* records = w.records + (w.first_record[row] * f.kv_heads + kv_head) * plan.record_floats;
    const float* sums = p.mass == nullptr ? nullptr : w.page_sums + w.first_page[row] * p.q_heads;
    Merge(p, plan, DecodeList::Create(p, row, kv_head, mod), row, kv_head, records, plan.record_floats * f.kv_heads, sums);
  });
}

}  // namespace decode
}  // namespace HWY_NAMESPACE
}  // namespace quire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
