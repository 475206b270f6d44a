// Monotonic seconds.
#pragma once

#include <chrono>

namespace quire {

inline double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace quire
