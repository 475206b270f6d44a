// ScoreTexts: a list of texts on its way through Generation.Score. One thread takes texts from the caller, some ahead
// of what is answered; each call sends what has no answer yet, and when its connection breaks another call goes on with
// the first text that has none. So each answer comes once, in the order of the list. Internal to rpc/, of
// Client::Score.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "core/base/status.h"
#include "quire/v1/generation.grpc.pb.h"
#include "rpc/retry.h"

namespace quire::rpc {

class ScoreTexts {
 public:
  // Makes the next text a request; false when there is none. A failure ends the list there.
  using Next = std::function<Result<bool>(v1::ScoreRequest* request)>;
  // next is called by a thread of Run's. retry_s: as ClientOptions'. deadline: NowSeconds, 0: none.
  ScoreTexts(v1::Generation::Stub* stub, Next next, double retry_s, double deadline);

  // Once. on_answer comes on the calling thread. Returns when next has returned for the last time.
  Status Run(const std::function<void(const v1::ScoreResponse&)>& on_answer);
  // Ends Run with CANCELLED. Thread safe.
  void Stop();

 private:
  using Stream = grpc::ClientReaderWriter<v1::ScoreRequest, v1::ScoreResponse>;

  void TakeTexts();
  Status RunCalls(const std::function<void(const v1::ScoreResponse&)>& on_answer);
  Status RunCall(const std::function<void(const v1::ScoreResponse&)>& on_answer);
  void Send(Stream* stream);
  Status Answered(const v1::ScoreResponse& response);
  bool Complete() const { return listed_ && unanswered_.empty(); }  // with mutex_ held

  v1::Generation::Stub* const stub_;
  const Next next_;
  const double deadline_;
  Retry retry_;

  std::mutex mutex_;
  std::condition_variable wake_;  // of all threads
  // In order.
  std::deque<std::shared_ptr<const v1::ScoreRequest>> unanswered_;
  size_t bytes_ = 0;        // of these
  size_t sent_ = 0;         // of these, in the present call
  int64_t answered_ = 0;    // texts before them
  bool listed_ = false;     // there are no more
  Status refused_;          // why, where it was next's failure
  bool call_over_ = false;  // nothing is sent in it any more
  bool stopped_ = false, ended_ = false;
  grpc::ClientContext* context_ = nullptr;  // of the present call
};

}  // namespace quire::rpc
