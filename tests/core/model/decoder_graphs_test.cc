// StepGraphs on the emulator's GPU: when work is enqueued, captured and launched again.
#include "core/model/decoder_graphs.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/device_memory.h"
#include "tests/kernels/cuda/emulator/device.h"

namespace quire {
namespace {

constexpr Device kGpu{DeviceKind::kCuda, 0};

// Work that clears a byte, and how often the host enqueued it.
class DecoderGraphs : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = DeviceSession::Create(kGpu);
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    session_ = std::move(made).value();
    auto buffer = Buffer::Create(64, kGpu);
    ASSERT_TRUE(buffer.ok());
    buffer_ = std::move(buffer).value();
  }

  // Whether the step was done, and counts.
  bool Step(uint64_t key, size_t memory_bytes = 1000) {
    std::vector<std::byte> host(1, std::byte{1});
    EXPECT_TRUE(CopyToDevice(kGpu, buffer_.data(), host.data(), 1, session_->stream()).ok());
    const Status status = graphs_.Run(*session_, {key, 7}, memory_bytes, [&] {
      ++enqueued_;
      if (bad_) session_->Keep(Buffer::Create(8, kGpu).status());
      return ClearOnDevice(kGpu, buffer_.data(), 1, session_->stream());
    });
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(CopyFromDevice(kGpu, host.data(), buffer_.data(), 1, session_->stream()).ok());
    EXPECT_TRUE(session_->Synchronize().ok());
    return host[0] == std::byte{0};
  }
  // Enqueued by the host, captured, and launched as graphs since the last call.
  std::vector<int64_t> Counts() {
    const emulator::GpuCounts now = emulator::CountsOfGpu();
    const std::vector<int64_t> counts = {std::exchange(enqueued_, 0), now.captures - before_.captures,
                                         now.graphs - before_.graphs};
    before_ = now;
    return counts;
  }
  using Expected = std::vector<int64_t>;

  std::unique_ptr<DeviceSession> session_;
  Buffer buffer_;
  StepGraphs graphs_;
  bool bad_ = false;
  int64_t enqueued_ = 0;
  emulator::GpuCounts before_ = emulator::CountsOfGpu();
};

TEST_F(DecoderGraphs, EnqueuesTheFirstCapturesTheSecondAndLaunchesFromThenOn) {
  EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{1, 0, 0}));
  EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{1, 1, 1}));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{0, 0, 3}));
  EXPECT_TRUE(Step(2));  // another key is another step
  EXPECT_EQ(Counts(), (Expected{1, 0, 0}));
}

TEST_F(DecoderGraphs, MemoryThatGrewIsCapturedAnewAtOnce) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Step(1));
  Counts();
  EXPECT_TRUE(Step(1, 2000));
  EXPECT_EQ(Counts(), (Expected{1, 1, 1}));
  EXPECT_TRUE(Step(1, 2000));
  EXPECT_EQ(Counts(), (Expected{0, 0, 1}));
}

TEST_F(DecoderGraphs, WhatWasNotUsedForTheLongestIsForgotten) {
  for (uint64_t key = 0; key < StepGraphs::kMost; ++key) {
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(Step(key));
  }
  EXPECT_TRUE(Step(0));
  EXPECT_TRUE(Step(1000));  // in the place of key 1
  Counts();
  EXPECT_TRUE(Step(0));
  EXPECT_TRUE(Step(2));
  EXPECT_EQ(Counts(), (Expected{0, 0, 2}));
  EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{1, 0, 0}));
}

TEST_F(DecoderGraphs, AFailedCaptureIsEnqueuedNowAndFromThenOn) {
  EXPECT_TRUE(Step(1));
  Counts();
  bad_ = true;
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{2, 0, 0}));
  bad_ = false;
  EXPECT_TRUE(Step(1));
  EXPECT_EQ(Counts(), (Expected{1, 0, 0}));
  bad_ = true;
  EXPECT_TRUE(Step(2));
  EXPECT_TRUE(Step(2));
  const std::string log = ::testing::internal::GetCapturedStderr();
  const size_t told = log.find("could not be run as a CUDA graph");
  EXPECT_NE(told, std::string::npos) << log;
  EXPECT_EQ(log.find("could not be run", told + 1), std::string::npos) << log;  // once
}

}  // namespace
}  // namespace quire
