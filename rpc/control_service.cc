// The Control service: answers at once, but GetTokenizer, whose files are read on a thread of the intake.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include "quire/v1/control.grpc.pb.h"
#include "rpc/front.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

constexpr size_t kPartBytes = 1 << 20;

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

class TokenizerCall : public grpc::ServerWriteReactor<v1::GetTokenizerResponse> {
 public:
  static grpc::ServerWriteReactor<v1::GetTokenizerResponse>* Make(Front* front) {
    auto call = std::make_shared<TokenizerCall>();
    std::lock_guard lock(call->mutex_);
    call->self_ = call;
    front->intake().Post([front, call] {
      auto files = front->backend().TokenizerFiles();
      std::lock_guard lock(call->mutex_);
      if (files.ok()) call->files_ = std::move(files).value();
      call->Next(files.status());
    });
    return call.get();
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    Next(ok ? OkStatus() : Cancelled("the client has ended the call"));
  }
  void OnDone() override {
    std::shared_ptr<TokenizerCall> self;  // outlives the lock
    std::lock_guard lock(mutex_);
    self = std::move(self_);
  }

 private:
  void Next(const Status& status) {
    if (!status.ok() || file_ >= files_.size()) {
      Finish(ToGrpc(status));
      return;
    }
    const TokenizerFile& file = files_[file_];
    part_.set_name(file.name);
    part_.set_data(file.data.substr(offset_, kPartBytes));
    offset_ += kPartBytes;
    if (offset_ >= file.data.size()) {
      ++file_;
      offset_ = 0;
    }
    StartWrite(&part_);
  }

  std::mutex mutex_;
  std::shared_ptr<TokenizerCall> self_;
  std::vector<TokenizerFile> files_;
  size_t file_ = 0, offset_ = 0;
  v1::GetTokenizerResponse part_;
};

class ControlService : public v1::Control::CallbackService {
 public:
  explicit ControlService(Front* front) : front_(front) {}

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    for (const std::string& id : request->request_ids()) {
      const auto found = front_->requests().Find(id);
      if (found != nullptr && found->Abort()) response->add_aborted(id);
    }
    return Answer(context, OkStatus());
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override {
    const double timeout = request->has_timeout_s() ? request->timeout_s() : front_->options().shutdown_timeout_s;
    if (!(timeout >= 0) || std::isinf(timeout)) {
      return Answer(context, InvalidArgument("timeout_s is " + std::to_string(timeout) +
                                             "; it must be a finite number of seconds ≥ 0"));
    }
    front_->Drain(timeout);
    response->set_in_flight(front_->in_flight());
    return Answer(context, OkStatus());
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest*,
                                         v1::GetModelInfoResponse* response) override {
    auto info = front_->backend().ModelInfo();
    if (info.ok()) *response = std::move(info).value();
    return Answer(context, info.status());
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    front_->backend().FillServerInfo(response);
    response->set_state(front_->State());
    response->set_uptime_s(front_->uptime());
    response->set_max_queue(front_->options().max_queue);
    response->set_host(HostName());
    response->set_pid(getpid());
    return Answer(context, OkStatus());
  }

  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const v1::GetLoadRequest*,
                                    v1::GetLoadResponse* response) override {
    *response = front_->backend().Load();
    return Answer(context, OkStatus());
  }

  grpc::ServerWriteReactor<v1::GetTokenizerResponse>* GetTokenizer(grpc::CallbackServerContext*,
                                                                   const v1::GetTokenizerRequest*) override {
    return TokenizerCall::Make(front_);
  }

 private:
  static grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const Status& status) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  Front* const front_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeControlService(Front* front) { return std::make_unique<ControlService>(front); }

}  // namespace quire::rpc
