// What the tests of page policies share: a policy from its spec, a decode step's rows over a PagedCache, and its
// selection.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/selection/policy.h"
#include "tests/kernels/paged_cache.h"

namespace quire::testing {

struct Selected {
  std::vector<int32_t> pages, counts;
  SelectionView view;
  std::vector<int32_t> List(size_t list) const {
    const auto begin = pages.begin() + static_cast<int64_t>(list) * view.max_pages;
    return {begin, begin + counts[list]};
  }
};

inline std::unique_ptr<AttentionPolicy> Make(const std::string& spec, int page_size) {
  auto parsed = AttentionSpec::Parse(spec);
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  auto policy = MakePolicy(*parsed, page_size);
  EXPECT_TRUE(policy.ok()) << policy.status().ToString();
  return std::move(policy).value();
}

inline Selected Select(const AttentionPolicy& policy, const SelectParams& p, int threads) {
  ThreadPool pool(threads);
  Context ctx;
  ctx.pool = &pool;
  int longest = 0;
  for (int r = 0; r < p.rows; ++r) longest = std::max(longest, p.row_len[r]);
  Selected s;
  s.view.max_pages = policy.MaxPages(longest, p.table.format.page_size);
  s.pages.assign(static_cast<size_t>(p.rows * p.table.format.kv_heads * s.view.max_pages), -7);
  s.counts.assign(static_cast<size_t>(p.rows * p.table.format.kv_heads), -7);
  s.view.pages = s.pages.data();
  s.view.counts = s.counts.data();
  auto workspace = Buffer::Create(policy.SelectWorkspace(p));
  EXPECT_TRUE(workspace.ok());
  if (workspace->size() > 0) std::memset(workspace->data(), 0xff, workspace->size());
  policy.Select(ctx, p, s.view, workspace->data());
  return s;
}

struct Step {
  Step(PagedCache& cache, int q_heads, std::vector<int32_t> row_seq, std::vector<int32_t> row_len, uint64_t seed)
      : seq(std::move(row_seq)), len(std::move(row_len)) {
    p.q_stride = q_heads * cache.table().format.k_dim;
    q = RandomFloats(seq.size() * static_cast<size_t>(p.q_stride), seed);
    p.q = q.data();
    p.rows = static_cast<int>(seq.size());
    p.q_heads = q_heads;
    p.row_seq = seq.data();
    p.row_len = len.data();
    p.layer = 9;
    p.pages = cache.pages();
    p.table = cache.table();
  }
  std::vector<int32_t> seq, len;
  std::vector<float> q;
  SelectParams p;
};

inline Context TwoThreads() {
  static ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  return ctx;
}

}  // namespace quire::testing
