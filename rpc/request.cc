// See request.h.
#include "rpc/request.h"

#include <utility>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "quire/v1/worker.pb.h"
#include "rpc/convert.h"

namespace quire::rpc {
namespace {

void SetPromptIndex(int prompt, v1::GenerateChunk* chunk) { chunk->set_prompt_index(prompt); }
void SetPromptIndex(int, v1::TokenEvent*) {}
void SetEcho(const std::vector<int32_t>& ids, v1::GenerateChunk* chunk) {
  chunk->mutable_prompt_token_ids()->Assign(ids.begin(), ids.end());
}
void SetEcho(const std::vector<int32_t>&, v1::TokenEvent*) {}
void SetId(const std::string& id, v1::GenerateChunk* chunk) { chunk->set_request_id(id); }
void SetId(const std::string&, v1::TokenEvent*) {}  // an attempt's name, which the worker service knows

template <typename Message>
void WritePromptLogprobs(const std::vector<std::optional<TokenLogprobs>>& logprobs, Message* message) {
  for (const auto& one : logprobs) {
    v1::TokenLogprob* added = message->add_prompt_logprobs();
    if (one.has_value()) WriteLogprobs(*one, added);
  }
}

}  // namespace

Request::Request(Options options, Backend* backend, std::function<void(const std::shared_ptr<Request>&)> notify)
    : options_(std::move(options)), backend_(backend), notify_(std::move(notify)), unread_since_(NowSeconds()) {
  const int total = options_.prompts * options_.sequences;
  for (int i = 0; i < total; ++i) {
    sequences_.push_back({SequenceOutput(options_.first_token), options_.first_token, false, false, false, false});
  }
  prompts_.resize(static_cast<size_t>(options_.prompts));
  split_.resize(static_cast<size_t>(options_.prompts), false);
  unfinished_ = total;
}

// Ids of single prompts are the request's own; further ones have a control character, which no client's id may have.
std::string Request::BackendId(int prompt, int sequence) const {
  std::string id = options_.prompts == 1 ? options_.id : options_.id + '\x1f' + std::to_string(prompt);
  if (split_[static_cast<size_t>(prompt)]) id += "\x1f#" + std::to_string(sequence);
  return id;
}

void Request::Begin(int place, int64_t tokens, bool finished) {
  std::lock_guard lock(mutex_);
  Sequence& sequence = sequences_[static_cast<size_t>(place)];
  sequence.output = SequenceOutput(tokens);
  sequence.sent = tokens;
  if (!finished) return;
  sequence.elsewhere = true;
  --unfinished_;
}

void Request::Submit(int prompt, GenerationRequest request) {
  SubmitTo(prompt, 0, options_.sequences, std::move(request));
}

void Request::SubmitSequence(int prompt, int sequence, GenerationRequest request) {
  {
    std::lock_guard lock(mutex_);
    split_[static_cast<size_t>(prompt)] = true;
  }
  SubmitTo(prompt, sequence, 1, std::move(request));
}

void Request::SubmitTo(int prompt, int first, int count, GenerationRequest request) {
  const size_t begin = static_cast<size_t>(prompt * options_.sequences + first), end = begin + static_cast<size_t>(count);
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok() || aborted_) return;
    if (options_.echo) prompts_[static_cast<size_t>(prompt)] = request.prompt;
    for (size_t i = begin; i < end; ++i) sequences_[i].running = true;
    running_ += count;
    request.request_id = BackendId(prompt, first);
  }
  const std::string id = request.request_id;
  auto self = shared_from_this();
  const Status status = backend_->Submit(std::move(request), options_.client, [self, prompt](const TokenEvent& event) {
    self->OnEvent(prompt, event);
  });
  bool late_cancel = false;
  {
    std::lock_guard lock(mutex_);
    if (!status.ok()) {
      for (size_t i = begin; i < end; ++i) sequences_[i].running = false;
      running_ -= count;
    } else {
      late_cancel = aborted_ || !failure_.ok();  // ended while it was being handed on
    }
  }
  if (!status.ok()) {
    Fail(options_.prompts > 1 ? status.WithContext("prompt " + std::to_string(prompt)) : status);
  } else if (late_cancel) {
    backend_->Cancel(id);
  }
}

void Request::EndOfSubmissions() {
  std::unique_lock lock(mutex_);
  submitting_ = false;
  if (aborted_) {  // sequences that were never handed on
    for (Sequence& sequence : sequences_) {
      if (sequence.running || sequence.output.finished() || sequence.elsewhere) continue;
      sequence.output.Abort(sequence.sent, TokenEvent());
      --unfinished_;
    }
  }
  NotifyIfNeeded(std::move(lock));
}

std::vector<std::string> Request::RunningIds() const {
  std::vector<std::string> ids;
  for (int p = 0; p < options_.prompts; ++p) {
    for (int i = 0; i < options_.sequences; ++i) {
      if (!sequences_[static_cast<size_t>(p * options_.sequences + i)].running) continue;
      ids.push_back(BackendId(p, i));
      if (!split_[static_cast<size_t>(p)]) break;
    }
  }
  return ids;
}

void Request::CancelAll(const std::vector<std::string>& ids) {
  for (const std::string& id : ids) backend_->Cancel(id);
}

void Request::Fail(const Status& status) {
  std::vector<std::string> running;
  {
    std::unique_lock lock(mutex_);
    if (!failure_.ok() || (unfinished_ == 0 && running_ == 0 && !submitting_)) return;
    failure_ = status;
    running = RunningIds();
    NotifyIfNeeded(std::move(lock));
  }
  CancelAll(running);
}

bool Request::Abort() {
  std::vector<std::string> running;
  {
    std::lock_guard lock(mutex_);
    if (!failure_.ok() || aborted_ || unfinished_ == 0) return false;
    aborted_ = true;
    running = RunningIds();
  }
  CancelAll(running);
  return true;
}

void Request::OnEvent(int prompt, const TokenEvent& event) {
  std::vector<std::string> overflow;
  {
    std::unique_lock lock(mutex_);
    const int place = event.sequence - options_.first_sequence;
    CHECK(place >= 0 && place < options_.sequences);
    Sequence& sequence = sequences_[static_cast<size_t>(prompt * options_.sequences + place)];
    if (event.finished && sequence.running) {
      sequence.running = false;
      --running_;
    }
    if (!event.status.ok() && failure_.ok()) {
      failure_ = event.status;
      overflow = RunningIds();
    } else if (failure_.ok() && !sequence.output.finished()) {
      if (aborted_) {
        if (event.finished) sequence.output.Abort(sequence.sent, event);
      } else if (!sequence.output.Append(event)) {
        failure_ = Internal("an event for token " + std::to_string(event.index) + " came where token " +
                            std::to_string(sequence.output.end()) + " was next");
        overflow = RunningIds();
      }
      if (sequence.output.finished()) --unfinished_;
      const int64_t held = options_.keep ? sequence.output.begin() : sequence.sent;
      if (failure_.ok() && options_.max_unread > 0 && sequence.output.BytesFrom(held) > options_.max_unread) {
        failure_ = ResourceExhausted("more than " + std::to_string(options_.max_unread) +
                                     " bytes of this request's output wait for its client; read faster, or ask for "
                                     "less beside each token (logprobs)");
        overflow = RunningIds();
      }
    }
    NotifyIfNeeded(std::move(lock));
  }
  CancelAll(overflow);
}

void Request::NotifyIfNeeded(std::unique_lock<std::mutex> lock) {
  const bool settled = !submitting_ && running_ == 0;
  const bool complete = unfinished_ == 0 || !failure_.ok();
  const bool wanted = settled || (reader_ != nullptr && (complete || !options_.whole));
  lock.unlock();
  if (wanted) notify_(shared_from_this());
}

Status Request::Attach(std::shared_ptr<Reader> reader, const std::vector<Place>& next) {
  std::shared_ptr<Reader> before;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const SequenceOutput& output = sequences_[i].output;
      const int64_t at = next.empty() ? output.begin() : next[i].token;
      if (at < output.begin() || at > output.end()) {
        return Status(StatusCode::kOutOfRange,
                      "sequence " + std::to_string(i) + " can't be taken up at token " + std::to_string(at) +
                          "; it holds tokens " + std::to_string(output.begin()) + " to " + std::to_string(output.end()));
      }
    }
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Sequence& sequence = sequences_[i];
      const Place from = next.empty() ? Place{sequence.output.begin()} : next[i];
      sequence.sent = from.token;
      sequence.first_sent = sequence.sent > options_.first_token;
      sequence.last_sent =
          sequence.elsewhere || (from.last && sequence.output.finished() && from.token == sequence.output.end());
    }
    before = std::exchange(reader_, std::move(reader));
    unread_since_ = 0;
  }
  if (before != nullptr) before->OnReplaced();
  notify_(shared_from_this());
  return OkStatus();
}

bool Request::Detach(const Reader* reader) {
  std::lock_guard lock(mutex_);
  if (reader_.get() != reader) return false;
  reader_.reset();
  unread_since_ = NowSeconds();
  return true;
}

std::shared_ptr<Reader> Request::reader() const {
  std::lock_guard lock(mutex_);
  return reader_;
}

void Request::set_deadline(double deadline) {
  std::lock_guard lock(mutex_);
  deadline_ = deadline;
}

double Request::deadline() const {
  std::lock_guard lock(mutex_);
  return deadline_;
}

double Request::unread_since() const {
  std::lock_guard lock(mutex_);
  return unread_since_;
}

bool Request::HasNews(const Sequence& sequence) const {
  return sequence.output.end() > sequence.sent || (sequence.output.finished() && !sequence.last_sent);
}

template <typename Message>
bool Request::Take(const Reader* reader, Message* message) {
  std::lock_guard lock(mutex_);
  if (!failure_.ok() || reader_.get() != reader) return false;
  for (size_t k = 0; k < sequences_.size(); ++k) {
    const size_t i = (next_ + k) % sequences_.size();
    Sequence& sequence = sequences_[i];
    if (!HasNews(sequence)) continue;
    const int prompt = static_cast<int>(i) / options_.sequences;
    const int place = static_cast<int>(i) % options_.sequences;
    message->Clear();
    SetId(options_.id, message);
    SetPromptIndex(prompt, message);
    message->set_sequence_index(options_.first_sequence + place);
    message->set_token_index(static_cast<int32_t>(sequence.sent));
    if (place == 0 && !sequence.first_sent) {
      WritePromptLogprobs(sequence.output.prompt_logprobs(), message);
      if (options_.echo) SetEcho(prompts_[static_cast<size_t>(prompt)], message);
    }
    sequence.first_sent = true;
    sequence.output.Write(sequence.sent, message);
    sequence.sent = sequence.output.end();
    sequence.last_sent = sequence.output.finished();
    if (!options_.keep) sequence.output.Forget(sequence.sent);
    next_ = i + 1;
    return true;
  }
  return false;
}
template bool Request::Take(const Reader*, v1::GenerateChunk*);
template bool Request::Take(const Reader*, v1::TokenEvent*);

bool Request::Drained(Status* status) const {
  std::lock_guard lock(mutex_);
  *status = failure_;
  if (!failure_.ok()) return true;
  if (unfinished_ > 0) return false;
  for (const Sequence& sequence : sequences_) {
    if (!sequence.last_sent) return false;
  }
  return true;
}

bool Request::Complete() const {
  std::lock_guard lock(mutex_);
  return unfinished_ == 0 || !failure_.ok();
}

bool Request::Settled() const {
  std::lock_guard lock(mutex_);
  return !submitting_ && running_ == 0;
}

Status Request::TakeResponse(v1::GenerateResponse* response, size_t limit) const {
  std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  CHECK_EQ(unfinished_, 0);
  size_t bytes = 0;
  for (const Sequence& sequence : sequences_) bytes += sequence.output.BytesFrom(0);
  if (bytes > limit) {
    return ResourceExhausted("the result has about " + std::to_string(bytes) + " bytes, more than a message takes (" +
                             std::to_string(limit) + "); use GenerateStream, or ask for less beside each token");
  }
  response->set_request_id(options_.id);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const int prompt = static_cast<int>(i) / options_.sequences;
    const int place = static_cast<int>(i) % options_.sequences;
    v1::Output* output = response->add_outputs();
    output->set_prompt_index(prompt);
    output->set_sequence_index(options_.first_sequence + place);
    if (place == 0) {
      WritePromptLogprobs(sequences_[i].output.prompt_logprobs(), output);
      if (options_.echo) {
        const std::vector<int32_t>& ids = prompts_[static_cast<size_t>(prompt)];
        output->mutable_prompt_token_ids()->Assign(ids.begin(), ids.end());
      }
    }
    sequences_[i].output.Write(0, output);
  }
  return OkStatus();
}

}  // namespace quire::rpc
