#include "kvstore/table_batch.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

TEST(TableBatch, LaysTablesEndToEndAndIsReusable) {
  const PageFormat format = *PageFormat::Create(DType::kBF16, 16, 2, 8, 8);
  TableBatch batch;
  for (int round = 0; round < 2; ++round) {
    batch.Clear();
    EXPECT_EQ(batch.num_seqs(), 0);
    EXPECT_EQ(batch.Add({.length = 33, .pages = {-1, 7, 3}, .groups = {5}, .first_live_page = 1}), 0);
    EXPECT_EQ(batch.Add({}), 1);
    EXPECT_EQ(batch.Add({.length = 1, .pages = {4}, .groups = {0}}), 2);
    const PageTableView view = batch.View(format, true);
    EXPECT_EQ(view.num_seqs, 3);
    EXPECT_EQ(view.format.page_size, 16);
    EXPECT_EQ(std::vector<int32_t>(view.page_begin, view.page_begin + 4), (std::vector<int32_t>{0, 3, 3, 4}));
    EXPECT_EQ(std::vector<int32_t>(view.page_ids, view.page_ids + 4), (std::vector<int32_t>{-1, 7, 3, 4}));
    EXPECT_EQ(std::vector<int32_t>(view.group_begin, view.group_begin + 4), (std::vector<int32_t>{0, 1, 1, 2}));
    EXPECT_EQ(std::vector<int32_t>(view.group_ids, view.group_ids + 2), (std::vector<int32_t>{5, 0}));
  }
  EXPECT_EQ(batch.View(format, false).group_ids, nullptr);
  EXPECT_EQ(batch.View(format, false).group_begin, nullptr);
}

}  // namespace
}  // namespace quire
