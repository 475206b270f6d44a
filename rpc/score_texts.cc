// See score_texts.h.
#include "rpc/score_texts.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

// What is taken from the caller ahead of the answers: more than a service has in hand at a time, and no more, for it is
// sent again when the connection breaks.
constexpr size_t kMostUnanswered = 64;
constexpr size_t kMostUnansweredBytes = 64 << 20;  // but one text, whatever its size

}  // namespace

ScoreTexts::ScoreTexts(v1::Generation::Stub* stub, Next next, double retry_s, double deadline)
    : stub_(stub), next_(std::move(next)), deadline_(deadline), retry_(retry_s) {}

Status ScoreTexts::Run(const std::function<void(const v1::ScoreResponse&)>& on_answer) {
  std::thread taker([this] { TakeTexts(); });
  const Status status = RunCalls(on_answer);
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    wake_.notify_all();
  }
  taker.join();
  return status.ok() ? refused_ : status;
}

void ScoreTexts::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  if (context_ != nullptr) context_->TryCancel();
  wake_.notify_all();
}

void ScoreTexts::TakeTexts() {
  for (int64_t index = 0;; ++index) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] {
        return ended_ || unanswered_.empty() || (unanswered_.size() < kMostUnanswered && bytes_ < kMostUnansweredBytes);
      });
      if (ended_) return;
    }
    auto request = std::make_shared<v1::ScoreRequest>();
    const Result<bool> more = next_(request.get());
    request->set_index(index);
    std::lock_guard lock(mutex_);
    wake_.notify_all();
    if (more.ok() && *more) {
      bytes_ += request->ByteSizeLong();
      unanswered_.push_back(std::move(request));
      continue;
    }
    if (!more.ok()) refused_ = index == 0 ? more.status() : more.status().WithContext("text " + std::to_string(index));
    listed_ = true;
    return;
  }
}

Status ScoreTexts::RunCalls(const std::function<void(const v1::ScoreResponse&)>& on_answer) {
  while (true) {
    const Status status = RunCall(on_answer);
    if (status.ok()) return status;
    std::unique_lock lock(mutex_);
    if (stopped_) return Cancelled("the scoring was stopped");
    if (status.code() != StatusCode::kUnavailable) return status;
    if (Complete()) return OkStatus();  // only the call's end was lost
    const double now = NowSeconds();
    const std::optional<double> pause = retry_.Pause(now);
    if (!pause.has_value()) return status;
    // With a deadline that passes meanwhile the next call says so.
    const double wait = deadline_ > 0 ? std::clamp(deadline_ - now, 0.0, *pause) : *pause;
    wake_.wait_for(lock, std::chrono::duration<double>(wait), [this] { return stopped_; });
  }
}

Status ScoreTexts::RunCall(const std::function<void(const v1::ScoreResponse&)>& on_answer) {
  grpc::ClientContext context;
  if (deadline_ > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(1e6 * (deadline_ - NowSeconds()))));
  }
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return Cancelled("the scoring was stopped");
    context_ = &context;
    sent_ = 0;
    call_over_ = false;
  }
  const auto stream = stub_->Score(&context);
  std::thread sender([&] { Send(stream.get()); });
  Status fault;
  v1::ScoreResponse response;
  while (stream->Read(&response)) {
    if (fault.ok()) fault = Answered(response);
    if (fault.ok()) {
      retry_.Progress();
      on_answer(response);
    } else {
      context.TryCancel();
    }
  }
  {
    std::lock_guard lock(mutex_);
    call_over_ = true;
    wake_.notify_all();
  }
  sender.join();
  const Status status = FromGrpc(stream->Finish());
  std::lock_guard lock(mutex_);
  context_ = nullptr;
  if (fault.ok() && status.ok() && !Complete()) {
    fault = Internal("the service has ended the call after " + std::to_string(answered_) +
                     " texts, before all were answered");
  }
  return fault.ok() ? status : fault;
}

void ScoreTexts::Send(Stream* stream) {
  while (true) {
    std::shared_ptr<const v1::ScoreRequest> request;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return call_over_ || sent_ < unanswered_.size() || listed_; });
      if (call_over_) return;
      if (sent_ < unanswered_.size()) request = unanswered_[sent_++];
    }
    if (request == nullptr) break;
    if (!stream->Write(*request)) return;  // the status says why
  }
  stream->WritesDone();
}

Status ScoreTexts::Answered(const v1::ScoreResponse& response) {
  std::lock_guard lock(mutex_);
  if (sent_ == 0 || response.index() != answered_) {
    return Internal("the service has answered for text " + std::to_string(response.index()) + " where text " +
                    std::to_string(answered_) + " was next");
  }
  bytes_ -= unanswered_.front()->ByteSizeLong();
  unanswered_.pop_front();
  --sent_;
  ++answered_;
  wake_.notify_all();
  return OkStatus();
}

}  // namespace quire::rpc
