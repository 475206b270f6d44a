// See fake_group.h.
#include "tests/rpc/coordinator/fake_group.h"

#include <gtest/gtest.h>

#include <utility>

namespace quire::rpc {
namespace {

std::string Key(const v1::AttemptId& id) { return id.request_id() + "#" + std::to_string(id.attempt()); }

}  // namespace

int32_t FakeToken(const std::vector<int32_t>& prompt, uint64_t seed, int sequence, int64_t position) {
  uint64_t hash = seed * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(sequence);
  for (const int32_t id : prompt) hash = (hash ^ static_cast<uint32_t>(id)) * 0xff51afd7ed558ccd;
  hash = (hash ^ static_cast<uint64_t>(position)) * 0xc4ceb9fe1a85ec53;
  return static_cast<int32_t>((hash >> 33) % 1000);
}

bool FakeStop(int32_t token) { return token % 37 == 0; }

// Sometimes nothing: text that is held back.
std::string FakeText(int32_t token) { return token % 5 == 0 ? "" : "<" + std::to_string(token) + ">"; }

v1::Identity FakeIdentity(const std::string& name, int max_num_seqs, int64_t pages_total) {
  v1::Identity identity;
  identity.set_group(name);
  identity.set_model("fake");
  identity.set_max_model_len(4096);
  identity.set_max_num_seqs(max_num_seqs);
  identity.set_max_queue(64);
  identity.set_page_size(16);
  identity.set_pages_total(pages_total);
  identity.set_batch_invariant(true);
  return identity;
}

FakeOutput ExpectedOutput(const GenerationRequest& request, uint64_t seed, int sequence) {
  FakeOutput output;
  for (int64_t i = 0; i < request.stopping.max_tokens; ++i) {
    const int32_t token = FakeToken(request.prompt, seed, sequence, i);
    output.tokens.push_back(token);
    output.text += FakeText(token);
    if (FakeStop(token)) {
      output.reason = v1::FINISH_REASON_STOP;
      return output;
    }
  }
  output.reason = v1::FINISH_REASON_LENGTH;
  return output;
}

FakeGroup::FakeGroup(std::string name, uint64_t session, Dispatcher* dispatcher, int max_num_seqs, int64_t pages)
    : session_(session), dispatcher_(dispatcher), identity_(FakeIdentity(name, max_num_seqs, pages)) {}

void FakeGroup::Send(v1::ExecuteRequest message) { inbox_.push_back(std::move(message)); }

void FakeGroup::Up(double now) {
  v1::WorkerHello hello;
  *hello.mutable_identity() = identity_;
  dispatcher_->OnUp(session_, this, hello, now);
}

void FakeGroup::Down(double now) { dispatcher_->OnDown(session_, Unavailable("killed"), now); }

void FakeGroup::Load(double now, bool available) {
  v1::ExecuteResponse response;
  response.mutable_load()->set_available(available);
  response.mutable_load()->set_running(running());
  dispatcher_->OnResponse(session_, response, now);
}

void FakeGroup::LoadWithOthers(double now, int sequences, int64_t pages) {
  v1::ExecuteResponse response;
  response.mutable_load()->set_available(true);
  response.mutable_load()->set_running(running() + sequences);
  response.mutable_load()->set_pages_total(identity_.pages_total());
  response.mutable_load()->set_pages_free(identity_.pages_total() - pages);
  dispatcher_->OnResponse(session_, response, now);
}

void FakeGroup::TakeIn() {
  for (const v1::ExecuteRequest& message : std::exchange(inbox_, {})) {
    for (const v1::Submission& submission : message.submissions()) {
      const size_t n = static_cast<size_t>(submission.sampling().n());
      EXPECT_TRUE(submission.sampling().has_seed());
      EXPECT_TRUE(n == 1 || (submission.first_sequence() == 0 && submission.output_token_ids_size() == 0));
      Running running;
      running.submission = submission;
      running.made.assign(n, submission.output_token_ids_size());
      running.ended.assign(n, false);
      EXPECT_TRUE(running_.emplace(Key(submission.id()), std::move(running)).second) << "submitted twice";
    }
    for (const v1::AttemptId& id : message.aborts()) {
      const auto at = running_.find(Key(id));
      if (at == running_.end()) continue;
      for (size_t i = 0; i < at->second.made.size(); ++i) {
        if (at->second.ended[i]) continue;
        v1::TokenEvent* event = outbox_.add_events();
        *event->mutable_id() = id;
        event->set_sequence_index(at->second.submission.first_sequence() + static_cast<int>(i));
        event->set_token_index(static_cast<int32_t>(at->second.made[i]));
        event->set_finish_reason(v1::FINISH_REASON_ABORTED);
      }
      running_.erase(at);
    }
  }
}

void FakeGroup::Step(int tokens) {
  std::vector<std::string> done;
  for (auto& [key, running] : running_) {
    const v1::Submission& s = running.submission;
    const std::vector<int32_t> prompt(s.prompt_token_ids().begin(), s.prompt_token_ids().end());
    bool all = true;
    for (size_t i = 0; i < running.made.size(); ++i) {
      if (running.ended[i]) continue;
      const int sequence = s.first_sequence() + static_cast<int>(i);
      v1::TokenEvent* event = outbox_.add_events();
      *event->mutable_id() = s.id();
      event->set_sequence_index(sequence);
      event->set_token_index(static_cast<int32_t>(running.made[i]));
      for (int t = 0; t < tokens && !running.ended[i]; ++t) {
        const int32_t token = FakeToken(prompt, s.sampling().seed(), sequence, running.made[i]++);
        event->add_token_ids(token);
        event->add_text_sizes(static_cast<int32_t>(FakeText(token).size()));
        *event->mutable_text() += FakeText(token);
        const bool full = running.made[i] == s.stopping().max_tokens();
        running.ended[i] = FakeStop(token) || full;
        if (!running.ended[i]) continue;
        event->set_finish_reason(FakeStop(token) ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
        event->mutable_usage()->set_prompt_tokens(s.prompt_token_ids_size());
        event->mutable_usage()->set_completion_tokens(static_cast<int32_t>(running.made[i]));
      }
      all = all && running.ended[i];
    }
    if (all) done.push_back(key);
  }
  for (const std::string& key : done) running_.erase(key);
}

void FakeGroup::Deliver(double now) {
  v1::ExecuteResponse response;
  response.Swap(&outbox_);
  dispatcher_->OnResponse(session_, response, now);
}

void FakeGroup::Finish(double now) {
  TakeIn();
  while (!running_.empty()) {
    Step();
    Deliver(now);
    TakeIn();
  }
}

void FakeGroup::Fail(const std::string& name, StatusCode code, const std::string& message, double now) {
  v1::ExecuteResponse response;
  v1::Failure* failure = response.add_failures();
  *failure->mutable_id() = submission(name).id();
  failure->set_code(static_cast<int>(code));
  failure->set_message(message);
  running_.erase(Key(failure->id()));
  dispatcher_->OnResponse(session_, response, now);
}

std::vector<std::string> FakeGroup::Names() const {
  std::vector<std::string> names;
  for (const auto& [key, running] : running_) names.push_back(running.submission.id().request_id());
  return names;
}

const v1::Submission& FakeGroup::submission(const std::string& name) const {
  for (const auto& [key, running] : running_) {
    if (running.submission.id().request_id() == name) return running.submission;
  }
  ADD_FAILURE() << "no submission " << name;
  static const v1::Submission none;
  return none;
}

}  // namespace quire::rpc
