#include "kvstore/table_batch.h"

namespace quire {

void TableBatch::Clear() {
  page_ids.clear();
  page_begin.assign(1, 0);
  group_ids.clear();
  group_begin.assign(1, 0);
}

int TableBatch::Add(const PageTable& table) {
  page_ids.insert(page_ids.end(), table.pages.begin(), table.pages.end());
  page_begin.push_back(static_cast<int32_t>(page_ids.size()));
  group_ids.insert(group_ids.end(), table.groups.begin(), table.groups.end());
  group_begin.push_back(static_cast<int32_t>(group_ids.size()));
  return num_seqs() - 1;
}

PageTableView TableBatch::View(const PageFormat& format, bool metadata) const {
  PageTableView view;
  view.format = format;
  view.page_ids = page_ids.data();
  view.page_begin = page_begin.data();
  view.group_ids = metadata ? group_ids.data() : nullptr;
  view.group_begin = metadata ? group_begin.data() : nullptr;
  view.num_seqs = num_seqs();
  return view;
}

}  // namespace quire
