// What one call of prefill attention reads and writes, for the tests of its implementations.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/attention_prefill.h"
#include "kernels/reference/attention.h"
#include "tests/kernels/paged_cache.h"

namespace quire::testing {

// The last rows of each sequence as chunks, q and out in the order of the sequences.
struct PrefillCall {
  // tails[s]: how many of the sequence's last positions are queried. Rows are longer than their data by q_padding and
  // out_padding floats. Outputs begin as −7.
  PrefillCall(const PagedCache& cache, int q_heads, const std::vector<int>& tails, uint64_t seed, int q_padding = 0,
              int out_padding = 0) {
    const PageFormat& f = cache.table().format;
    for (int s = 0; s < static_cast<int>(tails.size()); ++s) {
      const int n = tails[static_cast<size_t>(s)];
      chunks.push_back({s, rows, n, cache.lengths()[static_cast<size_t>(s)] - n});
      rows += n;
    }
    p.q_stride = q_heads * f.k_dim + q_padding;
    p.out_stride = q_heads * f.v_dim + out_padding;
    q = RandomFloats(static_cast<size_t>(rows * p.q_stride), seed);
    p.q_heads = q_heads;
    p.pages = cache.pages();
    p.table = cache.table();
    p.scale = 1.0f / std::sqrt(static_cast<float>(f.k_dim));
    Clear();
  }
  void Clear() {
    out.assign(static_cast<size_t>(rows * p.out_stride), -7.0f);
    lse.assign(static_cast<size_t>(rows * p.q_heads), -7.0f);
  }
  AttentionPrefillParams Params() {
    p.q = q.data();
    p.out = out.data();
    p.lse = lse.data();
    p.chunks = chunks.data();
    p.num_chunks = static_cast<int>(chunks.size());
    return p;
  }
  void RunReference() {
    WithModelMod(mod, [&](const auto& with) { reference::AttentionPrefill(Params(), with); });
  }

  std::vector<PrefillChunk> chunks;
  int rows = 0;
  std::vector<float> q, out, lse;
  AttentionPrefillParams p;
  ModelMod mod;
};

}  // namespace quire::testing
