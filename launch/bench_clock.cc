#include "launch/bench_clock.h"

#include <algorithm>

#include "core/base/clock.h"
#include "core/engine/available_memory.h"
#include "core/engine/engine_device.h"
#include "launch/bench.h"
#include "launch/flags.h"

namespace quire::launch {
namespace {

constexpr size_t kPassBytes = size_t{512} << 20;  // copied: ten times a GPU's last-level cache

}  // namespace

Result<std::unique_ptr<BenchDevice>> BenchDevice::Create(const std::string& device, int threads) {
  RETURN_IF_ERROR(CheckOneOf("--device", device, {"auto", "cpu", "cuda"}));
  std::unique_ptr<BenchDevice> made(new BenchDevice(threads));
  made->ctx_.pool = &made->pool_;
  EngineOptions options;
  options.device = device;
  ASSIGN_OR_RETURN(made->ctx_.device, ChooseLocalDevice(options, 0, 1));
  if (made->ctx_.device.kind == DeviceKind::kCuda) {
    ASSIGN_OR_RETURN(made->session_, DeviceSession::Create(made->ctx_.device));
    made->ctx_.session = made->session_.get();
    made->ctx_.stream = made->session_->stream();
  }
  return made;
}

Result<MachineRates> BenchDevice::Measure(double seconds) const {
  if (gpu()) return MeasureGpu(*session_, seconds);
  return MeasureRates(ctx_, seconds);
}

Result<size_t> BenchDevice::FreeBytes() const {
  if (!gpu()) return AvailableMemory();
  ASSIGN_OR_RETURN(const DeviceInfo info, DescribeDevice(ctx_.device));
  return info.free_bytes;
}

Result<BenchClock> BenchClock::Create(const Context& ctx) {
  BenchClock clock(ctx);
  if (ctx.session == nullptr) {
    ASSIGN_OR_RETURN(clock.probe_, ReadProbe::Create(ctx));
    return clock;
  }
  ASSIGN_OR_RETURN(clock.from_, Buffer::Create(kPassBytes, ctx.device));
  ASSIGN_OR_RETURN(clock.to_, Buffer::Create(kPassBytes, ctx.device));
  for (OwnedEvent* event : {&clock.pass_, &clock.begin_, &clock.end_}) {
    ASSIGN_OR_RETURN(*event, OwnedEvent::Create(ctx.device));
  }
  return clock;
}

Result<double> BenchClock::Time(const std::function<void()>& run) {
  if (ctx_.session != nullptr) return TimeOnGpu(run);
  probe_->Run(ctx_);
  const double start = NowSeconds();
  run();
  return NowSeconds() - start;
}

Result<double> BenchClock::TimeOnGpu(const std::function<void()>& run) {
  RETURN_IF_ERROR(pass_.Record(ctx_.stream));
  RETURN_IF_ERROR(CopyOnDevice(ctx_.device, to_.data(), from_.data(), kPassBytes, ctx_.stream));
  RETURN_IF_ERROR(begin_.Record(ctx_.stream));
  run();
  RETURN_IF_ERROR(end_.Record(ctx_.stream));
  RETURN_IF_ERROR(ctx_.session->Synchronize());
  ASSIGN_OR_RETURN(const double pass, begin_.SecondsSince(pass_));
  pass_seconds_.push_back(pass);
  return end_.SecondsSince(begin_);
}

void BenchClock::TakeBandwidth(MachineRates* rates) const {
  if (probe_) {
    rates->read_gb_s = probe_->MedianGbS();
  } else if (!pass_seconds_.empty()) {
    rates->copy_gb_s = rates->read_gb_s = 2.0 * static_cast<double>(kPassBytes) / Median(pass_seconds_) * 1e-9;
  }
}

}  // namespace quire::launch
