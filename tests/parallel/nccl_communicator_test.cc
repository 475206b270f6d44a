// NCCL's communicator. Where there are GPUs its ranks, threads with one GPU each, keep the contract of all communicators;
// where there are none, or no NCCL, every rank is told so in a sentence.
#include "parallel/nccl_communicator.h"

#include <gtest/gtest.h>

#ifdef QUIRE_HAS_CUDART
#include <cuda_runtime_api.h>
#endif

#include <algorithm>

#include "tests/parallel/communicator_contract.h"
#include "tests/parallel/rank_threads.h"

namespace quire {
namespace {

using testing::OnRanks;

#ifdef QUIRE_HAS_CUDART
int Gpus() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// Sums on the host: slow, and in rank order.
Status SumOnHost(float* out, const float* parts, int64_t n, int ranks, Stream stream) {
  if (cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)) != cudaSuccess) return Unavailable("stream");
  std::vector<float> all(static_cast<size_t>(n) * ranks), sum(n);
  cudaMemcpy(all.data(), parts, all.size() * sizeof(float), cudaMemcpyDeviceToHost);
  for (int64_t i = 0; i < n; ++i) {
    sum[i] = all[i];
    for (int r = 1; r < ranks; ++r) sum[i] += all[r * n + i];
  }
  cudaMemcpy(out, sum.data(), sum.size() * sizeof(float), cudaMemcpyHostToDevice);
  return OkStatus();
}

// Takes host tensors: copies them to the device and back, so that the contract of host tensors can be run.
class Staged final : public Communicator {
 public:
  Staged(NcclCommunicator* inner, int device) : inner_(inner), device_(device) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Status AllReduce(TensorView data, Stream s) override {
    return On(data, data, [&](TensorView d, TensorView) { return inner_->AllReduce(d, s); });
  }
  Status AllGather(TensorView a, TensorView b, Stream s) override {
    return On(a, b, [&](TensorView x, TensorView y) { return inner_->AllGather(x, y, s); });
  }
  Status AllGatherV(TensorView a, TensorView b, std::span<const int64_t> counts, Stream s) override {
    return On(a, b, [&](TensorView x, TensorView y) { return inner_->AllGatherV(x, y, counts, s); });
  }
  Status ReduceScatter(TensorView a, TensorView b, Stream s) override {
    return On(a, b, [&](TensorView x, TensorView y) { return inner_->ReduceScatter(x, y, s); });
  }
  Status Broadcast(TensorView data, int root, Stream s) override {
    return On(data, data, [&](TensorView d, TensorView) { return inner_->Broadcast(d, root, s); });
  }
  Status Send(TensorView data, int to, Stream s) override {
    return On(data, data, [&](TensorView d, TensorView) { return inner_->Send(d, to, s); });
  }
  Status Recv(TensorView data, int from, Stream s) override {
    return On(data, data, [&](TensorView d, TensorView) { return inner_->Recv(d, from, s); });
  }
  Status Barrier() override { return inner_->Barrier(); }

 private:
  template <typename Call>
  Status On(TensorView a, TensorView b, Call call) {
    TensorView x = ToDevice(a), y = a.data == b.data ? x : ToDevice(b);
    Status status = call(x, y);
    if (status.ok()) status = inner_->Synchronize({});
    if (status.ok() && b.bytes() > 0) cudaMemcpy(b.data, y.data, static_cast<size_t>(b.bytes()), cudaMemcpyDeviceToHost);
    cudaFree(x.data);
    if (y.data != x.data) cudaFree(y.data);
    return status;
  }
  TensorView ToDevice(TensorView view) const {
    TensorView copy = view;
    copy.device = {DeviceKind::kCuda, device_};
    copy.data = nullptr;
    if (view.bytes() == 0) return copy;
    EXPECT_EQ(cudaMalloc(&copy.data, static_cast<size_t>(view.bytes())), cudaSuccess);
    cudaMemcpy(copy.data, view.data, static_cast<size_t>(view.bytes()), cudaMemcpyHostToDevice);
    return copy;
  }

  NcclCommunicator* inner_;
  int device_;
};

TEST(NcclCommunicator, KeepsTheContractInRankOrder) {
  const int ranks = std::min(Gpus(), 4);
  if (ranks == 0) GTEST_SKIP() << "no GPU here";
  OnRanks(ranks, [](std::unique_ptr<Communicator> control) {
    const auto topology = GatherTopology(*control);
    ASSERT_TRUE(topology.ok());
    NcclOptions options;
    options.rank_order_sum = SumOnHost;
    options.rank_order_piece = 5000;  // several pieces for the large sizes
    const auto nccl = MakeNcclCommunicator(control.get(), *topology, options);
    ASSERT_TRUE(nccl.ok()) << nccl.status().ToString();
    Staged staged(nccl->get(), topology->self().local_rank);
    EXPECT_EQ(testing::CheckContract(staged), "");
  });
}

TEST(NcclCommunicator, NcclsOwnSumsAreExactWhereSumsAre) {
  const int ranks = std::min(Gpus(), 4);
  if (ranks == 0) GTEST_SKIP() << "no GPU here";
  OnRanks(ranks, [](std::unique_ptr<Communicator> control) {
    const auto topology = GatherTopology(*control);
    ASSERT_TRUE(topology.ok());
    const auto nccl = MakeNcclCommunicator(control.get(), *topology);
    ASSERT_TRUE(nccl.ok()) << nccl.status().ToString();
    Staged staged(nccl->get(), topology->self().local_rank);
    for (int64_t n : {0, 1, 3, 4097, 100003}) EXPECT_EQ(testing::CheckSize(staged, n, 1), "");
    std::vector<float> host(4);
    const Status refused = (*nccl)->AllReduce(testing::View(host));
    EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(refused.message().find("got a tensor on cpu"), std::string::npos) << refused.message();
    EXPECT_TRUE((*nccl)->Barrier().ok());
  });
}
#else
int Gpus() { return 0; }
#endif

TEST(NcclCommunicator, WithoutAGpuOrNcclEveryRankIsToldSo) {
  if (Gpus() > 0) GTEST_SKIP() << "there are GPUs here";
  OnRanks(3, [](std::unique_ptr<Communicator> control) {
    const auto topology = GatherTopology(*control);
    ASSERT_TRUE(topology.ok());
    const auto nccl = MakeNcclCommunicator(control.get(), *topology);
    ASSERT_FALSE(nccl.ok());
    EXPECT_EQ(nccl.status().code(), HasNccl() ? StatusCode::kFailedPrecondition : StatusCode::kUnimplemented);
    const char* says = HasNccl() ? "no GPU" : "QUIRE_NCCL=ON";
    EXPECT_NE(nccl.status().message().find(says), std::string::npos) << nccl.status().message();
    EXPECT_TRUE(control->Barrier().ok());
  });
}

}  // namespace
}  // namespace quire
