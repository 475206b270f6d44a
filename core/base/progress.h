// What a rank is doing and how far it has come. Written by the thread that works, read by others (a monitor that must
// tell a long step from a hang). Passed in Context; null where nobody looks.
#pragma once

#include <atomic>
#include <cstdint>

namespace quire {

enum class Phase : uint32_t { kStart, kLoad, kIdle, kBroadcast, kPrefill, kDecode, kStop };

constexpr const char* PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kStart: return "start";
    case Phase::kLoad: return "load";
    case Phase::kIdle: return "idle";
    case Phase::kBroadcast: return "broadcast";
    case Phase::kPrefill: return "prefill";
    case Phase::kDecode: return "decode";
    case Phase::kStop: return "stop";
  }
  return "?";
}

// Thread safe. `count` only grows: one for every tensor loaded, layer run, plan received.
class ProgressMark {
 public:
  void Enter(Phase phase) {
    phase_.store(phase, std::memory_order_relaxed);
    Advance();
  }
  void Advance() { count_.fetch_add(1, std::memory_order_release); }
  Phase phase() const { return phase_.load(std::memory_order_relaxed); }
  uint64_t count() const { return count_.load(std::memory_order_acquire); }

 private:
  std::atomic<Phase> phase_{Phase::kStart};
  std::atomic<uint64_t> count_{0};
};

}  // namespace quire
