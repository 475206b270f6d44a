// What a GPU can do, measured: the yardsticks of figures that were taken on it.
#include "kernels/machine.h"

#include <algorithm>
#include <random>
#include <vector>

#include "core/base/device_memory.h"
#include "kernels/device_session.h"

namespace quire {
namespace {

// The best of passes for about `seconds`, of the device's own clock, after one that isn't counted.
template <typename Pass>
Result<double> BestOf(DeviceSession& session, double seconds, Pass&& pass) {
  ASSIGN_OR_RETURN(OwnedEvent begin, OwnedEvent::Create(session.device()));
  ASSIGN_OR_RETURN(OwnedEvent end, OwnedEvent::Create(session.device()));
  double best = 0, total = 0;
  for (int i = 0; i < 3 || (total < seconds && i < 1000); ++i) {
    RETURN_IF_ERROR(begin.Record(session.stream()));
    RETURN_IF_ERROR(pass());
    RETURN_IF_ERROR(end.Record(session.stream()));
    RETURN_IF_ERROR(session.Synchronize());
    ASSIGN_OR_RETURN(const double one, end.SecondsSince(begin));
    total += one;
    if (i > 0 && (best == 0 || one < best)) best = one;
  }
  return std::max(best, 1e-9);
}

}  // namespace

Result<MachineRates> MeasureGpu(DeviceSession& session, double seconds, size_t bytes) {
  MachineRates rates;
  const Device device = session.device();
  if (bytes == 0) {
    ASSIGN_OR_RETURN(const DeviceInfo info, DescribeDevice(device));
    bytes = std::min(size_t{1} << 30, info.free_bytes / 4);
  }
  {
    ASSIGN_OR_RETURN(Buffer from, Buffer::Create(bytes, device));
    ASSIGN_OR_RETURN(Buffer to, Buffer::Create(bytes, device));
    ASSIGN_OR_RETURN(const double copy, BestOf(session, seconds * 0.6, [&] {
                       return CopyOnDevice(device, to.data(), from.data(), bytes, session.stream());
                     }));
    rates.copy_gb_s = rates.read_gb_s = 2.0 * static_cast<double>(bytes) / copy * 1e-9;
  }
  // Random numbers: on zeros and short patterns the chip draws less power and runs faster.
  const int64_t n = bytes >= size_t{256} << 20 ? 8192 : 64;
  const auto size = static_cast<size_t>(n * n);
  ASSIGN_OR_RETURN(Buffer x, Buffer::Create(size * sizeof(BF16), device));
  ASSIGN_OR_RETURN(Buffer w, Buffer::Create(size * sizeof(BF16), device));
  ASSIGN_OR_RETURN(Buffer y, Buffer::Create(size * sizeof(float), device));
  std::vector<BF16> host(size);
  std::mt19937 random(1);
  for (Buffer* to : {&x, &w}) {
    for (BF16& value : host) value = ToBF16(static_cast<float>(random()) * 0x1p-31f - 1.0f);
    RETURN_IF_ERROR(CopyToDevice(device, to->data(), host.data(), to->size(), session.stream()));
  }
  cuda::MatmulParams product;
  product.dtype = DType::kBF16;
  product.x = x.data();
  product.x_stride = n;
  product.w = w.data();
  product.out = reinterpret_cast<float*>(y.data());
  product.out_stride = n;
  product.m = product.rows = product.cols = n;
  ASSIGN_OR_RETURN(const double seconds_of_one,
                   BestOf(session, seconds * 0.4, [&] { return session.matmul().Run(session.stream(), product); }));
  rates.matmul_gflop_s = 2.0 * static_cast<double>(n * n) * static_cast<double>(n) / seconds_of_one * 1e-9;
  rates.matmul_name = "cuBLASLt bf16";
  return rates;
}

}  // namespace quire
