#include "kvstore/page_pool.h"

#include "core/base/check.h"

namespace quire {

PagePool::PagePool(int32_t capacity) : refs_(static_cast<size_t>(capacity), 0) {
  free_.reserve(static_cast<size_t>(capacity));
  for (int32_t id = capacity - 1; id >= 0; --id) free_.push_back(id);
}

bool PagePool::Reserve(int64_t n) {
  CHECK_GE(n, 0);
  if (n > available()) return false;
  reserved_ += n;
  return true;
}

void PagePool::Unreserve(int64_t n) {
  CHECK_GE(n, 0);
  CHECK_LE(n, reserved_);
  reserved_ -= n;
}

int32_t PagePool::Allocate() {
  CHECK_GT(available(), 0);
  const int32_t id = free_.back();
  free_.pop_back();
  CHECK_EQ(refs(id), 0);
  refs_[static_cast<size_t>(id)] = 1;
  return id;
}

int32_t PagePool::AllocateReserved() {
  Unreserve(1);
  return Allocate();
}

void PagePool::AddRef(int32_t id) {
  CHECK_GT(refs(id), 0);
  ++refs_[static_cast<size_t>(id)];
}

bool PagePool::Release(int32_t id) {
  CHECK_GT(refs(id), 0);
  if (--refs_[static_cast<size_t>(id)] > 0) return false;
  free_.push_back(id);
  return true;
}

}  // namespace quire
