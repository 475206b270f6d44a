// Yardsticks: the fastest plain read, copy and matrix product that this machine shows us. Each is the best of several
// passes, for a pass can only lose to what else runs on the machine.
#include "kernels/machine.h"

#include <sys/sysinfo.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "core/base/tensor.h"
#include "kernels/cpu/onednn_matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/machine.cc"
#include "kernels/cpu/simd.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/cache_control.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quire::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Eight streams of kStreamBytes side by side: one alone doesn't keep enough lines under way (23 against 29 GB/s for one
// thread of a Zen 3). n is a multiple of eight streams; pointers are aligned to 64 bytes, here and below.
constexpr int64_t kStreamBytes = 64 << 10;
uint32_t ReadStream(const uint32_t* from, int64_t n) {
  const hn::ScalableTag<uint32_t> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kStream = kStreamBytes / sizeof(uint32_t);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (int64_t group = 0; group < n; group += 8 * kStream) {
    for (int64_t i = group; i < group + kStream; i += 2 * lanes) {
      for (int64_t s = 0; s < 8; s += 2) {
        a = hn::Xor(a, hn::Load(d, from + i + s * kStream));
        b = hn::Xor(b, hn::Load(d, from + i + s * kStream + lanes));
        c = hn::Xor(c, hn::Load(d, from + i + (s + 1) * kStream));
        e = hn::Xor(e, hn::Load(d, from + i + (s + 1) * kStream + lanes));
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Xor(hn::Xor(a, b), hn::Xor(c, e))));
}

// Past the caches, so that no line is read to be overwritten.
void CopyStream(const uint32_t* from, int64_t n, uint32_t* to) {
  const hn::ScalableTag<uint32_t> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; i += 2 * lanes) {
    const auto a = hn::Load(d, from + i), b = hn::Load(d, from + i + lanes);
    hn::Stream(a, d, to + i);
    hn::Stream(b, d, to + i + lanes);
  }
  hwy::FlushStream();
}

}  // namespace HWY_NAMESPACE
}  // namespace quire::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire {
namespace cpu {
namespace {
HWY_EXPORT(ReadStream);
HWY_EXPORT(CopyStream);
auto BestReadStream() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(ReadStream)(args...); };
}
auto BestCopyStream() {
  return [](auto... args) { return HWY_DYNAMIC_DISPATCH(CopyStream)(args...); };
}
}  // namespace
}  // namespace cpu

namespace {

constexpr size_t kTaskBytes = size_t{4} << 20;

size_t DefaultBytes() {
  struct sysinfo info;
  size_t free = size_t{2} << 30;
  if (sysinfo(&info) == 0) free = static_cast<size_t>(info.freeram) * info.mem_unit;
  return std::min(size_t{1} << 30, free / 4);
}

// Seconds of the fastest call of f within `seconds`, at least two calls.
template <typename F>
double BestSeconds(double seconds, F&& f) {
  double best = 1e30;
  const double end = NowSeconds() + seconds;
  for (int pass = 0; pass < 2 || NowSeconds() < end; ++pass) {
    const double start = NowSeconds();
    f();
    best = std::min(best, NowSeconds() - start);
  }
  return best;
}

void MeasureMemory(const Context& ctx, double seconds, size_t bytes, MachineRates& rates) {
  Result<Buffer> buffer = Buffer::Create(bytes);
  while (!buffer.ok() && bytes > 2 * kTaskBytes) {
    bytes = std::max(bytes / 4 / kTaskBytes * 2, size_t{2}) * kTaskBytes;
    buffer = Buffer::Create(bytes);
  }
  if (!buffer.ok()) return;
  std::byte* data = buffer->data();
  const auto tasks = static_cast<int64_t>(bytes / kTaskBytes);
  // Touched by the threads that will read it, and so that no two pages are the kernel's one page of zeros.
  ctx.pool->ParallelFor(tasks, [&](int64_t t, int) { std::memset(data + t * kTaskBytes, static_cast<int>(t) | 1, kTaskBytes); });

  // One pass takes a window; windows go round the buffer, so that a window's lines have left the caches when it comes
  // again. Short ones find the moments at which nothing else runs.
  std::atomic<uint32_t> sink{0};
  const auto read = cpu::BestReadStream();
  const int64_t window = std::min(tasks, std::max<int64_t>(16, int64_t{4} * ctx.pool->threads()));
  int64_t at = 0;
  const double read_seconds = BestSeconds(seconds / 2, [&] {
    ctx.pool->ParallelFor(window, [&](int64_t t, int) {
      const auto* from = reinterpret_cast<const uint32_t*>(data + (at + t) % tasks * kTaskBytes);
      sink.fetch_xor(read(from, kTaskBytes / sizeof(uint32_t)), std::memory_order_relaxed);
    });
    at += window;
  });
  rates.read_gb_s = static_cast<double>(window * kTaskBytes) / read_seconds * 1e-9;

  const auto copy = cpu::BestCopyStream();
  const int64_t half = tasks / 2, copy_window = std::min(half, window);
  const double copy_seconds = BestSeconds(seconds / 2, [&] {
    ctx.pool->ParallelFor(copy_window, [&](int64_t t, int) {
      const int64_t block = (at + t) % half;
      const auto* from = reinterpret_cast<const uint32_t*>(data + block * kTaskBytes);
      copy(from, kTaskBytes / sizeof(uint32_t), reinterpret_cast<uint32_t*>(data + (half + block) * kTaskBytes));
    });
    at += copy_window;
  });
  rates.copy_gb_s = 2.0 * static_cast<double>(copy_window * kTaskBytes) / copy_seconds * 1e-9;
}

void MeasureMatmul(const Context& ctx, double seconds, MachineRates& rates) {
  const cpu::MatrixUnit unit = cpu::DetectMatrixUnit();
  const DType dtype = unit == cpu::MatrixUnit::kNone ? DType::kF32 : DType::kBF16;
  rates.matmul_name = unit == cpu::MatrixUnit::kAmxBf16      ? "oneDNN bf16 (AMX)"
                      : unit == cpu::MatrixUnit::kAvx512Bf16 ? "oneDNN bf16 (AVX-512)"
                                                             : "oneDNN f32";
  // Four tasks a thread and more, each of one of the library's largest tiles.
  const int64_t cols = 2048, m = 512;
  const int64_t rows = std::max<int64_t>(1024, int64_t{512} * ctx.pool->threads());
  Result<Tensor> weight = Tensor::Create(dtype, {rows, cols});
  Result<Tensor> x = Tensor::Create(DType::kF32, {m, cols}), y = Tensor::Create(DType::kF32, {m, rows});
  if (!weight.ok() || !x.ok() || !y.ok()) return;
  VisitFloatDType(dtype, [&](auto t) {
    auto* w = weight->data<decltype(t)>();
    for (int64_t i = 0; i < rows * cols; ++i) w[i] = FromFloat<decltype(t)>(static_cast<float>(i % 13) - 6.0f);
  });
  for (int64_t i = 0; i < m * cols; ++i) x->data<float>()[i] = static_cast<float>(i % 11) - 5.0f;
  const auto matmul = cpu::OneDnnMatmul::Create(ctx, weight->data<std::byte>(), dtype, rows, cols);
  if (!matmul.ok()) return;
  const double best = BestSeconds(
      seconds, [&] { (*matmul)->Run(ctx, x->data<float>(), cols, m, nullptr, y->data<float>(), rows, false); });
  rates.matmul_gflop_s = 2.0 * static_cast<double>(m * rows * cols) / best * 1e-9;
}

}  // namespace

Result<ReadProbe> ReadProbe::Create(const Context& ctx) {
  ReadProbe probe;
  probe.window_ = std::max<int64_t>(16, int64_t{4} * ctx.pool->threads());
  probe.tasks_ = 4 * probe.window_;
  ASSIGN_OR_RETURN(probe.buffer_, Buffer::Create(static_cast<size_t>(probe.tasks_) * kTaskBytes));
  std::byte* data = probe.buffer_.data();
  ctx.pool->ParallelFor(probe.tasks_, [&](int64_t t, int) {
    std::memset(data + t * kTaskBytes, static_cast<int>(t) | 1, kTaskBytes);
  });
  return probe;
}

void ReadProbe::Run(const Context& ctx) {
  std::atomic<uint32_t> sink{0};
  const auto read = cpu::BestReadStream();
  const double start = NowSeconds();
  ctx.pool->ParallelFor(window_, [&](int64_t t, int) {
    const auto* from = reinterpret_cast<const uint32_t*>(buffer_.data() + (at_ + t) % tasks_ * kTaskBytes);
    sink.fetch_xor(read(from, kTaskBytes / sizeof(uint32_t)), std::memory_order_relaxed);
  });
  seconds_.push_back(NowSeconds() - start);
  at_ = (at_ + window_) % tasks_;
}

double ReadProbe::MedianGbS() const {
  if (seconds_.empty()) return 0;
  std::vector<double> s = seconds_;
  std::nth_element(s.begin(), s.begin() + s.size() / 2, s.end());
  return static_cast<double>(window_ * kTaskBytes) / s[s.size() / 2] * 1e-9;
}

MachineRates MeasureMachine(const Context& ctx, double seconds, size_t bytes) {
  MachineRates rates;
  if (bytes == 0) bytes = DefaultBytes();
  MeasureMemory(ctx, seconds * 0.6, std::max(bytes / kTaskBytes, size_t{2}) * kTaskBytes, rates);
  MeasureMatmul(ctx, seconds * 0.4, rates);
  return rates;
}

}  // namespace quire
#endif  // HWY_ONCE
