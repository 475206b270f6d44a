// What the tests of page policies share: a policy from its spec, a decode step's rows over a PagedCache, and its
// selection.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
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

// A page's entry in a row's history, all of the policy's floats the same.
using HistoryFill = std::function<float(int seq, int head, int64_t page)>;
inline float RandomEntry(int seq, int head, int64_t page) {
  std::mt19937_64 random(static_cast<uint64_t>(seq * 64 + head) * 100003 + static_cast<uint64_t>(page));
  return std::uniform_real_distribution<float>(0.001f, 1.0f)(random);
}

// Histories of all rows, as earlier steps might have left them.
struct Histories {
  Histories(const AttentionPolicy& policy, const SelectParams& p, const HistoryFill& fill) {
    const int64_t width = policy.Declare().history;
    if (width == 0) return;
    const PageFormat& f = p.table.format;
    for (int row = 0; row < p.rows; ++row) {
      const int64_t pages = (p.row_len[row] + f.page_size - 1) / f.page_size, stride = pages * width + 3;
      std::vector<float>& v = values.emplace_back(static_cast<size_t>(f.kv_heads * stride), std::nanf(""));
      for (int head = 0; head < f.kv_heads; ++head) {
        for (int64_t i = 0; i < pages * width; ++i) {
          v[static_cast<size_t>(head * stride + i)] = fill(p.row_seq[row], head, i / width);
        }
      }
      views.push_back({v.data(), stride, f.kv_heads, pages, static_cast<int>(width)});
    }
  }
  std::vector<std::vector<float>> values;
  std::vector<PageHistory> views;  // [rows]; none when the policy remembers nothing
};

// Policies with a history are given one by `fill`, unless p has its own.
inline Selected Select(const AttentionPolicy& policy, SelectParams p, int threads,
                       const HistoryFill& fill = RandomEntry) {
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
  const Histories histories(policy, p, fill);
  if (p.history == nullptr && !histories.views.empty()) p.history = histories.views.data();
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
