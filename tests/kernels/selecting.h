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
  std::vector<uint64_t> masks;       // where the policy selects slots
  std::vector<float> alpha, v_mean;  // where it corrects
  SelectionView view;
  int page_size = 0;
  // The tokens of a list with masks.
  std::vector<int32_t> Tokens(size_t list) const {
    std::vector<int32_t> tokens;
    const auto first = static_cast<int64_t>(list) * view.max_pages;
    for (int64_t i = 0; i < counts[list]; ++i) {
      for (int slot = 0; slot < page_size; ++slot) {
        const uint64_t word = masks[static_cast<size_t>((first + i) * view.mask_words + slot / 64)];
        if ((word >> (slot % 64) & 1) != 0) tokens.push_back(pages[static_cast<size_t>(first + i)] * page_size + slot);
      }
    }
    return tokens;
  }
  std::vector<int32_t> List(size_t list) const {
    const auto begin = pages.begin() + static_cast<int64_t>(list) * view.max_pages;
    return {begin, begin + counts[list]};
  }
};

inline std::unique_ptr<AttentionPolicy> Make(const std::string& spec, const PolicyShape& shape) {
  auto parsed = AttentionSpec::Parse(spec);
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  auto policy = MakePolicy(*parsed, shape);
  EXPECT_TRUE(policy.ok()) << policy.status().ToString();
  return std::move(policy).value();
}
inline std::unique_ptr<AttentionPolicy> Make(const std::string& spec, int page_size) {
  PolicyShape shape;
  shape.page_size = page_size;
  return Make(spec, shape);
}
inline PolicyShape ShapeOf(const SelectParams& p) {
  const PageFormat& f = p.table.format;
  return {f.page_size, f.k_dim, f.v_dim, f.dtype, p.q_heads / f.kv_heads};
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
        for (int64_t page = 0; page < pages; ++page) {
          std::fill_n(v.begin() + head * stride + page * width, width, fill(p.row_seq[row], head, page));
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
  const PageDataNeeds needs = policy.Declare();
  s.page_size = p.table.format.page_size;
  if (needs.slots) {
    s.view.mask_words = (s.page_size + 63) / 64;
    s.masks.assign(s.pages.size() * static_cast<size_t>(s.view.mask_words), ~uint64_t{0});
    s.view.slot_mask = s.masks.data();
  }
  if (needs.correction) {
    s.alpha.assign(static_cast<size_t>(p.rows * (p.heads > 0 ? p.heads : p.q_heads)), std::nanf(""));
    s.v_mean.assign(s.counts.size() * static_cast<size_t>(p.table.format.v_dim), std::nanf(""));
    s.view.alpha = s.alpha.data();
    s.view.v_mean = s.v_mean.data();
  }
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
