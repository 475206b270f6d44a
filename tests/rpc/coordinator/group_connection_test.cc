// The stream to a group: what waits for it goes together, in messages that the group takes.
#include "rpc/coordinator/group_connection.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "rpc/status.h"
#include "tests/rpc/service_fixture.h"

namespace quire::rpc {
namespace {

constexpr int kMostBytes = 6 << 20;  // of a message

// Reads nothing until it is told to, so that what is sent waits.
class SlowWorker : public v1::Worker::Service {
 public:
  grpc::Status Execute(grpc::ServerContext*,
                       grpc::ServerReaderWriter<v1::ExecuteResponse, v1::ExecuteRequest>* stream) override {
    EXPECT_TRUE(Eventually([this] { return reads.load(); }));
    for (v1::ExecuteRequest request; stream->Read(&request);) {
      std::lock_guard lock(mutex);
      ++messages;
      for (const v1::Submission& submission : request.submissions()) names.push_back(submission.id().request_id());
      for (const v1::AttemptId& abort : request.aborts()) names.push_back("abort " + abort.request_id());
      if (names.size() == 12) break;
    }
    return {grpc::ABORTED, "all has come"};
  }
  std::atomic<bool> reads = false;
  std::mutex mutex;
  int messages = 0;
  std::vector<std::string> names;
};

class NoOwner : public ConnectionOwner {
  uint64_t NewSession() override { return 1; }
  Status Greet(const v1::GetModelInfoResponse&, v1::Control::Stub*) override { return OkStatus(); }
  void OnResponse(std::shared_ptr<ExecuteStream>) override {}
  void OnDown(std::shared_ptr<ExecuteStream>, const Status&) override {}
};

TEST(ExecuteStream, WhatWaitsGoesInOrderAndInMessagesThatAGroupTakes) {
  SlowWorker worker;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMostBytes);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&worker);
  const auto server = builder.BuildAndStart();
  const auto stub =
      v1::Worker::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  NoOwner owner;
  auto stream = std::make_shared<ExecuteStream>(1, &owner);
  stream->Start(stream, stub.get(), {});
  std::vector<std::string> sent;
  for (int i = 0; i < 11; ++i) {
    v1::ExecuteRequest request;
    v1::Submission* submission = request.add_submissions();
    submission->mutable_id()->set_request_id(sent.emplace_back("s" + std::to_string(i)));
    submission->set_context(std::string(1500000, 'x'));
    stream->Send(std::move(request));
  }
  v1::ExecuteRequest abort;
  abort.add_aborts()->set_request_id("s10");
  sent.emplace_back("abort s10");
  stream->Send(std::move(abort));
  worker.reads = true;
  Status status;
  ASSERT_TRUE(stream->WaitDone(30 * kSlowness, &status));
  EXPECT_EQ(status.message(), "all has come") << status.ToString();
  std::lock_guard lock(worker.mutex);
  EXPECT_EQ(worker.names, sent);
  EXPECT_LT(worker.messages, 12);  // the hello, and some together
}

}  // namespace
}  // namespace quire::rpc
