// See generate_call.h.
#include "rpc/generate_call.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <chrono>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "rpc/convert.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

constexpr int kMaxPrompts = 1024;
constexpr int kMaxSequences = 1024;

// What prompt_logprobs makes is in memory all at once.
Status CheckPromptLogprobs(const GenerationRequest& request, size_t limit) {
  if (request.prompt_logprobs < 0) return OkStatus();
  const double bytes = static_cast<double>(request.prompt.size()) * (16 + 8.0 * request.prompt_logprobs);
  if (bytes <= static_cast<double>(limit)) return OkStatus();
  return ResourceExhausted("prompt_logprobs is " + std::to_string(request.prompt_logprobs) + ", which for " +
                           std::to_string(request.prompt.size()) + " prompt tokens is more than a message takes (" +
                           std::to_string(limit) + " bytes); ask for fewer");
}

// The call's deadline on the clock of NowSeconds.
double DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::numeric_limits<double>::infinity();
  return NowSeconds() + std::chrono::duration<double>(deadline - std::chrono::system_clock::now()).count();
}

// A prompt of which something has arrived goes on sequence by sequence, each behind its tokens.
Status SubmitPrompt(int prompt, GenerationRequest one, const RequestLimits& limits, const std::vector<Arrived>& arrived,
                    const std::shared_ptr<Request>& request) {
  const int n = request->options().sequences;
  const auto sequence = [&](int i) -> const Arrived& { return arrived[static_cast<size_t>(prompt * n + i)]; };
  bool begun = false;
  for (int i = 0; i < n && !arrived.empty(); ++i) begun = begun || sequence(i).finished || !sequence(i).tokens.empty();
  if (!begun) {
    request->Submit(prompt, std::move(one));
    return OkStatus();
  }
  one.sampling.n = 1;
  for (int i = 0; i < n; ++i) {
    if (sequence(i).finished) continue;
    one.resume = GenerationRequest::Resume{i, sequence(i).tokens};
    RETURN_IF_ERROR(CheckRequest(one, limits));
    request->SubmitSequence(prompt, i, one);
  }
  return OkStatus();
}

int SequencesOf(const v1::GenerateRequest& request) { return request.sampling().has_n() ? request.sampling().n() : 1; }

// Tells messages apart that were not sent as the same request: of their fields' values, not of how they were encoded.
uint64_t FingerprintOf(const v1::GenerateRequest& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);  // maps by key
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return std::hash<std::string>()(bytes);
}

// Where each position of a call stands among the request's sequences, [positions] < prompts × sequences.
Result<std::vector<size_t>> PlacesOf(const v1::ResumeRequest& message, int prompts, int sequences) {
  std::vector<size_t> places;
  std::vector<bool> named(static_cast<size_t>(prompts * sequences), false);
  for (const v1::ResumePosition& position : message.positions()) {
    const std::string name = "sequence " + std::to_string(position.sequence_index()) + " of prompt " +
                             std::to_string(position.prompt_index());
    if (position.prompt_index() < 0 || position.prompt_index() >= prompts || position.sequence_index() < 0 ||
        position.sequence_index() >= sequences) {
      return InvalidArgument("a position names " + name + "; the request has " + std::to_string(prompts) +
                             " prompts of " + std::to_string(sequences) + " sequences");
    }
    places.push_back(static_cast<size_t>(position.prompt_index() * sequences + position.sequence_index()));
    if (named[places.back()]) return InvalidArgument("the positions name " + name + " twice; name each once");
    named[places.back()] = true;
  }
  return places;
}

// Of a request that the service doesn't know: what the client says has arrived, [prompts × sequences].
Result<std::vector<Arrived>> ReadArrived(const v1::ResumeRequest& message) {
  const v1::GenerateRequest& request = message.request();
  const int n = SequencesOf(request);
  if (n < 1 || n > kMaxSequences || request.prompts_size() > kMaxPrompts) return std::vector<Arrived>();  // refused later
  ASSIGN_OR_RETURN(const std::vector<size_t> places, PlacesOf(message, request.prompts_size(), n));
  std::vector<Arrived> arrived(static_cast<size_t>(request.prompts_size() * n));
  bool any = false;
  for (int i = 0; i < message.positions_size(); ++i) {
    const v1::ResumePosition& position = message.positions(i);
    if (position.next_token_index() != position.token_ids_size()) {
      return InvalidArgument("a position has next_token_index " + std::to_string(position.next_token_index()) +
                             " and brings " + std::to_string(position.token_ids_size()) +
                             " token_ids along; this service doesn't know the request and needs all of them");
    }
    Arrived& one = arrived[places[static_cast<size_t>(i)]];
    one.tokens.assign(position.token_ids().begin(), position.token_ids().end());
    one.finished = position.finished();
    any = any || !one.tokens.empty() || one.finished;
  }
  const bool greedy = request.sampling().has_temperature() && request.sampling().temperature() == 0;
  if (any && !greedy && !request.sampling().has_seed()) {
    return InvalidArgument("the request that is brought along has no seed; the service that drew its first tokens chose "
                           "one, which nobody else knows. Give requests a seed when they are to survive a restart");
  }
  return arrived;
}

// Of a request that the service knows: where each sequence goes on, [prompts × sequences].
Result<std::vector<Request::Place>> ReadNext(const v1::ResumeRequest& message, const Request::Options& options) {
  if (message.has_request() && FingerprintOf(message.request()) != options.message) {
    return InvalidArgument("the request that is brought along is not the one that was sent as '" +
                           message.request_id() + "', which is known here; bring the same, or give another request_id");
  }
  ASSIGN_OR_RETURN(const std::vector<size_t> places, PlacesOf(message, options.prompts, options.sequences));
  std::vector<Request::Place> next(static_cast<size_t>(options.prompts * options.sequences));
  for (size_t i = 0; i < places.size(); ++i) {
    const v1::ResumePosition& position = message.positions(static_cast<int>(i));
    next[places[i]] = {position.next_token_index(), position.finished()};
  }
  return next;
}

}  // namespace

Status CancelledStatus(const grpc::CallbackServerContext& context) {
  if (context.deadline() <= std::chrono::system_clock::now()) {
    return {StatusCode::kDeadlineExceeded, "the call's deadline has passed"};
  }
  return Cancelled("the client has ended the call");
}

void TakeIn(Front* front, const v1::GenerateRequest& message, const std::vector<Arrived>& arrived,
            const std::shared_ptr<Request>& request) {
  const Status status = [&]() -> Status {
    ASSIGN_OR_RETURN(const ModelLimits limits, front->Limits());
    if (!message.model().empty() && message.model() != limits.model) {
      return NotFound("this service has the model '" + limits.model + "', not '" + message.model() +
                      "'; leave model empty to use it");
    }
    GenerationRequest parameters;
    RETURN_IF_ERROR(ReadParameters(message, &parameters));
    const auto take_in = [&](int p) -> Status {
      GenerationRequest one = parameters;
      ASSIGN_OR_RETURN(one.prompt, EncodePrompt(message.prompts(p), front->backend().tokenizer(), limits.prompt));
      RETURN_IF_ERROR(CheckRequest(one, limits.request));
      RETURN_IF_ERROR(CheckPromptLogprobs(one, front->options().max_message));
      return SubmitPrompt(p, std::move(one), limits.request, arrived, request);
    };
    for (int p = 0; p < message.prompts_size(); ++p) {
      const Status taken = take_in(p);
      if (!taken.ok()) return message.prompts_size() > 1 ? taken.WithContext("prompt " + std::to_string(p)) : taken;
    }
    return OkStatus();
  }();
  if (!status.ok()) request->Fail(status);
  request->EndOfSubmissions();
}

Result<std::shared_ptr<Request>> Admit(Front* front, const v1::GenerateRequest& message,
                                       const std::vector<Arrived>& arrived, const std::string& peer, bool whole,
                                       std::shared_ptr<Reader> reader) {
  RETURN_IF_ERROR(front->Open());
  RETURN_IF_ERROR(CheckRequestId(message.request_id()));
  const int n = SequencesOf(message);
  if (n < 1 || n > kMaxSequences) {
    return InvalidArgument("sampling.n is " + std::to_string(n) + "; it must be 1 to " + std::to_string(kMaxSequences));
  }
  if (message.prompts_size() < 1 || message.prompts_size() > kMaxPrompts) {
    return InvalidArgument("the request has " + std::to_string(message.prompts_size()) + " prompts; it takes 1 to " +
                           std::to_string(kMaxPrompts));
  }
  size_t prompt_bytes = 0;
  for (const v1::Prompt& prompt : message.prompts()) prompt_bytes += prompt.ByteSizeLong();
  RETURN_IF_ERROR(CheckParameterBytes(message.ByteSizeLong(), prompt_bytes));
  if (whole && message.resumable()) {
    return InvalidArgument("resumable is for GenerateStream; Generate gives its result at once or not at all");
  }
  Request::Options options;
  options.id = message.request_id().empty() ? front->NewRequestId() : message.request_id();
  options.client = message.client().empty() ? peer : message.client();
  options.prompts = message.prompts_size();
  options.sequences = n;
  options.keep = message.resumable();
  if (options.keep) options.message = FingerprintOf(message);
  options.echo = message.response().echo_token_ids();
  options.whole = whole;
  options.table = &front->requests();
  // What is kept counts whole, not only what waits.
  options.max_unread = whole ? front->options().max_message : front->options().max_unread * (options.keep ? 4 : 1);
  auto request = std::make_shared<Request>(std::move(options), &front->backend(), front->notify());
  for (size_t i = 0; i < arrived.size(); ++i) {
    request->Begin(static_cast<int>(i), static_cast<int64_t>(arrived[i].tokens.size()), arrived[i].finished);
  }
  RETURN_IF_ERROR(request->Attach(std::move(reader), {}));
  RETURN_IF_ERROR(front->requests().Add(request));
  return request;
}

grpc::ServerWriteReactor<v1::GenerateChunk>* StreamCall::Generate(Front* front, grpc::CallbackServerContext* context,
                                                                  const v1::GenerateRequest* message) {
  auto call = std::make_shared<StreamCall>(front, context);
  std::lock_guard lock(call->mutex_);
  call->self_ = call;
  call->Begin(message, {});
  return call.get();
}

void StreamCall::Begin(const v1::GenerateRequest* message, std::vector<Arrived> arrived) {
  auto request = Admit(front_, *message, arrived, context_->peer(), /*whole=*/false, self_);
  if (!request.ok()) return End(request.status());
  request_ = *request;
  // A client's own timer cancels the call a moment before ours would: the request must not outlive that.
  request_->set_deadline(DeadlineOf(*context_));
  taking_in_ = true;
  front_->intake().Post([call = self_, message, arrived = std::move(arrived), request = request_] {
    TakeIn(call->front_, *message, arrived, request);
    std::unique_lock lock(call->mutex_);
    call->taking_in_ = false;
    call->Pump(std::move(lock));
  });
}

grpc::ServerWriteReactor<v1::GenerateChunk>* StreamCall::Resume(Front* front, grpc::CallbackServerContext* context,
                                                                const v1::ResumeRequest* message) {
  auto call = std::make_shared<StreamCall>(front, context);
  std::unique_lock lock(call->mutex_);
  call->self_ = call;
  if (message->has_request() && message->request().request_id() != message->request_id()) {
    call->End(InvalidArgument("the request that is brought along is named '" + message->request().request_id() +
                              "', the one to resume '" + message->request_id() + "'; name both alike"));
    return call.get();
  }
  auto request = front->requests().Find(message->request_id());
  if (message->has_request()) {
    Status failure;
    if (request != nullptr && request->Settled() && request->Drained(&failure) &&
        failure.code() == StatusCode::kUnavailable) {
      front->requests().Drop(request);  // it failed for want of a group: another attempt may do better
      request.reset();
    }
    if (request == nullptr) {
      auto arrived = ReadArrived(*message);
      if (arrived.ok()) {
        call->Begin(&message->request(), std::move(arrived).value());
      } else {
        call->End(arrived.status());
      }
      return call.get();
    }
  }
  if (request == nullptr || !request->options().keep) {
    call->End(NotFound("there is no resumable request '" + message->request_id() +
                       "': it was never sent here with resumable, or it has ended more than a minute ago"));
    return call.get();
  }
  const auto next = ReadNext(*message, request->options());
  if (!next.ok()) {
    call->End(next.status());
    return call.get();
  }
  lock.unlock();  // attaching tells the reader before, which has a lock of its own
  const Status attached = request->Attach(call, *next);
  lock.lock();
  if (!attached.ok()) {
    call->End(attached);  // the request is others'
    return call.get();
  }
  call->request_ = request;
  request->set_deadline(DeadlineOf(*context));
  if (call->ended_) {
    request->Detach(call.get());  // the client went while it was being attached
  } else {
    call->Pump(std::move(lock));
  }
  return call.get();
}

void StreamCall::End(const Status& status) {
  if (std::exchange(ended_, true)) return;
  Finish(ToGrpc(status));
}

// The write begins without the lock: what ends it comes at once, on another thread, and would wait for it.
void StreamCall::Pump(std::unique_lock<std::mutex> lock) {
  if (ended_ || write_began_ != 0) return;
  if (cancelled_ || replaced_) {
    if (taking_in_) return;
    return End(cancelled_ ? CancelledStatus(*context_) : Cancelled("another call has taken this request up"));
  }
  if (request_ == nullptr) return;  // it is being attached
  if (request_->Take(this, &chunk_)) {
    write_began_ = NowSeconds();
    lock.unlock();
    StartWrite(&chunk_);  // nobody else touches chunk_, or ends the call, while write_began_ is set
    return;
  }
  if (Status status; !taking_in_ && request_->Drained(&status)) End(status);
}

void StreamCall::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  write_began_ = 0;
  if (ok) {
    Pump(std::move(lock));
  } else {
    ClientGone(std::move(lock));
  }
}

void StreamCall::OnNews(const std::vector<std::shared_ptr<Request>>&) { Pump(std::unique_lock(mutex_)); }

void StreamCall::OnReplaced() {
  std::unique_lock lock(mutex_);
  replaced_ = true;
  Pump(std::move(lock));
}

void StreamCall::OnCancel() { ClientGone(std::unique_lock(mutex_)); }

void StreamCall::ClientGone(std::unique_lock<std::mutex> lock) {
  cancelled_ = true;
  if (request_ != nullptr && !replaced_ && !ended_) {
    const Status status = CancelledStatus(*context_);
    if (!request_->options().keep || status.code() == StatusCode::kDeadlineExceeded) request_->Fail(status);
  }
  Pump(std::move(lock));
}

void StreamCall::OnTick(double now) {
  std::lock_guard lock(mutex_);
  if (ended_ || write_began_ == 0 || now - write_began_ < front_->options().unread_s) return;
  request_->Fail(ResourceExhausted("the client has not read for " +
                                   std::to_string(static_cast<int>(front_->options().unread_s)) + " seconds"));
  context_->TryCancel();  // a status would wait behind what isn't read
}

void StreamCall::OnDone() {
  std::shared_ptr<StreamCall> self;
  std::shared_ptr<Request> request;
  {
    std::lock_guard lock(mutex_);
    self = std::move(self_);
    request = request_;
  }
  if (request == nullptr) return;
  request->Detach(this);
  if (request->options().table != nullptr) request->options().table->Release(request);
}

grpc::ServerUnaryReactor* WholeCall::Generate(Front* front, grpc::CallbackServerContext* context,
                                              const v1::GenerateRequest* message, v1::GenerateResponse* response) {
  auto call = std::make_shared<WholeCall>(front, context, response);
  std::lock_guard lock(call->mutex_);
  call->self_ = call;
  auto request = Admit(front, *message, {}, context->peer(), /*whole=*/true, call);
  if (!request.ok()) {
    call->ended_ = true;
    call->Finish(ToGrpc(request.status()));
    return call.get();
  }
  call->request_ = *request;
  call->taking_in_ = true;
  front->intake().Post([call, message, request = *request] {
    TakeIn(call->front_, *message, {}, request);
    std::lock_guard lock(call->mutex_);
    call->taking_in_ = false;
    call->Pump();
  });
  return call.get();
}

void WholeCall::Pump() {
  if (ended_ || taking_in_) return;
  if (cancelled_) {
    ended_ = true;
    Finish(ToGrpc(CancelledStatus(*context_)));
  } else if (request_->Complete()) {
    ended_ = true;
    Finish(ToGrpc(request_->TakeResponse(response_, front_->options().max_message)));
  }
}

void WholeCall::OnNews(const std::vector<std::shared_ptr<Request>>&) {
  std::lock_guard lock(mutex_);
  Pump();
}

void WholeCall::OnCancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (request_ != nullptr && !ended_) request_->Fail(CancelledStatus(*context_));
  Pump();
}

void WholeCall::OnDone() {
  std::shared_ptr<WholeCall> self;
  std::shared_ptr<Request> request;
  {
    std::lock_guard lock(mutex_);
    self = std::move(self_);
    request = request_;
  }
  if (request == nullptr) return;
  request->Detach(this);
  if (request->options().table != nullptr) request->options().table->Release(request);
}

}  // namespace quire::rpc
