#include "parallel/counted_communicator.h"

#include "core/base/clock.h"

namespace quire {
namespace {

// Runs a collective, counts it and adds its seconds.
template <typename Call>
Status Timed(int64_t& count, double& seconds, Call&& call) {
  const double begin = NowSeconds();
  Status status = call();
  seconds += NowSeconds() - begin;
  ++count;
  return status;
}

}  // namespace

Status CountedCommunicator::AllReduce(TensorView data, Stream stream) {
  return Timed(stats_.all_reduces, stats_.all_reduce_seconds, [&] { return inner_->AllReduce(data, stream); });
}

Status CountedCommunicator::AllGather(TensorView send, TensorView recv, Stream stream) {
  return Timed(stats_.all_gathers, stats_.all_gather_seconds, [&] { return inner_->AllGather(send, recv, stream); });
}

Status CountedCommunicator::AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts,
                                       Stream stream) {
  return Timed(stats_.all_gathers, stats_.all_gather_seconds,
               [&] { return inner_->AllGatherV(send, recv, counts, stream); });
}

Status CountedCommunicator::ReduceScatter(TensorView send, TensorView recv, Stream stream) {
  ++stats_.others;
  return inner_->ReduceScatter(send, recv, stream);
}

Status CountedCommunicator::Broadcast(TensorView data, int root, Stream stream) {
  return Timed(stats_.broadcasts, stats_.broadcast_seconds, [&] { return inner_->Broadcast(data, root, stream); });
}

Status CountedCommunicator::Send(TensorView data, int to, Stream stream) {
  ++stats_.others;
  return inner_->Send(data, to, stream);
}

Status CountedCommunicator::Recv(TensorView data, int from, Stream stream) {
  ++stats_.others;
  return inner_->Recv(data, from, stream);
}

Status CountedCommunicator::Barrier() {
  ++stats_.others;
  return inner_->Barrier();
}

}  // namespace quire
