// See block.h.
#include "tests/kernels/cuda/emulator/block.h"

#include <cstring>
#include <map>

#include "core/base/check.h"

namespace quire::emulator {

thread_local Thread* current = nullptr;

Thread& Current() {
  CHECK(current != nullptr);
  return *current;
}

std::string Line(const Where& w) { return std::string(w.file_name()) + ":" + std::to_string(w.line()); }
bool Same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string BlockName(const Block& b) {
  const auto& at = b.threads[0].place.block;
  return std::string(b.kernel) + ", block (" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " +
         std::to_string(at[2]) + ")";
}

void SetError(Block& b, const std::string& what) {
  if (b.error.empty()) b.error = BlockName(b) + ": " + what;
  for (Thread& t : b.threads) {
    if (!t.waiting) continue;
    t.waiting = false;
    if (!b.os_threads) b.runnable.push_back(t.place.thread);
  }
  b.waiting = 0;
  b.changed.notify_all();
}

void Wake(Block& b, int thread) {
  Thread& t = b.threads[static_cast<size_t>(thread)];
  if (!t.waiting) return;
  t.waiting = false;
  --b.waiting;
  if (!b.os_threads) b.runnable.push_back(thread);
}

std::string StuckMessage(const Block& b) {
  std::map<std::string, std::vector<int>> places;
  for (const Thread& t : b.threads) places[t.left ? "left the kernel" : "wait for " + std::string(t.waits_for) + " at " + Line(t.waits_at)].push_back(t.place.thread);
  std::string text = "not all threads reach it:";
  for (const auto& [what, threads] : places) {
    text += " threads";
    for (size_t i = 0; i < threads.size();) {
      size_t j = i;
      while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
      text += (i == 0 ? " " : ", ") + std::to_string(threads[i]) + (j > i ? "-" + std::to_string(threads[j]) : "");
      i = j + 1;
    }
    text += " " + what + ";";
  }
  return text;
}

void CheckStuck(Block& b) {
  if (b.error.empty() && b.waiting > 0 && b.waiting + b.left == static_cast<int>(b.threads.size())) {
    SetError(b, StuckMessage(b));
  }
}

void Wait(Block& b, Thread& t, std::unique_lock<std::mutex>& lock, std::string_view waits_for, const Where& where) {
  t.waits_for = waits_for;
  t.waits_at = where;
  t.waiting = true;
  ++b.waiting;
  if (b.os_threads) {
    CheckStuck(b);
    b.changed.wait(lock, [&] { return !t.waiting; });
  } else {
    t.fiber->Suspend();
    current = &t;
  }
}

std::unique_lock<std::mutex> Lock(Block& b) {
  return b.os_threads ? std::unique_lock<std::mutex>(b.mutex) : std::unique_lock<std::mutex>();
}

void FailLocked(Block& b, const std::string& what) {
  SetError(b, what);
  throw Leave{};
}

std::string ThreadAt(int thread, const Where& where) { return "thread " + std::to_string(thread) + " at " + Line(where); }

const ThreadPlace& Place() { return Current().place; }

void Fail(const std::string& what, const Where& where) {
  const Hidden hidden;
  Thread& t = Current();
  auto lock = Lock(*t.block);
  FailLocked(*t.block, ThreadAt(t.place.thread, where) + ": " + what);
}

void CheckAligned(const void* p, size_t bytes, const Where& where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    Fail("an access of " + std::to_string(bytes) + " bytes at an address that ends in " +
             std::to_string(reinterpret_cast<uintptr_t>(p) % 16) + " (mod 16) is misaligned", where);
  }
}

void CheckShared(const void* p, size_t bytes, const Where& where) {
  const ThreadPlace& place = Current().place;
  const auto* at = static_cast<const std::byte*>(p);
  if (at < place.shared || at + bytes > place.shared + place.shared_bytes) {
    Fail("an address outside the block's " + std::to_string(place.shared_bytes) + " bytes of shared memory", where);
  }
}

uint64_t Tick() {
  thread_local uint64_t ticks = 0;
  return ++ticks;
}

}  // namespace quire::emulator
