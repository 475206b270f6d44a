// Policies that choose by the attention paid before: what they remember, over steps whose masses the test makes up and
// over steps of the kernels, against references that work from a log of all rows.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/attention_decode.h"
#include "kernels/reference/history.h"
#include "kernels/reference/quest.h"
#include "kernels/selection/budget.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

std::vector<double> ReferenceScores(const std::string& spec, const reference::MassLog& log, int64_t pages) {
  if (spec.starts_with("h2o")) return reference::H2oScores(log, pages);
  if (spec.starts_with("tova")) return reference::TovaScores(log, pages);
  const size_t at = spec.find("rows=");
  return reference::SwaScores(log, pages, at == std::string::npos ? 4 : std::stoi(spec.substr(at + 5)));
}

// The list that a budget makes of scores.
std::vector<int32_t> ListOf(const std::vector<double>& scores, const PageBudget& budget, int64_t length,
                            int page_size) {
  const ForcedPages f = ForcedPages::Create(budget, length, page_size);
  std::vector<int32_t> list;
  for (int page = 0; page < f.sinks; ++page) list.push_back(page);
  for (int32_t page : reference::TopPages({scores.begin() + f.sinks, scores.begin() + f.recent}, f.free)) {
    list.push_back(page + f.sinks);
  }
  for (int page = f.recent; page < f.pages; ++page) list.push_back(page);
  return list;
}

class HistoryPolicies : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, HistoryPolicies,
                         ::testing::Values("h2o:", "swa:", "swa:rows=1:", "swa:rows=7:", "tova:"));

// Masses that are multiples of 2⁻¹⁰ add up without rounding, so lists must be equal, ties included.
TEST_P(HistoryPolicies, ListsAreTheReferencesOverAWholeSequenceHoweverItsPromptIsCut) {
  for (const int page_size : {1, 3, 16}) {
    const int prompt = 5 * page_size + 2, length = 22 * page_size + 1;
    const int64_t most_pages = (length + page_size - 1) / page_size;
    const PageBudget budget = PageBudget::Create(8 * page_size, page_size, 2 * page_size, page_size);
    const auto policy = Make(std::string(GetParam()) + "dense_layers=0:token_budget=" + std::to_string(8 * page_size) +
                                 ":recent_tokens=" + std::to_string(2 * page_size),
                             page_size);
    PagedCache cache(DType::kF32, page_size, 1, 4, 4, {length}, 1);
    for (const int piece : {prompt, 1, 4}) {
      std::mt19937_64 random(7);
      const int width = policy->Declare().history, rows = policy->Declare().history_rows;
      std::vector<float> values(static_cast<size_t>(most_pages * width));
      PageHistory history{values.data(), most_pages * width, 1, 0, width};
      reference::MassLog log;
      std::vector<std::vector<float>> masses;
      std::set<int32_t> left_out;
      for (int pos = 0; pos < length; ++pos) {
        const int64_t pages = pos / page_size + 1;
        // History grows by chunks: the pages of later rows are there while earlier rows are shown.
        const int chunk_end = pos < prompt ? std::min(prompt, (pos / piece + 1) * piece) : pos + 1;
        history.pages = std::max<int64_t>(history.pages, (chunk_end + page_size - 1) / page_size);
        std::vector<int32_t> list;
        AttentionMass row;
        row.position = pos;
        reference::MassRow logged{std::vector<double>(static_cast<size_t>(pages)),
                                  std::vector<bool>(static_cast<size_t>(pages), true)};
        if (pos >= prompt && !policy->IsDense(pos + 1, 0, page_size)) {
          Step step(cache, 1, {0}, {pos + 1}, 3);
          step.p.history = &history;
          list = Select(*policy, step.p, 2).List(0);
          const std::vector<double> scores = ReferenceScores(GetParam(), log, pages);
          ASSERT_EQ(list, ListOf(scores, budget, pos + 1, page_size)) << pos << " page size " << page_size;
          row.read = list.data();
          row.read_count = static_cast<int>(list.size());
          logged.read.assign(static_cast<size_t>(pages), false);
          for (const int32_t page : list) logged.read[static_cast<size_t>(page)] = true;
        }
        std::vector<float> mass(static_cast<size_t>(pages));
        for (int64_t page = 0; page < pages; ++page) {
          if (!logged.read[static_cast<size_t>(page)]) continue;
          mass[static_cast<size_t>(page)] = static_cast<float>(random() % 8) / 1024;  // few values: ties
          logged.mass[static_cast<size_t>(page)] = mass[static_cast<size_t>(page)];
        }
        log.push_back(logged);
        row.mass = mass.data();
        const bool shown = pos >= prompt || rows == 0 || pos >= chunk_end - rows;
        if (shown) policy->Remember(row, 0, &history);
      }
      ASSERT_EQ(log.size(), static_cast<size_t>(length));
    }
  }
}

TEST_P(HistoryPolicies, HeadsRememberApart) {
  const auto policy = Make(std::string(GetParam()) + "token_budget=64", 16);
  const int width = policy->Declare().history;
  std::vector<float> values(static_cast<size_t>(2 * 10 * width));
  PageHistory history{values.data(), 10 * width, 2, 10, width};
  const std::vector<float> mass(10, 0.25f);
  AttentionMass row;
  row.position = 159;
  row.mass = mass.data();
  policy->Remember(row, 1, &history);
  for (int64_t i = 0; i < 10 * width; ++i) ASSERT_EQ(values[static_cast<size_t>(i)], 0.0f);
  EXPECT_GT(*std::max_element(values.begin() + 10 * width, values.end()), 0.0f);
}

TEST(Tova, APageThatWasLeftOutStaysOut) {
  const auto policy = Make("tova:token_budget=5:sink_tokens=1:recent_tokens=1:dense_layers=0", 1);
  PagedCache cache(DType::kF32, 1, 1, 4, 4, {40}, 1);
  std::vector<float> values(40);
  PageHistory history{values.data(), 40, 1, 0, 1};
  std::mt19937_64 random(5);
  std::set<int32_t> gone;
  for (int pos = 10; pos < 40; ++pos) {
    history.pages = pos + 1;
    std::vector<float> mass(static_cast<size_t>(pos + 1));
    AttentionMass row;
    std::vector<int32_t> list;
    if (pos > 10) {
      Step step(cache, 1, {0}, {pos + 1}, 3);
      step.p.history = &history;
      list = Select(*policy, step.p, 1).List(0);
      EXPECT_EQ(list.size(), 5u);
      const std::set<int32_t> chosen(list.begin(), list.end());
      for (const int32_t page : list) EXPECT_FALSE(gone.contains(page)) << page << " at " << pos;
      for (int32_t page = 0; page <= pos; ++page) {
        if (!chosen.contains(page)) gone.insert(page);
      }
      row.read = list.data();
      row.read_count = static_cast<int>(list.size());
      // Even weights of 0 keep a page ahead of those that are gone.
      for (const int32_t page : list) mass[static_cast<size_t>(page)] = random() % 3 == 0 ? 0.0f : 0.5f;
    } else {
      for (float& m : mass) m = 0.1f;
    }
    row.position = pos;
    row.mass = mass.data();
    policy->Remember(row, 0, &history);
  }
  EXPECT_EQ(gone.size(), 35u);
}

TEST(Swa, WhatARowDidNotReadKeepsItsLastMass) {
  const auto policy = Make("swa:token_budget=64:rows=3", 16);
  std::vector<float> values(3 * 4);
  PageHistory history{values.data(), 12, 1, 4, 3};
  const std::vector<float> first = {1, 2, 3, 4}, later = {0, 0, 0, 8};
  const std::vector<int32_t> read = {3};
  policy->Remember({.position = 60, .mass = first.data()}, 0, &history);
  policy->Remember({.position = 61, .mass = later.data(), .read = read.data(), .read_count = 1}, 0, &history);
  policy->Remember({.position = 62, .mass = later.data(), .read = read.data(), .read_count = 1}, 0, &history);
  EXPECT_EQ(values, (std::vector<float>{1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 8, 8}));
}

}  // namespace
}  // namespace quire
