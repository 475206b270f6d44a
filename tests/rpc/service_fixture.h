// Shared by the service's tests: a group of this process behind a real socket, its stubs, and requests run to their end.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "quire/v1/control.grpc.pb.h"
#include "quire/v1/generation.grpc.pb.h"
#include "quire/v1/worker.grpc.pb.h"
#include "rpc/serve.h"
#include "tests/core/engine/engine_fixture.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {

inline std::chrono::system_clock::time_point In(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds));
}

// Until `done` or 20 seconds (more under sanitizers) have passed.
inline bool Eventually(const std::function<bool()>& done, double seconds = 20) {
  const double end = NowSeconds() + seconds * kSlowness;
  while (!done()) {
    if (NowSeconds() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// The pieces of one sequence put together.
struct Pieces {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<v1::TokenLogprob> logprobs;
  int chunks = 0;
  v1::GenerateChunk last;
};
using Streams = std::map<std::pair<int, int>, Pieces>;  // by prompt and sequence

// Adds a chunk, and checks that it goes on where the one before ended.
inline void Collect(const v1::GenerateChunk& chunk, Streams* streams) {
  Pieces& p = (*streams)[{chunk.prompt_index(), chunk.sequence_index()}];
  EXPECT_EQ(p.last.finish_reason(), v1::FINISH_REASON_UNSPECIFIED) << "a chunk after the last";
  EXPECT_EQ(chunk.token_index(), static_cast<int>(p.ids.size()));
  p.ids.insert(p.ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
  p.text += chunk.text();
  p.logprobs.insert(p.logprobs.end(), chunk.logprobs().begin(), chunk.logprobs().end());
  ++p.chunks;
  p.last = chunk;
}

class ServiceTest : public testing::Test {
 protected:
  void TearDown() override { server_.reset(); }

  void Start(const EngineOptions& engine, ServeOptions serve = {}) {
    StartLoading(std::move(serve));
    server_->Serve(MakeEngine(engine));
  }
  void StartLoading(ServeOptions serve = {}) {
    serve.listen = "127.0.0.1:0";
    serve.version = "test";
    auto server = GroupServer::Start(std::move(serve));
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(server).value();
    channel_ = NewChannel();
    generation_ = v1::Generation::NewStub(channel_);
    control_ = v1::Control::NewStub(channel_);
    worker_ = v1::Worker::NewStub(channel_);
  }
  std::shared_ptr<grpc::Channel> NewChannel() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
  }

  static EngineOptions Stories() { return ModelOptions("stories260K"); }
  // Long contexts, so that a request runs for seconds.
  static EngineOptions Retriever() {
    EngineOptions options = ModelOptions("retriever-2m");
    options.kv_cache_bytes = 128 << 20;
    return options;
  }

  static v1::GenerateRequest Story(int tokens) {
    v1::GenerateRequest request;
    request.add_prompts()->set_text("Once upon a time");
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    return request;
  }
  static v1::GenerateRequest Ids(const std::vector<int32_t>& ids, int tokens) {
    v1::GenerateRequest request = Story(tokens);
    request.mutable_prompts(0)->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    return request;
  }
  // Runs until it is ended.
  static v1::GenerateRequest Endless(const std::string& id = "") {
    v1::GenerateRequest request = Ids(BytePrompt(64), 100000);
    request.set_request_id(id);
    return request;
  }

  grpc::Status Stream(const v1::GenerateRequest& request, Streams* streams) {
    grpc::ClientContext context;
    context.set_deadline(In(60 * kSlowness));
    auto reader = generation_->GenerateStream(&context, request);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) Collect(chunk, streams);
    return reader->Finish();
  }
  v1::GroupLoad Load() {
    grpc::ClientContext context;
    context.set_deadline(In(20 * kSlowness));
    v1::GetLoadResponse response;
    const grpc::Status status = control_->GetLoad(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.groups_size() > 0 ? response.groups(0) : v1::GroupLoad();
  }
  // Nothing runs, nothing waits, every page is free.
  bool Empty() {
    const v1::GroupLoad load = Load();
    return load.running() == 0 && load.waiting() == 0 && load.tokens_in_flight() == 0 && load.pages_total() > 0 &&
           load.pages_free() == load.pages_total();
  }

  std::unique_ptr<GroupServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Control::Stub> control_;
  std::unique_ptr<v1::Worker::Stub> worker_;
};

}  // namespace quire
