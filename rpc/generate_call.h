// Calls that read one request: GenerateStream and Resume (a chunk at a time), Generate (the whole). Each is a gRPC
// reactor and the request's reader. It keeps itself alive from its making to OnDone. Internal to rpc/.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <vector>

#include "quire/v1/generation.pb.h"
#include "rpc/front.h"
#include "rpc/request.h"

namespace quire::rpc {

// What a client has got so far of a sequence that another service began.
struct Arrived {
  std::vector<int32_t> tokens;
  bool finished = false;
};

// Reads, checks and submits, on a thread of the intake: every failure becomes the request's. Not before `request` is in
// the table. `message` outlives the job. arrived: [prompts × sequences], or empty where nothing has.
void TakeIn(Front* front, const v1::GenerateRequest& message, const std::vector<Arrived>& arrived,
            const std::shared_ptr<Request>& request);
// Makes the Request of a message and puts it into the table with `reader`. A refusal is the call's status.
Result<std::shared_ptr<Request>> Admit(Front* front, const v1::GenerateRequest& message,
                                       const std::vector<Arrived>& arrived, const std::string& peer, bool whole,
                                       std::shared_ptr<Reader> reader);

class StreamCall : public grpc::ServerWriteReactor<v1::GenerateChunk>, public Reader {
 public:
  static grpc::ServerWriteReactor<v1::GenerateChunk>* Generate(Front* front, grpc::CallbackServerContext* context,
                                                               const v1::GenerateRequest* message);
  static grpc::ServerWriteReactor<v1::GenerateChunk>* Resume(Front* front, grpc::CallbackServerContext* context,
                                                             const v1::ResumeRequest* message);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void OnNews(const std::vector<std::shared_ptr<Request>>& requests) override;
  void OnReplaced() override;
  void OnTick(double now) override;

  StreamCall(Front* front, grpc::CallbackServerContext* context) : front_(front), context_(context) {}

 private:
  // Admits and takes in, with mutex_ held.
  void Begin(const v1::GenerateRequest* message, std::vector<Arrived> arrived);
  void Pump(std::unique_lock<std::mutex> lock);  // of mutex_
  // Told by OnCancel or by a write that failed, whichever comes first.
  void ClientGone(std::unique_lock<std::mutex> lock);
  void End(const Status& status);

  Front* const front_;
  grpc::CallbackServerContext* const context_;
  std::mutex mutex_;
  std::shared_ptr<StreamCall> self_;
  std::shared_ptr<Request> request_;
  v1::GenerateChunk chunk_;  // being written
  double write_began_ = 0;   // 0 while none is
  bool taking_in_ = false;   // the message is in use by the intake: the call must not end yet
  bool cancelled_ = false, replaced_ = false, ended_ = false;
};

class WholeCall : public grpc::ServerUnaryReactor, public Reader {
 public:
  static grpc::ServerUnaryReactor* Generate(Front* front, grpc::CallbackServerContext* context,
                                            const v1::GenerateRequest* message, v1::GenerateResponse* response);

  void OnCancel() override;
  void OnDone() override;
  void OnNews(const std::vector<std::shared_ptr<Request>>& requests) override;
  void OnReplaced() override {}  // whole requests are never resumed
  void OnTick(double) override {}

  WholeCall(Front* front, grpc::CallbackServerContext* context, v1::GenerateResponse* response)
      : front_(front), context_(context), response_(response) {}

 private:
  void Pump();

  Front* const front_;
  grpc::CallbackServerContext* const context_;
  v1::GenerateResponse* const response_;
  std::mutex mutex_;
  std::shared_ptr<WholeCall> self_;
  std::shared_ptr<Request> request_;
  bool taking_in_ = false, cancelled_ = false, ended_ = false;
};

// DEADLINE_EXCEEDED when the call's deadline has passed, else CANCELLED: the end of a call that its client ended.
Status CancelledStatus(const grpc::CallbackServerContext& context);

}  // namespace quire::rpc
