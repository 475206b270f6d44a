// CHECK: our own bugs. Prints the condition, both values, the rank and file:line, then aborts.
// Whatever the outside world can cause is a Status instead (status.h).
#pragma once

#include <sstream>
#include <string>

namespace quire::internal {

// Ends the process; `message` says what did not hold.
[[noreturn]] void CheckFailed(const char* file, int line, const std::string& message);

// Set once at start-up, so that a failed CHECK names the rank that failed. 0 until set.
void SetCheckRank(int rank);

template <typename A, typename B>
[[noreturn]] void CheckOpFailed(const char* file, int line, const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out << "CHECK failed: " << text << " (" << a << " vs " << b << ")";
  CheckFailed(file, line, out.str());
}

}  // namespace quire::internal

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) [[unlikely]]                                                             \
      ::quire::internal::CheckFailed(__FILE__, __LINE__, "CHECK failed: " #condition);         \
  } while (false)

#define QUIRE_CHECK_OP(a, b, op)                                                               \
  do {                                                                                         \
    const auto& quire_a_ = (a);                                                                \
    const auto& quire_b_ = (b);                                                                \
    if (!(quire_a_ op quire_b_)) [[unlikely]]                                                  \
      ::quire::internal::CheckOpFailed(__FILE__, __LINE__, #a " " #op " " #b, quire_a_, quire_b_); \
  } while (false)

#define CHECK_EQ(a, b) QUIRE_CHECK_OP(a, b, ==)
#define CHECK_NE(a, b) QUIRE_CHECK_OP(a, b, !=)
#define CHECK_LT(a, b) QUIRE_CHECK_OP(a, b, <)
#define CHECK_LE(a, b) QUIRE_CHECK_OP(a, b, <=)
#define CHECK_GT(a, b) QUIRE_CHECK_OP(a, b, >)
#define CHECK_GE(a, b) QUIRE_CHECK_OP(a, b, >=)
