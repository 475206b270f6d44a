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

// Thread safe but set_hook. `count` only grows: one for every tensor loaded, layer run, plan received.
class ProgressMark {
 public:
  void Enter(Phase phase) {
    phase_.store(phase, std::memory_order_relaxed);
    Advance();
    if (hook_ != nullptr) hook_(hook_context_, phase);
  }
  void Advance() { count_.fetch_add(1, std::memory_order_release); }

  // Around every collective: a rank that waits for its peers is not the one that holds them up.
  void BeginCollective() { collectives_.fetch_add(1, std::memory_order_release); }
  void EndCollective() { collectives_.fetch_add(1, std::memory_order_release); }
  // Two for every collective done, so odd while this rank is inside one.
  uint64_t collectives() const { return collectives_.load(std::memory_order_acquire); }

  Phase phase() const { return phase_.load(std::memory_order_relaxed); }
  uint64_t count() const { return count_.load(std::memory_order_acquire); }

  // Called by Enter on the thread that works; null: none. For tests, which make ranks fail in a phase of their choice.
  // Set before the rank works, or from a thread that does.
  using Hook = void (*)(void* context, Phase phase);
  void set_hook(Hook hook, void* context) {
    hook_context_ = context;
    hook_ = hook;
  }

 private:
  std::atomic<Phase> phase_{Phase::kStart};
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> collectives_{0};
  Hook hook_ = nullptr;
  void* hook_context_ = nullptr;
};

}  // namespace quire
