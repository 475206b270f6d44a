// A server that does nothing but send: what gRPC's callback interface itself costs for a chunk a token. GenerateStream
// answers max_tokens chunks of one token each; of all streams that are open, the oldest 512 get one every 15 ms, as the
// running sequences of two groups do. load_test.cc measures the coordinator beside it.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "quire/v1/generation.grpc.pb.h"

namespace {

using quire::v1::GenerateChunk;
using quire::v1::GenerateRequest;

class Stream : public grpc::ServerWriteReactor<GenerateChunk> {
 public:
  explicit Stream(const GenerateRequest& request) : tokens_(request.stopping().max_tokens()) {
    chunk_.set_request_id("c-00112233445566778899aabb");
    chunk_.add_token_ids(0);
    chunk_.set_text("day ");
  }

  void OnWriteDone(bool) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
    }
    if (sent_ == tokens_) Finish(grpc::Status::OK);
  }
  void OnDone() override { self_.reset(); }

  void Hold(std::shared_ptr<Stream> self) { self_ = std::move(self); }
  bool ended() const { return sent_ == tokens_; }
  void Step() {
    {
      std::lock_guard lock(mutex_);
      if (writing_ || sent_ == tokens_) return;
      writing_ = true;
    }
    chunk_.set_token_index(sent_);
    chunk_.set_token_ids(0, 100 + sent_ % 300);
    if (++sent_ == tokens_) chunk_.set_finish_reason(quire::v1::FINISH_REASON_LENGTH);
    StartWrite(&chunk_);
  }

 private:
  const int tokens_;
  std::shared_ptr<Stream> self_;
  std::mutex mutex_;
  bool writing_ = false;
  int sent_ = 0;  // set before the write whose end looks at it
  GenerateChunk chunk_;
};

class Service : public quire::v1::Generation::CallbackService {
 public:
  grpc::ServerWriteReactor<GenerateChunk>* GenerateStream(grpc::CallbackServerContext*,
                                                          const GenerateRequest* request) override {
    auto stream = std::make_shared<Stream>(*request);
    stream->Hold(stream);
    std::lock_guard lock(mutex_);
    streams_.push_back(stream);
    return stream.get();
  }

  void Step() {
    std::vector<std::shared_ptr<Stream>> running;
    {
      std::lock_guard lock(mutex_);
      std::erase_if(streams_, [](const auto& stream) { return stream->ended(); });
      for (size_t i = 0; i < streams_.size() && i < 512; ++i) running.push_back(streams_[i]);
    }
    for (const auto& stream : running) stream->Step();
  }

 private:
  std::mutex mutex_;
  std::deque<std::shared_ptr<Stream>> streams_;
};

}  // namespace

int main() {
  Service service;
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::printf("listening on 127.0.0.1:%d\n", port);
  std::fflush(stdout);
  while (true) {  // until it is killed
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    service.Step();
  }
}
