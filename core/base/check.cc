#include "core/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace quire::internal {
namespace {
std::atomic<int> check_rank{0};
}  // namespace

void SetCheckRank(int rank) { check_rank = rank; }

void CheckFailed(const char* file, int line, const std::string& message) {
  std::fprintf(stderr, "quire: rank %d: %s:%d: %s\n", check_rank.load(), file, line, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace quire::internal
