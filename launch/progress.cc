// See progress.h.
#include "launch/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "core/base/clock.h"

namespace quire::launch {
namespace {
constexpr double kSilentSeconds = 2.0;
constexpr double kTerminalSeconds = 1.0;
constexpr double kFileSeconds = 5.0;
}  // namespace

Progress::Progress(std::string what)
    : what_(std::move(what)), start_(NowSeconds()), terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { Finish(); }

void Progress::SetWhat(std::string what) { what_ = std::move(what); }

void Progress::Update(double fraction, const std::string& detail) {
  const double now = NowSeconds();
  if (now - start_ < kSilentSeconds || now - last_ < (terminal_ ? kTerminalSeconds : kFileSeconds)) return;
  last_ = now;
  const int percent = static_cast<int>(100.0 * std::clamp(fraction, 0.0, 1.0));
  std::fprintf(stderr, "%squire: %s %d%%%s%s, %.0f s%s", terminal_ ? "\r\033[K" : "", what_.c_str(), percent,
               detail.empty() ? "" : ", ", detail.c_str(), now - start_, terminal_ ? "" : "\n");
  std::fflush(stderr);
  shown_ = terminal_;
}

void Progress::Finish() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
  shown_ = false;
}

}  // namespace quire::launch
