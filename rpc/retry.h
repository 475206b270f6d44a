// Retry: when a client tries again what a broken connection, or a service that is UNAVAILABLE, has ended. Internal to
// rpc/.
#pragma once

#include <algorithm>
#include <optional>

namespace quire::rpc {

class Retry {
 public:
  explicit Retry(double retry_s) : retry_s_(retry_s) {}

  // Something has come: the connection is as good as new.
  void Progress() {
    broken_ = false;
    pause_ = kFirstPause;
  }
  // Of an attempt that has failed: seconds until the next one. Nothing when that would be more than retry_s after the
  // first failure since something came last.
  std::optional<double> Pause(double now) {
    if (!broken_) since_ = now;
    broken_ = true;
    const double pause = pause_;
    if (now + pause > since_ + retry_s_) return std::nullopt;
    pause_ = std::min(kLastPause, 2 * pause_);
    return pause;
  }

 private:
  static constexpr double kFirstPause = 0.05, kLastPause = 1;

  const double retry_s_;
  double pause_ = kFirstPause;
  bool broken_ = false;  // since `since_`
  double since_ = 0;
};

}  // namespace quire::rpc
