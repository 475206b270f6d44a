// How the emulator runs the launches of this thread's tests, and what it throws when a kernel breaks a rule.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace quire::emulator {

struct Options {
  uint64_t seed = 1;        // order of blocks, and of a block's threads wherever several can run
  bool os_threads = false;  // a thread of the system per CUDA thread, for ThreadSanitizer; tiny shapes only
  size_t max_shared_bytes = 227 * 1024;  // of a block; an H200's
};

// The options of launches made by this thread while the object lives.
class ScopedOptions {
 public:
  explicit ScopedOptions(const Options& options);
  ~ScopedOptions();
  ScopedOptions(const ScopedOptions&) = delete;
  ScopedOptions& operator=(const ScopedOptions&) = delete;
  static const Options& Current();

 private:
  Options before_;
};

// Thrown by Launch. The message names the kernel, the block, the rule, and threads with their lines.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace quire::emulator
