// See worker_service.h.
#include "rpc/worker_service.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "rpc/convert.h"
#include "rpc/generate_call.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

constexpr size_t kMessageBytes = 1 << 20;  // of events gathered into one message, about
constexpr double kBusyLoadSeconds = 0.1, kIdleLoadSeconds = 1;
constexpr size_t kMaxContext = 64 << 10;
constexpr size_t kWholeKeptBytes = 64 << 20;  // of submissions that a hello offers whole

// Names of the table; clients' ids have no control characters, so theirs never meet these.
std::string Key(const v1::AttemptId& id) {
  return '\x1e' + id.request_id() + '\x1f' + std::to_string(id.attempt());
}

}  // namespace

WorkerService::~WorkerService() {
  std::lock_guard lock(mutex_);
  CHECK(open_.empty());  // the server has ended, and with it every stream
}

grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* WorkerService::Execute(
    grpc::CallbackServerContext* context) {
  auto call = std::make_shared<ExecuteCall>(this, context);
  {
    std::lock_guard lock(mutex_);
    open_.insert(call);
  }
  call->Begin(call);
  return call.get();
}

void WorkerService::OnTick(double now) {
  std::vector<std::shared_ptr<ExecuteCall>> open;
  {
    std::lock_guard lock(mutex_);
    open.assign(open_.begin(), open_.end());
    std::erase_if(attempts_, [this](const auto& entry) {
      return front_->submissions().Find(entry.first) != entry.second->request;
    });
    std::erase_if(streams_, [](const auto& entry) { return entry.second.expired(); });
  }
  for (const auto& call : open) call->OnStreamTick(now);
}

void ExecuteCall::Begin(std::shared_ptr<ExecuteCall> self) {
  std::lock_guard lock(mutex_);
  self_ = std::move(self);
  if (const Status open = service_->front_->Open(); !open.ok()) return End(open);
  StartRead(&message_);
}

void ExecuteCall::OnReadDone(bool ok) {
  std::shared_ptr<ExecuteCall> self;
  {
    std::lock_guard lock(mutex_);
    if (!ok || ended_) {
      reads_done_ = true;
      return Pump();
    }
    taking_in_ = true;
    self = self_;
  }
  service_->front_->intake().Post([self] { self->TakeIn(); });
}

void ExecuteCall::TakeIn() {
  Status status;
  if (!greeted_) {
    status = message_.has_hello() ? Greet(message_.hello())
                                  : InvalidArgument("the stream's first message has no hello");
  }
  if (status.ok()) {
    for (const v1::AttemptId& id : message_.attaches()) AttachTo(id);
    for (const v1::Submission& submission : message_.submissions()) Submit(submission);
    for (const v1::AttemptId& id : message_.aborts()) {
      if (const auto found = service_->front_->submissions().Find(Key(id))) found->Abort();
    }
  }
  std::lock_guard lock(mutex_);
  taking_in_ = false;
  failure_ = status;
  if (status.ok() && !cancelled_ && !ended_) {
    StartRead(&message_);
  } else {
    reads_done_ = true;
  }
  Pump();
}

Status ExecuteCall::Greet(const v1::CoordinatorHello& hello) {
  ASSIGN_OR_RETURN(v1::Identity identity,
                   service_->backend_->Identity(service_->front_->options().max_queue));
  for (const auto& [what, theirs, ours] :
       {std::tuple("model", &hello.model_hash(), &identity.model_hash()),
        std::tuple("tokenizer", &hello.tokenizer_hash(), &identity.tokenizer_hash())}) {
    if (!theirs->empty() && *theirs != *ours) {
      return FailedPrecondition(std::string("the coordinator expects a ") + what + " of hash " + *theirs +
                                ", this group has " + *ours + "; start both with the same model");
    }
  }
  std::shared_ptr<ExecuteCall> before;
  if (!hello.coordinator().empty()) {
    std::lock_guard lock(service_->mutex_);
    std::weak_ptr<ExecuteCall>& slot = service_->streams_[hello.coordinator()];
    before = slot.lock();
    slot = self_;
  }
  if (before != nullptr) before->Replace();
  v1::WorkerHello answer;
  *answer.mutable_identity() = std::move(identity);
  {
    std::lock_guard lock(service_->mutex_);
    size_t bytes = 0;
    for (const auto& [key, attempt] : service_->attempts_) {
      if (attempt->request->reader() != nullptr) continue;
      bytes += attempt->submission->ByteSizeLong();
      if (bytes <= kWholeKeptBytes) {
        *answer.add_kept() = *attempt->submission;
      } else {
        *answer.add_kept()->mutable_id() = attempt->submission->id();
      }
    }
  }
  std::lock_guard lock(mutex_);
  greeted_ = true;
  *next_.mutable_hello() = std::move(answer);
  return OkStatus();
}

void ExecuteCall::Fail(const v1::AttemptId& id, const Status& status) {
  std::lock_guard lock(mutex_);
  v1::Failure* failure = next_.add_failures();
  *failure->mutable_id() = id;
  failure->set_code(static_cast<int>(status.code()));
  failure->set_message(status.message());
}

void ExecuteCall::Submit(const v1::Submission& submission) {
  Front* const front = service_->front_;
  Status status = front->Open();
  if (status.ok()) status = CheckRequestId(submission.id().request_id());
  if (status.ok() && submission.id().request_id().empty()) status = InvalidArgument("a submission has no request_id");
  if (status.ok() && submission.context().size() > kMaxContext) {
    status = InvalidArgument("a submission's context has " + std::to_string(submission.context().size()) +
                             " bytes; it may have at most " + std::to_string(kMaxContext));
  }
  const int n = submission.sampling().has_n() ? submission.sampling().n() : 1;
  if (status.ok() && (n < 1 || n > 1024)) {
    status = InvalidArgument("sampling.n is " + std::to_string(n) + "; it must be 1 to 1024");
  }
  auto request = ReadSubmission(submission);
  if (status.ok()) status = request.status();
  if (!status.ok()) return Fail(submission.id(), status);

  Request::Options options;
  options.id = Key(submission.id());
  options.sequences = n;
  options.first_sequence = submission.first_sequence();
  options.first_token = submission.output_token_ids_size();
  options.keep = true;
  options.table = &front->submissions();
  options.max_unread = 4 * front->options().max_unread;
  auto attempt = std::make_shared<Attempt>();
  attempt->submission = std::make_shared<const v1::Submission>(submission);
  attempt->request = std::make_shared<Request>(std::move(options), &front->backend(), front->notify());
  const std::string& key = attempt->request->id();
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;  // the stream has gone: nobody would read it
    status = attempt->request->Attach(self_, {});
    if (status.ok()) status = front->submissions().Add(attempt->request);
    if (status.ok()) attempts_[key] = attempt;
  }
  if (!status.ok()) return Fail(submission.id(), status);
  {
    std::lock_guard lock(service_->mutex_);
    service_->attempts_[key] = attempt;
  }
  attempt->request->Submit(0, std::move(request).value());
  attempt->request->EndOfSubmissions();
}

void ExecuteCall::AttachTo(const v1::AttemptId& id) {
  std::shared_ptr<Attempt> attempt;
  {
    std::lock_guard lock(service_->mutex_);
    const auto at = service_->attempts_.find(Key(id));
    if (at != service_->attempts_.end()) attempt = at->second;
  }
  if (attempt == nullptr || attempt->request->reader() != nullptr) {
    return Fail(id, NotFound("no attempt " + std::to_string(id.attempt()) + " at '" + id.request_id() + "' is kept"));
  }
  Status status;
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    status = attempt->request->Attach(self_, {});
    if (status.ok()) attempts_[attempt->request->id()] = attempt;
  }
  if (!status.ok()) Fail(id, status);
}

void ExecuteCall::GatherEvents() {
  size_t bytes = 0;
  for (auto at = ready_.begin(); at != ready_.end() && bytes < kMessageBytes;) {
    const std::shared_ptr<Request> request = *at;
    const auto found = attempts_.find(request->id());
    if (found == attempts_.end() || found->second->request != request) {
      at = ready_.erase(at);
      continue;
    }
    const v1::AttemptId& id = found->second->submission->id();
    bool more = true;
    while (bytes < kMessageBytes) {
      v1::TokenEvent event;
      more = request->Take(this, &event);
      if (!more) break;
      *event.mutable_id() = id;
      bytes += event.ByteSizeLong();
      response_.add_events()->Swap(&event);
    }
    if (more) break;  // the message is full
    at = ready_.erase(at);
    Status status;
    if (!request->Drained(&status)) continue;
    if (!status.ok()) {
      v1::Failure* failure = response_.add_failures();
      *failure->mutable_id() = id;
      failure->set_code(static_cast<int>(status.code()));
      failure->set_message(status.message());
    }
    request->Detach(this);
    // Until it has settled, the table counts it; nobody will ask for it any more.
    if (request->Settled()) {
      service_->front_->submissions().Drop(request);
      attempts_.erase(found);
    }
  }
}

void ExecuteCall::Pump() {
  if (ended_ || write_began_ != 0) return;
  if (cancelled_) {
    if (!taking_in_) End(CancelledStatus(*context_));
    return;
  }
  if (!failure_.ok()) return End(failure_);
  response_.Clear();
  if (greeted_) {
    response_.Swap(&next_);
    GatherEvents();
    const double now = NowSeconds();
    // With each end, so that the coordinator knows of the pages that are free again when its client hears of the end.
    const bool ends = response_.failures_size() > 0 ||
                      std::any_of(response_.events().begin(), response_.events().end(), [](const v1::TokenEvent& event) {
                        return event.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
                      });
    if (ends || now - load_sent_ >= (attempts_.empty() ? kIdleLoadSeconds : kBusyLoadSeconds)) {
      load_sent_ = now;
      *response_.mutable_load() = service_->backend_->GroupLoad();
      if (service_->front_->State() != v1::SERVER_STATE_READY) {
        response_.mutable_load()->set_available(false);
        if (service_->front_->draining()) response_.mutable_load()->set_detail("draining");
      }
    }
  }
  if (response_.has_hello() || response_.events_size() > 0 || response_.failures_size() > 0 || response_.has_load()) {
    write_began_ = NowSeconds();
    StartWrite(&response_);
    return;
  }
  if (taking_in_ || !attempts_.empty()) return;
  if (reads_done_) return End(OkStatus());
  if (service_->front_->refusing()) End(Unavailable("the group has drained"));
}

void ExecuteCall::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  write_began_ = 0;
  if (!ok) cancelled_ = true;
  Pump();
}

void ExecuteCall::OnNews(const std::vector<std::shared_ptr<Request>>& requests) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  ready_.insert(requests.begin(), requests.end());
  Pump();
}

void ExecuteCall::OnStreamTick(double now) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  if (write_began_ != 0 && now - write_began_ >= service_->front_->options().unread_s) {
    context_->TryCancel();
    return;
  }
  std::erase_if(attempts_, [this](const auto& entry) {  // those that were drained before they had settled
    const std::shared_ptr<Request>& request = entry.second->request;
    if (request->reader() != nullptr || !request->Settled()) return false;
    service_->front_->submissions().Drop(request);
    return true;
  });
  Pump();
}

void ExecuteCall::OnCancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  Pump();
}

void ExecuteCall::Replace() {
  std::unordered_map<std::string, std::shared_ptr<Attempt>> attempts;
  {
    std::lock_guard lock(mutex_);
    attempts.swap(attempts_);
    if (!ended_) {
      failure_ = Cancelled("a newer stream of the same coordinator has come");
      context_->TryCancel();
    }
  }
  for (const auto& [key, attempt] : attempts) attempt->request->Detach(this);
}

void ExecuteCall::End(const Status& status) {
  if (std::exchange(ended_, true)) return;
  Finish(ToGrpc(status));
}

void ExecuteCall::OnDone() {
  std::shared_ptr<ExecuteCall> self;
  std::unordered_map<std::string, std::shared_ptr<Attempt>> attempts;
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    self = std::move(self_);
    attempts.swap(attempts_);
  }
  for (const auto& [key, attempt] : attempts) attempt->request->Detach(this);
  std::lock_guard lock(service_->mutex_);
  service_->open_.erase(self);
}

}  // namespace quire::rpc
