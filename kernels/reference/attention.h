// Reference attention: slow and obvious, straight from the page layout, double accumulation. What every fast attention
// kernel is held to. Honours everything the kernels' contracts name: freed pages, selections, slot masks,
// sparq's correction, mass, Mods.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/base/dtype.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"

namespace quire::reference {

// Element `offset` of memory of a floating dtype, as double.
inline double ElementAt(DType dtype, const void* base, int64_t offset) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(base)[offset];
    case DType::kBF16: return ToFloat(static_cast<const BF16*>(base)[offset]);
    case DType::kF16: return ToFloat(static_cast<const F16*>(base)[offset]);
    default: internal::BadFloatDType(dtype);
  }
}

// Element (slot, channel) of one (page, KV head) block of K or V.
inline double KAt(const PageTableView& table, const LayerPages& pages, int32_t page, int kv_head, int slot, int channel) {
  const PageFormat& f = table.format;
  return ElementAt(f.dtype, pages.k, page * f.k_page_stride + kv_head * f.k_head_stride + f.KOffset(slot, channel));
}
inline double VAt(const PageTableView& table, const LayerPages& pages, int32_t page, int kv_head, int slot, int channel) {
  const PageFormat& f = table.format;
  return ElementAt(f.dtype, pages.v, page * f.v_page_stride + kv_head * f.v_head_stride + f.VOffset(slot, channel));
}

// One query row of one head over the given positions: out [v_dim], returns the log-sum-exp (−inf when there are none),
// and the softmax weight of each position in weights [positions]. The page behind a position must exist.
template <typename Mod>
double AttendPositions(const PageTableView& table, const LayerPages& pages, const float* q, int seq, int head, int kv_head,
                       int64_t q_idx, double scale, const std::vector<int64_t>& positions, const Mod& mod,
                       std::vector<double>& out, std::vector<double>& weights) {
  const PageFormat& f = table.format;
  const double kMinusInf = -std::numeric_limits<double>::infinity();
  const int32_t* ids = table.page_ids + table.page_begin[seq];
  weights.assign(positions.size(), kMinusInf);
  out.assign(static_cast<size_t>(f.v_dim), 0.0);
  double max = kMinusInf;
  for (size_t i = 0; i < positions.size(); ++i) {
    const int64_t pos = positions[i];
    double dot = 0;
    for (int c = 0; c < f.k_dim; ++c) {
      dot += double{q[c]} * KAt(table, pages, ids[pos / f.page_size], kv_head, static_cast<int>(pos % f.page_size), c);
    }
    double score = dot * scale;
    if (!mod.Mask(seq, head, q_idx, pos)) continue;
    if constexpr (Mod::kHasScore) score = mod.Score(static_cast<float>(score), seq, head, q_idx, pos);
    weights[i] = score;
    if (score > max || std::isnan(score)) max = score;
  }
  if (max == kMinusInf) {
    weights.assign(positions.size(), 0.0);
    return kMinusInf;
  }
  double sum = 0;
  for (double& w : weights) sum += (w = w == kMinusInf ? 0.0 : std::exp(w - max));
  for (size_t i = 0; i < positions.size(); ++i) {
    const int64_t pos = positions[i];
    weights[i] /= sum;
    if (weights[i] == 0) continue;
    for (int c = 0; c < f.v_dim; ++c) {
      out[static_cast<size_t>(c)] +=
          weights[i] * VAt(table, pages, ids[pos / f.page_size], kv_head, static_cast<int>(pos % f.page_size), c);
    }
  }
  return max + std::log(sum);
}

template <typename Mod>
void AttentionDecode(const AttentionDecodeParams& p, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  std::vector<double> out, weights;
  std::vector<int64_t> positions;
  for (int row = 0; row < p.rows; ++row) {
    const int seq = p.row_seq[row];
    const int64_t len = p.row_len[row];
    const int32_t* ids = p.table.page_ids + p.table.page_begin[seq];
    for (int head = 0; head < p.q_heads; ++head) {
      const int kv_head = head / group;
      const int64_t block = int64_t{row} * f.kv_heads + kv_head;
      positions.clear();
      const auto add_page = [&](int64_t page, const uint64_t* mask) {
        for (int slot = 0; slot < f.page_size; ++slot) {
          const int64_t pos = page * f.page_size + slot;
          if (pos >= len || ids[page] < 0) continue;
          if (mask != nullptr && (mask[slot / 64] >> (slot % 64) & 1) == 0) continue;
          positions.push_back(pos);
        }
      };
      if (p.selection == nullptr) {
        for (int64_t page = 0; page * f.page_size < len; ++page) add_page(page, nullptr);
      } else {
        const SelectionView& s = *p.selection;
        for (int i = 0; i < s.counts[block]; ++i) {
          const int64_t entry = block * s.max_pages + i;
          add_page(s.pages[entry], s.slot_mask == nullptr ? nullptr : s.slot_mask + entry * s.mask_words);
        }
      }
      const double lse = AttendPositions(p.table, p.pages, p.q + row * p.q_stride + int64_t{head} * f.k_dim, seq, head,
                                         kv_head, len - 1, p.scale, positions, mod, out, weights);
      float* dst = p.out + row * p.out_stride + int64_t{head} * f.v_dim;
      for (int c = 0; c < f.v_dim; ++c) {
        double y = out[static_cast<size_t>(c)];
        if (p.selection != nullptr && p.selection->alpha != nullptr) {
          const double alpha = p.selection->alpha[int64_t{row} * p.q_heads + head];
          y *= alpha;
          if (p.selection->v_mean != nullptr) y += (1 - alpha) * double{p.selection->v_mean[block * f.v_dim + c]};
        }
        dst[c] = static_cast<float>(y);
      }
      if (p.lse != nullptr) p.lse[int64_t{row} * p.q_heads + head] = static_cast<float>(lse);
      if (p.mass != nullptr) {
        float* mass = p.mass + block * p.mass_pages;
        if (head % group == 0) std::fill(mass, mass + p.mass_pages, 0.0f);
        for (size_t i = 0; i < positions.size(); ++i) mass[positions[i] / f.page_size] += static_cast<float>(weights[i]);
      }
    }
  }
}

template <typename Mod>
void AttentionPrefill(const AttentionPrefillParams& p, const Mod& mod) {
  const PageFormat& f = p.table.format;
  const int group = p.q_heads / f.kv_heads;
  std::vector<double> out, weights;
  std::vector<int64_t> positions;
  for (int chunk = 0; chunk < p.num_chunks; ++chunk) {
    const PrefillChunk& c = p.chunks[chunk];
    for (int i = 0; i < c.rows; ++i) {
      const int64_t q_pos = c.start_pos + i;
      positions.clear();
      const int64_t end = Mod::kSeesFuture ? int64_t{c.start_pos} + c.rows : q_pos + 1;
      for (int64_t pos = 0; pos < end; ++pos) {
        if (p.table.page_ids[p.table.page_begin[c.seq] + pos / f.page_size] >= 0) positions.push_back(pos);
      }
      for (int head = 0; head < p.q_heads; ++head) {
        const int64_t row = c.first_row + i;
        const double lse = AttendPositions(p.table, p.pages, p.q + row * p.q_stride + int64_t{head} * f.k_dim, c.seq, head,
                                           head / group, q_pos, p.scale, positions, mod, out, weights);
        for (int d = 0; d < f.v_dim; ++d) {
          p.out[row * p.out_stride + int64_t{head} * f.v_dim + d] = static_cast<float>(out[static_cast<size_t>(d)]);
        }
        if (p.lse != nullptr) p.lse[row * p.q_heads + head] = static_cast<float>(lse);
      }
    }
  }
}

}  // namespace quire::reference
