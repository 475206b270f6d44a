// What threads do together: warp operations, barriers, fences; and asynchronous copies, which are a thread's own.
#include <cstring>
#include <string>
#include <utility>

#include "tests/kernels/cuda/emulator/block.h"

namespace quire::emulator {

// ----------------------------------------------------------------------------------------------------------- warp operations

void WarpArrive(uint32_t mask, const WarpOperation& operation, Exchange* exchange, const Where& where) {
  const Hidden hidden;
  Thread& t = Current();
  Block& b = *t.block;
  auto lock = Lock(b);
  if (!b.error.empty()) throw Leave{};
  const int me = t.place.thread, lane = me % 32, first = me - lane;
  const uint32_t bit = 1u << lane;
  const char* name = operation.name;
  if ((mask & bit) == 0) FailLocked(b, ThreadAt(me, where) + ": lane " + std::to_string(lane) + " isn't in its own mask of " + std::string(name));
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) != 0 && b.threads[static_cast<size_t>(first + l)].left) {
      FailLocked(b, ThreadAt(me, where) + ": " + std::string(name) + " waits for lane " + std::to_string(l) + ", which has left the kernel");
    }
  }
  auto& pending = b.warps[static_cast<size_t>(me / 32)];
  size_t at = pending.size();
  for (size_t i = 0; i < pending.size(); ++i) {
    const PendingWarp& p = pending[i];
    if ((p.mask & mask) == 0) continue;
    if (p.mask != mask || std::strcmp(p.name, name) != 0 || !Same(p.where, where)) {
      int other = 0;
      while ((p.here >> other & 1) == 0) ++other;
      FailLocked(b, "divergent warp: " + ThreadAt(first + other, p.where) + " is in " + std::string(p.name) + " with mask " +
                        std::to_string(p.mask) + ", " + ThreadAt(me, where) + " in " + std::string(name) + " with mask " +
                        std::to_string(mask));
    }
    at = i;
  }
  if (at == pending.size()) {
    pending.emplace_back();
    pending.back().mask = mask;
    pending.back().name = name;
    pending.back().where = where;
  }
  PendingWarp& p = pending[at];
  p.here |= bit;
  p.lanes[lane] = exchange;
  if (p.here != mask) {
    Wait(b, t, lock, name, where);
    if (!b.error.empty()) throw Leave{};
    return;
  }
  const char* broken = operation.finish != nullptr ? operation.finish(p.lanes) : nullptr;
  pending.erase(pending.begin() + static_cast<int64_t>(at));
  if (broken != nullptr) FailLocked(b, ThreadAt(me, where) + ": " + name + ": " + broken);
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) != 0) Wake(b, first + l);
  }
  if (b.os_threads) b.changed.notify_all();
}

void WarpBarrier(uint32_t mask, const Where& where) {
  Thread& t = Current();
  const size_t warp = static_cast<size_t>(t.place.thread / 32);
  uint64_t& round = t.block->warp_rounds[warp][static_cast<size_t>(t.place.thread % 32)];
  char* tag = &t.block->warp_tags[warp][mask == simt::kFullMask ? round % 2 : 2];
  ReleaseOrder(tag);
  WarpArrive(mask, {"SyncWarp", nullptr}, nullptr, where);
  AcquireOrder(tag);
  const Hidden hidden;
  if (mask == simt::kFullMask) ++round;
}

// ---------------------------------------------------------------------------------------------------------- block barriers

void BlockBarrier(int id, int threads, bool wait, const Where& where) {
  Thread& t = Current();
  Block& b = *t.block;
  const int me = t.place.thread;
  char* tag = nullptr;
  static constexpr std::string_view kNames[] = {"SyncThreads", "barrier 1",  "barrier 2",  "barrier 3",
                                                "barrier 4",   "barrier 5",  "barrier 6",  "barrier 7",
                                                "barrier 8",   "barrier 9",  "barrier 10", "barrier 11",
                                                "barrier 12",  "barrier 13", "barrier 14", "barrier 15"};
  {
    const Hidden hidden;
    auto lock = Lock(b);
    if (!b.error.empty()) throw Leave{};
    if (id < 0 || id > 15) FailLocked(b, ThreadAt(me, where) + ": barrier " + std::to_string(id) + "; ids are 1 to 15");
    const std::string_view name = kNames[id];
    if (threads % 32 != 0 || threads < 32 || threads > static_cast<int>(b.threads.size())) {
      FailLocked(b, ThreadAt(me, where) + ": " + std::string(name) + " of " + std::to_string(threads) + " threads in a block of " +
                        std::to_string(b.threads.size()) + "; it takes a multiple of 32, no more than the block has");
    }
    Barrier& barrier = b.barriers[id];
    tag = &barrier.tags[barrier.round % 2];
    if (id == 0 && b.left > 0) {
      FailLocked(b, ThreadAt(me, where) + " waits for all in SyncThreads, but " + std::to_string(b.left) +
                        " threads have left the kernel");
    }
    if (barrier.arrived > 0) {
      if (barrier.expected != threads) {
        FailLocked(b, std::string(name) + ": " + ThreadAt(barrier.first_thread, barrier.where) + " says " +
                          std::to_string(barrier.expected) + " threads, " + ThreadAt(me, where) + " " + std::to_string(threads));
      }
      if (id == 0 && !Same(barrier.where, where)) {
        FailLocked(b, "different barriers meet: " + ThreadAt(barrier.first_thread, barrier.where) + ", " + ThreadAt(me, where));
      }
    }
  }
  ReleaseOrder(tag);
  {
    const Hidden hidden;
    auto lock = Lock(b);
    if (!b.error.empty()) throw Leave{};
    Barrier& barrier = b.barriers[id];
    if (barrier.arrived == 0) {
      barrier.expected = threads;
      barrier.where = where;
      barrier.first_thread = me;
    }
    ++barrier.arrived;
    if (barrier.arrived < barrier.expected) {
      if (!wait) return;
      barrier.waiting.push_back(me);
      Wait(b, t, lock, kNames[id], where);
      if (!b.error.empty()) throw Leave{};
    } else {
      for (const int thread : barrier.waiting) Wake(b, thread);
      barrier.waiting.clear();
      barrier.arrived = 0;
      ++barrier.round;
      if (b.os_threads) b.changed.notify_all();
    }
  }
  if (wait) AcquireOrder(tag);
}

void Fence() {
  Block& b = *Current().block;
  ReleaseOrder(&b.fence_tag);
  AcquireOrder(&b.fence_tag);
}

// ------------------------------------------------------------------------------------------------------ asynchronous copies

void CopyAsync(void* shared, const void* global, int bytes, bool there, const Where& where) {
  Thread& t = Current();
  CheckShared(shared, static_cast<size_t>(bytes), where);
  CheckAligned(shared, static_cast<size_t>(bytes), where);
  if (there) {
    CheckAligned(global, static_cast<size_t>(bytes), where);
    const auto* from = static_cast<const std::byte*>(global);
    if (from >= t.place.shared && from < t.place.shared + t.place.shared_bytes) {
      Fail("an asynchronous copy reads shared memory; its source is global memory", where);
    }
    // Read here too, so that a bad address is found at the line that gave it.
    [[maybe_unused]] volatile std::byte probe = from[bytes - 1];
    probe = from[0];
  }
  std::memset(shared, 0xff, static_cast<size_t>(bytes));  // whoever reads before the wait finds NaN
  t.open.push_back({shared, global, bytes, there});
  t.copy_where = where;
}

void CopyCommit() {
  Thread& t = Current();
  t.copies.push_back(std::move(t.open));
  t.open.clear();
}

void CopyWait(int groups) {
  Thread& t = Current();
  while (static_cast<int>(t.copies.size()) > groups) {
    for (const Copy& c : t.copies.front()) {
      if (c.there) {
        std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
      } else {
        std::memset(c.to, 0, static_cast<size_t>(c.bytes));
      }
    }
    t.copies.erase(t.copies.begin());
  }
}

}  // namespace quire::emulator
