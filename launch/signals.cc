// See signals.h.
#include "launch/signals.h"

#include <csignal>

namespace quire::launch {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;
volatile std::sig_atomic_t g_drain = 0;

void OnSignal(int) { g_interrupted = 1; }
void OnDrain(int) { g_drain = 1; }

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

bool Interrupted() { return g_interrupted != 0; }

void InstallDrainSignal() {
  struct sigaction action {};
  action.sa_handler = OnDrain;
  sigaction(SIGUSR1, &action, nullptr);
}

bool DrainRequested() { return g_drain != 0; }

}  // namespace quire::launch
