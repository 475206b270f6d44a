// Score: a stream of texts in, their tokens' log-probabilities out, in the same order. A few texts are in the engine at a
// time; the next is read when the first of them has been answered, so that a list of any length takes bounded memory.
// Internal to rpc/.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "quire/v1/generation.pb.h"
#include "rpc/front.h"
#include "rpc/request.h"

namespace quire::rpc {

class ScoreCall : public grpc::ServerBidiReactor<v1::ScoreRequest, v1::ScoreResponse>, public Reader {
 public:
  static grpc::ServerBidiReactor<v1::ScoreRequest, v1::ScoreResponse>* Make(Front* front,
                                                                            grpc::CallbackServerContext* context);
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnNews(const std::vector<std::shared_ptr<Request>>& requests) override;
  void OnReplaced() override {}
  void OnTick(double now) override;

  ScoreCall(Front* front, grpc::CallbackServerContext* context) : front_(front), context_(context) {}

 private:
  struct Item {
    std::string request_id;
    int64_t index = 0;  // as ScoreRequest.index
    std::vector<int32_t> ids;
    std::shared_ptr<Request> request;
  };
  // Encodes and submits what was read; on a thread of the intake.
  void TakeIn();
  Status Submit(Item* item);
  Status Answer(const Item& item);  // fills response_
  void Pump();                      // with mutex_ held
  void ReadNext();
  void End(const Status& status);

  Front* const front_;
  grpc::CallbackServerContext* const context_;
  std::string call_id_, peer_;
  std::mutex mutex_;
  std::shared_ptr<ScoreCall> self_;
  v1::ScoreRequest message_;    // being read, or taken in
  v1::ScoreResponse response_;  // being written
  std::deque<Item> items_;      // in the order asked
  int64_t read_ = 0;
  bool reading_ = false, taking_in_ = false, reads_done_ = false;
  double write_began_ = 0;
  Status failure_;  // of taking in; told when what came before has been answered
  bool cancelled_ = false, ended_ = false;
};

}  // namespace quire::rpc
