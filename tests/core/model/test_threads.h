// A communicator of threads for tests: ranks meet at a barrier and read each other's buffers. Sums in rank order.
#pragma once

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "core/base/check.h"
#include "parallel/communicator.h"

namespace quire {

class TestGroup {
 public:
  explicit TestGroup(int size) : size_(size), sends_(size), barrier_(size) {
    for (int rank = 0; rank < size; ++rank) comms_.push_back(std::make_unique<Comm>(this, rank));
  }

  // Runs f(comm) as every rank, each in a thread of its own.
  void Run(const std::function<void(Communicator*)>& f) {
    std::vector<std::thread> threads;
    for (auto& comm : comms_) threads.emplace_back([&f, c = comm.get()] { f(c); });
    for (std::thread& t : threads) t.join();
  }

 private:
  class Comm final : public Communicator {
   public:
    Comm(TestGroup* group, int rank) : g_(group), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return g_->size_; }

    Status AllReduce(TensorView data, Stream) override {
      CHECK(data.dtype == DType::kF32);
      Meet(data);
      sum_.assign(data.elements(), 0.0f);
      for (const TensorView& send : g_->sends_) {
        CHECK_EQ(send.elements(), data.elements());
        for (int64_t i = 0; i < data.elements(); ++i) sum_[i] += send.As<float>()[i];
      }
      g_->barrier_.arrive_and_wait();
      std::memcpy(data.data, sum_.data(), data.bytes());
      return OkStatus();
    }
    Status AllGather(TensorView send, TensorView recv, Stream stream) override {
      const std::vector<int64_t> counts(g_->size_, send.elements());
      return AllGatherV(send, recv, counts, stream);
    }
    Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream) override {
      CHECK_EQ(send.elements(), counts[rank_]);
      CHECK_EQ(recv.elements(), std::accumulate(counts.begin(), counts.end(), int64_t{0}));
      Meet(send);
      auto* to = recv.As<char>();
      for (int rank = 0; rank < g_->size_; ++rank) {
        CHECK_EQ(g_->sends_[rank].elements(), counts[rank]);
        if (counts[rank] > 0) std::memcpy(to, g_->sends_[rank].data, g_->sends_[rank].bytes());
        to += g_->sends_[rank].bytes();
      }
      g_->barrier_.arrive_and_wait();
      return OkStatus();
    }
    Status ReduceScatter(TensorView, TensorView, Stream) override { return Unimplemented("not used by the model"); }
    Status Broadcast(TensorView, int, Stream) override { return Unimplemented("not used by the model"); }
    Status Send(TensorView, int, Stream) override { return Unimplemented("not used by the model"); }
    Status Recv(TensorView, int, Stream) override { return Unimplemented("not used by the model"); }
    Status Barrier() override {
      g_->barrier_.arrive_and_wait();
      return OkStatus();
    }

   private:
    void Meet(TensorView mine) {
      g_->sends_[rank_] = mine;
      g_->barrier_.arrive_and_wait();
    }
    TestGroup* g_;
    int rank_;
    std::vector<float> sum_;
  };

  int size_;
  std::vector<TensorView> sends_;
  std::barrier<> barrier_;
  std::vector<std::unique_ptr<Comm>> comms_;
};

}  // namespace quire
