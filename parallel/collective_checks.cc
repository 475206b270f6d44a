#include "parallel/collective_checks.h"

#include <string>

namespace quire::internal {
namespace {

std::string Count(TensorView v) { return std::to_string(v.elements()) + " " + std::string(DTypeName(v.dtype)); }

Status Mismatch(const char* call, TensorView send, TensorView recv, const std::string& rule) {
  return InvalidArgument(std::string(call) + ": send has " + Count(send) + ", recv " + Count(recv) + "; " + rule);
}

}  // namespace

Status CheckSummable(const char* call, TensorView data) {
  if (data.dtype == DType::kF32) return OkStatus();
  return InvalidArgument(std::string(call) + " sums float32 only, got " + std::string(DTypeName(data.dtype)));
}

Status CheckAllGather(TensorView send, TensorView recv, int size) {
  if (send.dtype == recv.dtype && recv.elements() == send.elements() * size) return OkStatus();
  return Mismatch("AllGather", send, recv, "recv must hold " + std::to_string(size) + " times send");
}

Status CheckAllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, int rank, int size) {
  if (static_cast<int>(counts.size()) != size) {
    return InvalidArgument("AllGatherV wants " + std::to_string(size) + " counts, one a rank, got " +
                           std::to_string(counts.size()));
  }
  int64_t total = 0;
  for (int64_t c : counts) {
    if (c < 0) return InvalidArgument("AllGatherV: a count is " + std::to_string(c) + ", below 0");
    total += c;
  }
  if (send.dtype == recv.dtype && send.elements() == counts[rank] && recv.elements() == total) return OkStatus();
  return Mismatch("AllGatherV", send, recv,
                  "the counts say " + std::to_string(counts[rank]) + " and " + std::to_string(total));
}

Status CheckReduceScatter(TensorView send, TensorView recv, int size) {
  RETURN_IF_ERROR(CheckSummable("ReduceScatter", send));
  if (send.dtype == recv.dtype && send.elements() == recv.elements() * size) return OkStatus();
  return Mismatch("ReduceScatter", send, recv, "send must hold " + std::to_string(size) + " times recv");
}

Status CheckPeer(const char* call, int peer, int rank, int size) {
  if (peer >= 0 && peer < size && peer != rank) return OkStatus();
  return InvalidArgument(std::string(call) + " rank " + std::to_string(peer) + ": rank " + std::to_string(rank) + " of " +
                         std::to_string(size) + " has no such peer");
}

Status CheckRoot(int root, int size) {
  if (root >= 0 && root < size) return OkStatus();
  return InvalidArgument("Broadcast from rank " + std::to_string(root) + ": there are ranks 0 to " + std::to_string(size - 1));
}

}  // namespace quire::internal
