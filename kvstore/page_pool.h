// PagePool: ids 0 … capacity − 1 with reference counts, a free list and reservations. It knows no memory and no
// sequences. One pool hands out the pages of a cache group, another its metadata groups.
//
// A reservation is a promise of so many ids: free ids never fall below what is promised, so AllocateReserved can't
// fail. Order: last freed, first handed out (its memory is warm); never used ones from the lowest id up. Not thread
// safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quire {

class PagePool {
 public:
  explicit PagePool(int32_t capacity = 0);

  int32_t capacity() const { return static_cast<int32_t>(refs_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t used() const { return capacity() - free(); }
  int64_t reserved() const { return reserved_; }
  // Free and promised to nobody.
  int64_t available() const { return free() - reserved_; }

  // Promises n more ids; false (and nothing changed) when fewer are available.
  bool Reserve(int64_t n);
  void Unreserve(int64_t n);

  // An id with one reference. CHECK-fails when available() (or reserved()) is 0: ask first.
  int32_t Allocate();
  int32_t AllocateReserved();

  void AddRef(int32_t id);
  // Drops one reference; true when it was the last and the id is free again.
  bool Release(int32_t id);
  // 0 for a free id.
  int32_t refs(int32_t id) const { return refs_[static_cast<size_t>(id)]; }

 private:
  std::vector<int32_t> refs_;  // [capacity]
  std::vector<int32_t> free_;  // a stack; the back is next
  int64_t reserved_ = 0;
};

}  // namespace quire
