// The pages that every rank chose in a run, by layer, length and KV head, with exact scores: so that runs on different
// numbers of ranks can be compared, and where they differ it can be told whether rounding explains it.
//
// The bound. All-reduces round in an order of their own, so q and the keys of one run differ a little from another's.
// Let s(p) be a page's quest score from a run's own q and K, in double; the kernel's ŝ(p) differs from it by at most
// γ_d·A(p), with A(p) = Σ_c |q_c|·max|K_c| and γ_d = d·u/(1 − d·u) (Higham, Accuracy and Stability of Numerical
// Algorithms, 3.1). If run 1 chose page a and not b, and run 2 chose b and not a, then ŝ1(a) ≥ ŝ1(b) and ŝ2(b) ≥ ŝ2(a),
// so the gap at run 1's cut-off s1(a) − s1(b) is at most |s1(a) − s2(a)| + |s1(b) − s2(b)| + 2·γ_d·(A(a) + A(b)): what
// rounding has moved the scores by.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/model/decoder.h"
#include "kernels/reference/attention.h"
#include "kernels/reference/quest.h"

namespace quire {

struct PageChoice {
  std::vector<int32_t> pages;  // ascending
  std::vector<double> scores;  // [page] s
  std::vector<double> sizes;   // [page] A
};
using PageChoices = std::map<std::array<int32_t, 3>, PageChoice>;  // (layer, length, KV head of the model)

// Of one sequence at a time: lengths tell its steps apart. F32 caches and quest by max.
class PageRecorder final : public SelectionObserver {
 public:
  explicit PageRecorder(int first_kv_head = 0) : first_kv_head_(first_kv_head) {}
  void OnSelect(const SelectParams& p, const SelectionView& s) override {
    const PageFormat& f = p.table.format;
    for (int row = 0; row < p.rows; ++row) {
      for (int head = 0; head < f.kv_heads; ++head) {
        const int64_t list = int64_t{row} * f.kv_heads + head;
        PageChoice choice;
        const int32_t* pages = s.pages + list * s.max_pages;
        choice.pages.assign(pages, pages + s.counts[list]);
        choice.scores = reference::QuestScores(p, row, head, GroupReduce::kMax);
        choice.sizes = Sizes(p, row, head);
        choices[{p.layer, p.row_len[row], first_kv_head_ + head}] = std::move(choice);
      }
    }
  }
  PageChoices choices;

 private:
  static std::vector<double> Sizes(const SelectParams& p, int row, int head) {
    const PageFormat& f = p.table.format;
    const int heads = p.q_heads / f.kv_heads;
    const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
    std::vector<double> sizes;
    for (int64_t page = 0; page * f.page_size < p.row_len[row]; ++page) {
      const int slots = static_cast<int>(std::min<int64_t>(f.page_size, p.row_len[row] - page * f.page_size));
      double most = 0;
      for (int g = 0; g < heads; ++g) {
        const float* q = p.q + row * p.q_stride + int64_t{head * heads + g} * f.k_dim;
        double sum = 0;
        for (int c = 0; c < f.k_dim; ++c) {
          double largest = 0;
          for (int slot = 0; slot < slots; ++slot) {
            largest = std::max(largest, std::abs(double{reference::KAt(p.table, p.pages, ids[page], head, slot, c)}));
          }
          sum += std::abs(double{q[c]}) * largest;
        }
        most = std::max(most, sum);
      }
      sizes.push_back(most);
    }
    return sizes;
  }

  int first_kv_head_;
};

// As numbers, for ranks that are processes.
inline std::vector<int32_t> Flatten(const PageChoices& choices) {
  std::vector<int32_t> out;
  const auto put = [&](const std::vector<double>& values) {
    const size_t at = out.size();
    out.resize(at + 2 * values.size());
    if (!values.empty()) std::memcpy(out.data() + at, values.data(), values.size() * sizeof(double));
  };
  for (const auto& [key, choice] : choices) {
    out.insert(out.end(), key.begin(), key.end());
    out.push_back(static_cast<int32_t>(choice.pages.size()));
    out.push_back(static_cast<int32_t>(choice.scores.size()));
    out.insert(out.end(), choice.pages.begin(), choice.pages.end());
    put(choice.scores);
    put(choice.sizes);
  }
  return out;
}

// Adds a rank's choices to the group's; false when another rank that holds the same KV head chose otherwise.
inline bool Merge(const PageChoices& rank, PageChoices* group) {
  bool alike = true;
  for (const auto& [key, choice] : rank) {
    const auto [at, added] = group->insert({key, choice});
    alike &= added || at->second.pages == choice.pages;
  }
  return alike;
}

inline PageChoices Unflatten(std::span<const int32_t> words) {
  PageChoices choices;
  for (size_t at = 0; at < words.size();) {
    PageChoice& choice = choices[{words[at], words[at + 1], words[at + 2]}];
    const size_t pages = static_cast<size_t>(words[at + 3]), all = static_cast<size_t>(words[at + 4]);
    at += 5;
    choice.pages.assign(words.begin() + at, words.begin() + at + pages);
    at += pages;
    for (std::vector<double>* values : {&choice.scores, &choice.sizes}) {
      values->resize(all);
      if (all > 0) std::memcpy(values->data(), words.data() + at, all * sizeof(double));
      at += 2 * all;
    }
  }
  return choices;
}

struct PageComparison {
  int64_t lists = 0, pages = 0;
  int64_t different = 0;    // pages chosen by one run only
  int64_t unexplained = 0;  // of them, with a gap beyond the bound
  double widest_gap = 0;    // of a difference, relative to A
  double moved = 0;         // the most that a score differs between the runs, relative to A
  bool same_keys = true;    // layers, lengths and heads

  std::string ToString() const {
    char text[256];
    std::snprintf(text, sizeof(text),
                  "%lld lists of %lld pages; %lld pages differ, the widest gap %.2e; scores moved by %.2e at most",
                  static_cast<long long>(lists), static_cast<long long>(pages), static_cast<long long>(different),
                  widest_gap, moved);
    return text;
  }
};

inline PageComparison ComparePages(const PageChoices& one, const PageChoices& two, int k_dim) {
  const double gamma = k_dim * 0x1p-24 / (1 - k_dim * 0x1p-24);
  PageComparison result;
  result.same_keys = one.size() == two.size();
  for (const auto& [key, a] : one) {
    const auto found = two.find(key);
    if (found == two.end() || found->second.scores.size() != a.scores.size()) {
      result.same_keys = false;
      continue;
    }
    const PageChoice& b = found->second;
    ++result.lists;
    result.pages += static_cast<int64_t>(a.pages.size());
    for (size_t p = 0; p < a.scores.size(); ++p) {
      if (a.sizes[p] > 0) result.moved = std::max(result.moved, std::abs(a.scores[p] - b.scores[p]) / a.sizes[p]);
    }
    std::vector<int32_t> only_a, only_b;
    std::set_difference(a.pages.begin(), a.pages.end(), b.pages.begin(), b.pages.end(), std::back_inserter(only_a));
    std::set_difference(b.pages.begin(), b.pages.end(), a.pages.begin(), a.pages.end(), std::back_inserter(only_b));
    result.different += static_cast<int64_t>(std::max(only_a.size(), only_b.size()));
    if (only_a.size() != only_b.size()) result.unexplained += 1;  // the budget is the same
    for (const int32_t x : only_a) {
      for (const int32_t y : only_b) {
        const double gap = a.scores[x] - a.scores[y];
        const double bound = std::abs(a.scores[x] - b.scores[x]) + std::abs(a.scores[y] - b.scores[y]) +
                             2 * gamma * (a.sizes[x] + a.sizes[y]);
        result.widest_gap = std::max(result.widest_gap, gap / std::max(a.sizes[x], 1e-30));
        if (gap > bound) ++result.unexplained;
      }
    }
  }
  return result;
}

}  // namespace quire
