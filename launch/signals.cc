// See signals.h.
#include "launch/signals.h"

#include <atomic>
#include <csignal>

namespace quire::launch {
namespace {

// The system runs a handler on any thread, so sig_atomic_t would not do: that is for one thread alone.
std::atomic<bool> g_interrupted = false;
std::atomic<bool> g_drain = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // else a handler may not touch it

void OnSignal(int) { g_interrupted = true; }
void OnDrain(int) { g_drain = true; }

}  // namespace

void InstallSignalHandlers() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  action.sa_flags = 0;
  sigaction(SIGPIPE, &action, nullptr);
}

bool Interrupted() { return g_interrupted; }

void InstallDrainSignal() {
  struct sigaction action {};
  action.sa_handler = OnDrain;
  sigaction(SIGUSR1, &action, nullptr);
}

bool DrainRequested() { return g_drain; }

}  // namespace quire::launch
