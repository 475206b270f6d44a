// See score_call.h.
#include "rpc/score_call.h"

#include <utility>

#include "core/base/clock.h"
#include "core/engine/scoring.h"
#include "rpc/convert.h"
#include "rpc/generate_call.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

constexpr size_t kWindow = 16;  // texts in the engine at a time, of one call

// What goes wrong with the first text needs no number: there may be no other.
Status OfText(int64_t index, const Status& status) {
  return index == 0 ? status : status.WithContext("text " + std::to_string(index));
}

}  // namespace

grpc::ServerBidiReactor<v1::ScoreRequest, v1::ScoreResponse>* ScoreCall::Make(Front* front,
                                                                              grpc::CallbackServerContext* context) {
  auto call = std::make_shared<ScoreCall>(front, context);
  std::lock_guard lock(call->mutex_);
  call->self_ = call;
  call->call_id_ = front->NewRequestId();
  call->peer_ = context->peer();
  if (const Status open = front->Open(); !open.ok()) {
    call->End(open);
  } else {
    call->ReadNext();
  }
  return call.get();
}

void ScoreCall::ReadNext() {
  if (ended_ || reading_ || taking_in_ || reads_done_ || items_.size() >= kWindow) return;
  reading_ = true;
  StartRead(&message_);
}

void ScoreCall::OnReadDone(bool ok) {
  std::shared_ptr<ScoreCall> self;
  {
    std::lock_guard lock(mutex_);
    reading_ = false;
    if (!ok || ended_ || cancelled_) {
      reads_done_ = true;
      return Pump();
    }
    taking_in_ = true;
    self = self_;
  }
  front_->intake().Post([self] { self->TakeIn(); });
}

void ScoreCall::TakeIn() {
  Item item;
  item.request_id = message_.request_id();
  item.index = message_.has_index() ? message_.index() : read_;
  const Status status = Submit(&item);
  std::lock_guard lock(mutex_);
  taking_in_ = false;
  ++read_;
  if (!status.ok()) {
    failure_ = OfText(item.index, status);
    reads_done_ = true;
  } else {
    if (cancelled_ || ended_) item.request->Fail(CancelledStatus(*context_));
    items_.push_back(std::move(item));
  }
  Pump();
}

Status ScoreCall::Submit(Item* item) {
  RETURN_IF_ERROR(front_->Open());
  ASSIGN_OR_RETURN(const ModelLimits limits, front_->Limits());
  if (!message_.model().empty() && message_.model() != limits.model) {
    return NotFound("this service has the model '" + limits.model + "', not '" + message_.model() + "'");
  }
  RETURN_IF_ERROR(CheckParameterBytes(message_.ByteSizeLong(), message_.prompt().ByteSizeLong()));
  if (message_.top() < 0 || message_.top() > limits.request.vocab) {
    return InvalidArgument("top is " + std::to_string(message_.top()) +
                           "; it must be 0 to the size of the vocabulary (" + std::to_string(limits.request.vocab) +
                           ")");
  }
  ASSIGN_OR_RETURN(item->ids, EncodePrompt(message_.prompt(), front_->backend().tokenizer(), limits.prompt));
  if (const double bytes = static_cast<double>(item->ids.size()) * (16 + 8.0 * message_.top());
      bytes > static_cast<double>(front_->options().max_message)) {
    return ResourceExhausted("top is " + std::to_string(message_.top()) + ", which for " +
                             std::to_string(item->ids.size()) + " tokens is more than a message takes; ask for fewer");
  }
  GenerationRequest request = ScoringRequest(item->ids, message_.top());
  RETURN_IF_ERROR(CheckRequest(request, limits.request));
  if (message_.has_priority()) request.priority = message_.priority();

  Request::Options options;
  options.id = call_id_ + '\x1f' + std::to_string(read_);
  options.client = message_.client().empty() ? peer_ : message_.client();
  options.whole = true;
  options.table = &front_->requests();
  options.max_unread = front_->options().max_message;
  item->request = std::make_shared<Request>(std::move(options), &front_->backend(), front_->notify());
  {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(item->request->Attach(self_, {}));
  }
  const Status added = front_->requests().Add(item->request);
  if (added.ok()) item->request->Submit(0, std::move(request));
  item->request->EndOfSubmissions();
  return added;
}

Status ScoreCall::Answer(const Item& item) {
  v1::GenerateResponse whole;
  RETURN_IF_ERROR(item.request->TakeResponse(&whole, front_->options().max_message));
  if (whole.outputs(0).finish_reason() == v1::FINISH_REASON_ABORTED) {
    // The end of a drain: another service, or this one when it is there again, can score the text.
    return front_->draining() ? Unavailable("the service is draining; send the text to another, or later")
                              : Cancelled("the scoring was aborted");
  }
  response_.Clear();
  response_.set_request_id(item.request_id);
  response_.set_index(item.index);
  response_.mutable_token_ids()->Assign(item.ids.begin(), item.ids.end());
  v1::Output* output = whole.mutable_outputs(0);
  response_.mutable_logprobs()->Swap(output->mutable_prompt_logprobs());
  if (item.ids.size() > 1) response_.mutable_logprobs()->MergeFrom(output->logprobs());
  if (response_.logprobs_size() != static_cast<int>(item.ids.size())) {
    return Internal("the engine scored " + std::to_string(response_.logprobs_size()) + " of " +
                    std::to_string(item.ids.size()) + " tokens");
  }
  double sum = 0;
  for (const v1::TokenLogprob& one : response_.logprobs()) sum += one.logprob();
  response_.set_sum(sum);
  return OkStatus();
}

void ScoreCall::End(const Status& status) {
  if (std::exchange(ended_, true)) return;
  for (const Item& item : items_) item.request->Fail(Cancelled("the call has ended"));
  Finish(ToGrpc(status));
}

void ScoreCall::Pump() {
  if (ended_ || taking_in_ || write_began_ != 0) return;
  if (cancelled_) return End(CancelledStatus(*context_));
  if (!items_.empty() && items_.front().request->Complete()) {
    const Item item = std::move(items_.front());
    items_.pop_front();
    item.request->Detach(this);
    front_->requests().Release(item.request);
    const Status status = Answer(item);
    if (!status.ok()) return End(OfText(item.index, status));
    write_began_ = NowSeconds();
    StartWrite(&response_);
    ReadNext();
    return;
  }
  if (items_.empty() && reads_done_) return End(failure_);
  ReadNext();
}

void ScoreCall::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  write_began_ = 0;
  if (!ok) cancelled_ = true;
  Pump();
}

void ScoreCall::OnNews(const std::vector<std::shared_ptr<Request>>&) {
  std::lock_guard lock(mutex_);
  Pump();
}

void ScoreCall::OnCancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (const Item& item : items_) item.request->Fail(CancelledStatus(*context_));
  Pump();
}

void ScoreCall::OnTick(double now) {
  std::lock_guard lock(mutex_);
  if (ended_ || write_began_ == 0 || now - write_began_ < front_->options().unread_s) return;
  context_->TryCancel();
}

void ScoreCall::OnDone() {
  std::shared_ptr<ScoreCall> self;
  std::deque<Item> items;
  {
    std::lock_guard lock(mutex_);
    self = std::move(self_);
    items.swap(items_);
  }
  for (const Item& item : items) {
    item.request->Detach(this);
    front_->requests().Release(item.request);
  }
}

}  // namespace quire::rpc
