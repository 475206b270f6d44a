// What a GPU can do, measured: the yardsticks of figures that were taken on it.
#include "kernels/machine.h"

#include <algorithm>
#include <vector>

#include "core/base/device_memory.h"
#include "kernels/device_session.h"
#include "kernels/linear.h"

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
  // x of f32 is rounded on the way, as in a step; a square of side n is n times as much work as that.
  const int64_t n = bytes >= size_t{256} << 20 ? 8192 : 64;
  const auto size = static_cast<size_t>(n * n);
  std::vector<BF16> host(size);
  for (size_t i = 0; i < size; ++i) host[i] = ToBF16(static_cast<float>(i % 13) - 6.0f);
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(DType::kBF16, {n, n}, device));
  RETURN_IF_ERROR(CopyToDevice(device, tensor.data<std::byte>(), host.data(), tensor.bytes(), session.stream()));
  ASSIGN_OR_RETURN(Weight weight, Weight::Own(std::move(tensor)));
  std::vector<float> rows(size);
  for (size_t i = 0; i < size; ++i) rows[i] = static_cast<float>(i % 11) - 5.0f;
  ASSIGN_OR_RETURN(Buffer x, Buffer::Create(size * sizeof(float), device));
  ASSIGN_OR_RETURN(Buffer y, Buffer::Create(size * sizeof(float), device));
  RETURN_IF_ERROR(CopyToDevice(device, x.data(), rows.data(), x.size(), session.stream()));
  Context ctx;
  ctx.device = device;
  ctx.stream = session.stream();
  ctx.session = &session;
  ASSIGN_OR_RETURN(const double product, BestOf(session, seconds * 0.4, [&] {
                     Linear(ctx, reinterpret_cast<float*>(x.data()), n, n, weight, nullptr,
                            reinterpret_cast<float*>(y.data()), n);
                     return OkStatus();
                   }));
  rates.matmul_gflop_s = 2.0 * static_cast<double>(n * n) * static_cast<double>(n) / product * 1e-9;
  rates.matmul_name = "cuBLASLt bf16";
  return rates;
}

}  // namespace quire
