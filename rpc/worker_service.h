// The Worker service: a coordinator's stream of submissions, and back the events of all of them, gathered into as few
// messages as the stream takes. What a stream leaves behind when it breaks is kept a minute for the next one. Internal
// to rpc/.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "quire/v1/worker.grpc.pb.h"
#include "rpc/engine_backend.h"
#include "rpc/front.h"
#include "rpc/request.h"

namespace quire::rpc {

// A submission, with its buffer.
struct Attempt {
  std::shared_ptr<const v1::Submission> submission;
  std::shared_ptr<Request> request;
};

class ExecuteCall;

class WorkerService : public v1::Worker::CallbackService {
 public:
  WorkerService(Front* front, EngineBackend* backend) : front_(front), backend_(backend) {}
  ~WorkerService() override;

  grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* Execute(
      grpc::CallbackServerContext* context) override;
  void OnTick(double now);  // ten times a second

 private:
  friend class ExecuteCall;

  Front* const front_;
  EngineBackend* const backend_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Attempt>> attempts_;     // by key
  std::map<std::string, std::weak_ptr<ExecuteCall>> streams_;             // by the coordinator's name
  std::unordered_set<std::shared_ptr<ExecuteCall>> open_;                 // every stream that has not ended
};

class ExecuteCall : public grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>, public Reader {
 public:
  ExecuteCall(WorkerService* service, grpc::CallbackServerContext* context) : service_(service), context_(context) {}
  void Begin(std::shared_ptr<ExecuteCall> self);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnNews(const std::vector<std::shared_ptr<Request>>& requests) override;
  void OnReplaced() override {}
  void OnTick(double) override {}  // once a stream, not once a request: OnStreamTick
  void OnStreamTick(double now);
  void Replace();  // a newer stream of the same coordinator has come

 private:
  void TakeIn();  // message_, on a thread of the intake
  Status Greet(const v1::CoordinatorHello& hello);
  void Submit(const v1::Submission& submission);
  void AttachTo(const v1::AttemptId& id);
  void Fail(const v1::AttemptId& id, const Status& status);
  void Pump();  // with mutex_ held
  void GatherEvents();
  void End(const Status& status);

  WorkerService* const service_;
  grpc::CallbackServerContext* const context_;
  std::mutex mutex_;
  std::shared_ptr<ExecuteCall> self_;
  v1::ExecuteRequest message_;    // being read, or taken in
  v1::ExecuteResponse response_;  // being written
  v1::ExecuteResponse next_;      // hello and failures for the next message
  std::unordered_map<std::string, std::shared_ptr<Attempt>> attempts_;  // by key; those that it reads
  std::unordered_set<std::shared_ptr<Request>> ready_;                  // with news
  bool greeted_ = false, taking_in_ = false, reads_done_ = false;
  double write_began_ = 0, load_sent_ = 0;
  Status failure_;
  bool cancelled_ = false, ended_ = false;
};

}  // namespace quire::rpc
