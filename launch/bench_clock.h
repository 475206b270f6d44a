// Where a bench of kernels runs, and how it times them: on the CPU by the clock, on a GPU by events in its stream. A pass over
// more memory than the last-level cache holds goes before every timing: it leaves nothing of earlier work in the caches, gives
// the bandwidth of the same minutes, and on a GPU hides what launching costs.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "core/base/thread_pool.h"
#include "kernels/device_session.h"
#include "kernels/machine.h"

namespace quire::launch {

// One device by itself, without an engine or a group.
class BenchDevice {
 public:
  // device: auto, cpu or cuda (then the first GPU); threads as in --threads.
  static Result<std::unique_ptr<BenchDevice>> Create(const std::string& device, int threads);
  const Context& ctx() const { return ctx_; }
  bool gpu() const { return session_ != nullptr; }
  int threads() const { return pool_.threads(); }
  // Read and copy bandwidth and the rate of products, taking about `seconds`.
  Result<MachineRates> Measure(double seconds) const;
  // Bytes that are free.
  Result<size_t> FreeBytes() const;

 private:
  explicit BenchDevice(int threads) : pool_(threads) {}
  ThreadPool pool_;
  std::unique_ptr<DeviceSession> session_;
  Context ctx_;
};

class BenchClock {
 public:
  static Result<BenchClock> Create(const Context& ctx);
  // Seconds of run(), which on a GPU enqueues work on the context's stream. The work's own errors are returned.
  Result<double> Time(const std::function<void()>& run);
  // Takes the median of the passes so far into the rates: of reading on the CPU, of copying (which stands for both) on a GPU.
  void TakeBandwidth(MachineRates* rates) const;

 private:
  explicit BenchClock(const Context& ctx) : ctx_(ctx) {}
  Result<double> TimeOnGpu(const std::function<void()>& run);

  Context ctx_;
  std::optional<ReadProbe> probe_;  // on the CPU
  Buffer from_, to_;                // on a GPU, as all below
  OwnedEvent pass_, begin_, end_;
  std::vector<double> pass_seconds_;
};

}  // namespace quire::launch
