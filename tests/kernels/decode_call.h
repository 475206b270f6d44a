// What one call of decode attention reads and writes, for the tests of its implementations.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attention_decode.h"
#include "kernels/reference/attention.h"
#include "tests/kernels/paged_cache.h"

namespace quire::testing {

struct DecodeCall {
  // Rows are longer than their data by q_padding and out_padding floats. Outputs begin as −7.
  DecodeCall(const PagedCache& cache, int q_heads, std::vector<int32_t> row_seq, std::vector<int32_t> row_len, uint64_t seed,
             int q_padding = 0, int out_padding = 0)
      : seq(std::move(row_seq)), len(std::move(row_len)) {
    const PageFormat& f = cache.table().format;
    const size_t rows = seq.size();
    p.q_stride = q_heads * f.k_dim + q_padding;
    p.out_stride = q_heads * f.v_dim + out_padding;
    q = RandomFloats(rows * static_cast<size_t>(p.q_stride), seed);
    out.assign(rows * static_cast<size_t>(p.out_stride), -7.0f);
    lse.assign(rows * static_cast<size_t>(q_heads), -7.0f);
    p.rows = static_cast<int>(rows);
    p.q_heads = q_heads;
    p.pages = cache.pages();
    p.table = cache.table();
    p.scale = 1.0f / std::sqrt(static_cast<float>(f.k_dim));
  }
  AttentionDecodeParams Params() {
    p.q = q.data();
    p.out = out.data();
    p.lse = lse.data();
    p.row_seq = seq.data();
    p.row_len = len.data();
    if (!mass.empty()) p.mass = mass.data();
    return p;
  }
  void RunReference() {
    WithModelMod(mod, [&](const auto& with) { reference::AttentionDecode(Params(), with); });
  }

  std::vector<int32_t> seq, len;
  std::vector<float> q, out, lse, mass;
  AttentionDecodeParams p;
  ModelMod mod;
};

// A selection in vectors: per (row, KV head) an ascending list.
struct Selection {
  Selection(int rows, int kv_heads, int max_pages)
      : pages(static_cast<size_t>(rows) * kv_heads * max_pages, -1), counts(static_cast<size_t>(rows) * kv_heads) {
    view.max_pages = max_pages;
    view.pages = pages.data();
    view.counts = counts.data();
  }
  void Set(size_t list, const std::vector<int32_t>& ids) {
    counts[list] = static_cast<int32_t>(ids.size());
    std::copy(ids.begin(), ids.end(), pages.begin() + static_cast<int64_t>(list) * view.max_pages);
  }
  std::vector<int32_t> Get(size_t list) const {
    const auto begin = pages.begin() + static_cast<int64_t>(list) * view.max_pages;
    return {begin, begin + counts[list]};
  }
  std::vector<int32_t> pages, counts;
  SelectionView view;
};

// `count` of the pages [0, pages), or all of them, ascending.
inline std::vector<int32_t> RandomPages(int pages, int count, std::mt19937_64& random) {
  std::vector<int32_t> all(static_cast<size_t>(pages));
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  all.resize(static_cast<size_t>(std::min(pages, count)));
  std::sort(all.begin(), all.end());
  return all;
}

// A call with a mask over slots and SparQ's correction agrees with the reference, also where what the mask leaves out is
// NaN. Call: a DecodeCall with Run(seed or threads).
template <class Call>
void ExpectSlotMaskAndSparqsCorrection(const Context& ctx, double tolerance) {
  for (const int page_size : {7, 16, 80}) {
    PagedCache cache(DType::kBF16, page_size, 2, 64, 64, {900}, 1);
    cache.Fill(ctx);
    Call call(cache, 8, {0}, {900}, 2);
    Selection selection(1, 2, 12);
    for (size_t h = 0; h < 2; ++h) selection.Set(h, RandomPages(cache.Pages(0), 9, cache.random()));
    const int words = (page_size + 63) / 64;
    std::vector<uint64_t> mask(2 * 12 * static_cast<size_t>(words));
    for (uint64_t& m : mask) m = cache.random()();
    const std::vector<float> alpha = RandomFloats(8, 3), mean = RandomFloats(2 * 64, 4);
    selection.view.slot_mask = mask.data();
    selection.view.mask_words = words;
    selection.view.alpha = const_cast<float*>(alpha.data());
    selection.view.v_mean = const_cast<float*>(mean.data());
    call.p.selection = &selection.view;
    call.RunReference();
    const Call expected = call;
    for (size_t i = 0; i < 9; ++i) {
      const auto shared = selection.Get(0)[i];
      if (std::ranges::count(selection.Get(1), shared) != 0) continue;
      for (int slot = 0; slot < page_size; ++slot) {
        if ((mask[i * static_cast<size_t>(words) + static_cast<size_t>(slot) / 64] >> (slot % 64) & 1) == 0 &&
            shared * page_size + slot < 900) {
          cache.PoisonSlot(0, shared * page_size + slot);
        }
      }
    }
    call.Run(2);
    EXPECT_LE(RelativeError(call.out, expected.out), tolerance);
    EXPECT_LE(RelativeError(call.lse, expected.lse), tolerance);
  }
}

}  // namespace quire::testing
