// The client class over a connection that is cut in mid-stream: what it hides, and what it says when it can't.
#include "tests/rpc/client_streams.h"
#include "tests/rpc/held_engine.h"
#include "tests/rpc/service_fixture.h"
#include "tests/rpc/tcp_proxy.h"

namespace quire {
namespace {

class ReconnectTest : public ServiceTest {
 protected:
  void SetUp() override {
    Start(Options());
    way_ = std::make_unique<TcpProxy>(server_->address());
  }
  void TearDown() override {
    way_.reset();
    ServiceTest::TearDown();
  }

  static EngineOptions Options() {
    EngineOptions options = Retriever();
    options.batch_invariant = true;
    return options;
  }
  static ClientStream Ask(int tokens, int n = 1, float temperature = 0) {
    ClientStream stream;
    stream.request.prompts.emplace_back().token_ids = BytePrompt(64);
    stream.request.parameters = Greedy({}, tokens);
    stream.request.parameters.sampling.temperature = temperature;
    stream.request.parameters.sampling.seed = 9;
    stream.request.parameters.sampling.n = n;
    return stream;
  }
  std::vector<ClientStream> Undisturbed(const std::vector<ClientStream>& streams) {
    ClientStreams running(server_->address(), streams);
    running.Join();
    return running.results();
  }

  std::unique_ptr<TcpProxy> way_;
};

TEST_F(ReconnectTest, AStreamGoesOnWithNoTokenLostOrRepeatedWhereverItIsCut) {
  std::vector<ClientStream> streams = {Ask(120), Ask(120, 3, 1)};
  streams[1].request.parameters.logprobs = 2;
  const std::vector<ClientStream> expected = Undisturbed(streams);
  // From the first bytes, in which nothing of the stream can have come, to the middle of chunks.
  for (const int64_t bytes : {1, 1500, 2500, 5000, 8001}) {
    const int before = way_->cuts();
    way_->CutAfter(bytes);
    ClientStreams disturbed(way_->address(), streams);
    disturbed.Join();
    SCOPED_TRACE("cut after " + std::to_string(bytes) + " bytes");
    EXPECT_EQ(way_->cuts(), before + 1);
    ExpectEqual(disturbed.results(), expected);
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

// Steps take their time: what a fast engine makes while a client is away comes in one chunk, which leaves little to cut.
class SlowEngine : public HeldEngine {
 public:
  using HeldEngine::HeldEngine;
  Result<bool> Step() override {
    std::this_thread::sleep_for(std::chrono::milliseconds(4));
    return HeldEngine::Step();
  }
};

TEST_F(ReconnectTest, AStreamThatIsCutAgainAndAgainGoesOn) {
  const std::vector<ClientStream> streams = {Ask(500), Ask(500, 2, 1)};
  const std::vector<ClientStream> expected = Undisturbed(streams);
  way_.reset();
  server_.reset();
  StepGate gate;  // open
  StartLoading();
  server_->Serve(std::make_unique<SlowEngine>(MakeEngine(Options()), &gate));
  TcpProxy way(server_->address());
  way.CutEvery(3000);
  ClientStreams disturbed(way.address(), streams);
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
  EXPECT_GE(way.cuts(), 5);
  server_.reset();  // before the gate
}

TEST_F(ReconnectTest, AServiceThatIsOutOfReachForAWhileIsWaitedFor) {
  const std::vector<ClientStream> streams = {Ask(600)};
  const std::vector<ClientStream> expected = Undisturbed(streams);
  ClientStreams disturbed(way_->address(), streams);
  ASSERT_TRUE(disturbed.WaitTokens(50));
  way_->Close();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(disturbed.done());
  way_->Open();
  disturbed.Join();
  ExpectEqual(disturbed.results(), expected);
}

TEST_F(ReconnectTest, WhatItSaysWhenTheServiceStaysAway) {
  std::vector<ClientStream> streams = {Ask(100000), Ask(100000)};
  streams[1].request.timeout_s = 2 * kSlowness;
  ClientStreams lost(way_->address(), streams, /*retry_s=*/0.3);
  ClientStreams late(way_->address(), {streams[1]}, /*retry_s=*/30);
  EXPECT_TRUE(lost.WaitTokens(20) && late.WaitTokens(20));  // not ASSERT: only the closed way ends the streams
  way_->Close();
  const double begin = NowSeconds();
  lost.Join();
  EXPECT_LT(NowSeconds() - begin, 4 * kSlowness);
  EXPECT_EQ(lost.results()[0].status.code(), StatusCode::kUnavailable);
  late.Join();
  EXPECT_LT(NowSeconds() - begin, 5 * kSlowness);
  EXPECT_EQ(late.results()[0].status.code(), StatusCode::kDeadlineExceeded);
}

TEST_F(ReconnectTest, EachClientHasAConnectionOfItsOwn) {
  const auto first = Client::Connect({.address = way_->address()});
  const auto second = Client::Connect({.address = way_->address()});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(way_->connections(), 2);
}

TEST_F(ReconnectTest, WithoutRetriesACutEndsTheStreamAndFreesItsPages) {
  ClientStreams running(way_->address(), {Ask(100000)}, /*retry_s=*/0);
  ASSERT_TRUE(running.WaitTokens(20));
  way_->Cut();
  running.Join();
  EXPECT_EQ(running.results()[0].status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

}  // namespace
}  // namespace quire
