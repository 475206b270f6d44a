// PageTable: where one sequence's tokens lie in one cache group. Plain data; KvBooks keeps it right.
#pragma once

#include <cstdint>
#include <vector>

namespace quire {

struct PageTable {
  int64_t length = 0;  // tokens in the cache, those of the step being planned included
  // Logical → physical page, ceil(length / page_size) entries; −1 before first_live_page.
  std::vector<int32_t> pages;
  // Logical → physical metadata group, ceil(pages / 16) entries; −1 where all 16 pages are −1. Empty without metadata.
  std::vector<int32_t> groups;
  int64_t first_live_page = 0;  // pages before it fell out of the window
};

}  // namespace quire
