// Calls that their clients end in mid-stream, by cancelling them or by a deadline, and what is free one step later: for
// a group alone, and for one behind a coordinator.
#pragma once

#include "quire/v1/generation.grpc.pb.h"
#include "tests/rpc/held_engine.h"
#include "tests/rpc/service_fixture.h"

namespace quire {

class StepCountedEndings {
 public:
  // The engine behind `generation` is retriever-2m's in a HeldEngine with `gate`, and has no other request.
  StepCountedEndings(v1::Generation::Stub* generation, StepGate* gate) : generation_(generation), gate_(gate) {}
  ~StepCountedEndings() { gate_->Release(); }

  void Stream(bool resumable, bool cancel) {
    v1::GenerateRequest request = Endless();
    request.set_resumable(resumable);
    v1::GenerateChunk chunk;
    // A deadline is to pass in mid-stream: one that was too short is doubled.
    for (double seconds = kSlowness;; seconds *= 2) {
      grpc::ClientContext context;
      if (!cancel) context.set_deadline(In(seconds));
      auto reader = generation_->GenerateStream(&context, request);
      if (!reader->Read(&chunk) && !cancel && seconds < 60) {
        EXPECT_TRUE(Eventually([this] { return gate_->Empty(); }));
        continue;
      }
      Begin();
      if (cancel) context.TryCancel();
      while (reader->Read(&chunk)) EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
      EXPECT_EQ(reader->Finish().error_code(), cancel ? grpc::CANCELLED : grpc::DEADLINE_EXCEEDED);
      return ExpectFreeAfterAStep(1);
    }
  }

  void Whole() {
    grpc::ClientContext context;
    std::thread call([&] {
      v1::GenerateResponse response;
      EXPECT_EQ(generation_->Generate(&context, Endless(), &response).error_code(), grpc::CANCELLED);
    });
    EXPECT_TRUE(Eventually([this] { return gate_->Stats().running == 1; }));
    Begin();
    context.TryCancel();
    call.join();
    ExpectFreeAfterAStep(1);
  }

  // Texts that take several steps each: one of them has begun.
  void Score() {
    constexpr int kTexts = 3;
    gate_->Hold();
    const int before = gate_->submits();
    grpc::ClientContext context;
    auto stream = generation_->Score(&context);
    v1::ScoreRequest request;
    const std::vector<int32_t> ids = BytePrompt(2000);
    request.mutable_prompt()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    for (int i = 0; i < kTexts; ++i) EXPECT_TRUE(stream->Write(request));
    EXPECT_TRUE(Eventually([&] { return gate_->submits() == before + kTexts; }));
    EXPECT_TRUE(gate_->LetOne());
    Begin();
    context.TryCancel();
    v1::ScoreResponse response;
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_EQ(stream->Finish().error_code(), grpc::CANCELLED);
    ExpectFreeAfterAStep(kTexts);
  }

  void All() {
    for (const bool cancel : {true, false}) {
      SCOPED_TRACE(cancel ? "cancelled" : "deadline");
      Stream(/*resumable=*/false, cancel);
    }
    Stream(/*resumable=*/true, /*cancel=*/false);
    Whole();
    Score();
  }

 private:
  static v1::GenerateRequest Endless() {
    v1::GenerateRequest request;
    const std::vector<int32_t> ids = BytePrompt(64);
    request.add_prompts()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(100000);
    request.mutable_stopping()->set_ignore_eos(true);
    return request;
  }

  void Begin() {
    gate_->Hold();
    cancels_ = gate_->cancels();
    EXPECT_FALSE(gate_->Empty());
  }
  // The step that is let go when the engine has heard of it is the last one that could know the request, and has
  // nothing to compute any more.
  void ExpectFreeAfterAStep(int requests) {
    EXPECT_TRUE(Eventually([&] { return gate_->cancels() == cancels_ + requests; }));
    EXPECT_FALSE(gate_->Empty());
    const int64_t steps = gate_->Stats().steps;
    EXPECT_TRUE(gate_->LetOne());
    EXPECT_TRUE(gate_->Empty());
    EXPECT_EQ(gate_->Stats().steps, steps);
    gate_->Release();
  }

  v1::Generation::Stub* const generation_;
  StepGate* const gate_;
  int cancels_ = 0;
};

}  // namespace quire
