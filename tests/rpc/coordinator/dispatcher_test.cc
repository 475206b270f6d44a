#include "rpc/coordinator/dispatcher.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/rpc/coordinator/fake_group.h"
#include "tests/rpc/coordinator/stream_check.h"

namespace quire::rpc {
namespace {

GenerationRequest Request(const std::string& id, int max_tokens = 20, int n = 1, int prompt = 10) {
  GenerationRequest request;
  request.request_id = id;
  for (int i = 0; i < prompt; ++i) request.prompt.push_back(i + static_cast<int>(id.size()) * 100 + id[0]);
  request.sampling.seed = 7;
  request.sampling.n = n;
  request.stopping.max_tokens = max_tokens;
  return request;
}

class DispatcherTest : public testing::Test {
 protected:
  DispatcherTest() { Make({}); }
  void Make(DispatcherOptions options) {
    options.name = "test";
    dispatcher_ = std::make_unique<Dispatcher>(options);
  }
  FakeGroup& AddGroup(const std::string& name, int slots = 8, int64_t pages = 1000) {
    groups_.push_back(std::make_unique<FakeGroup>(name, ++sessions_, dispatcher_.get(), slots, pages));
    groups_.back()->Up(now_);
    return *groups_.back();
  }
  StreamCheck& Submit(const GenerationRequest& request, const std::string& client = "client") {
    StreamCheck& check = checks_[request.request_id];
    dispatcher_->Submit(request, client, check.Callback(), now_);
    return check;
  }
  void Wait(double seconds) {
    now_ += seconds;
    dispatcher_->OnTime(now_);
  }

  double now_ = 100;
  uint64_t sessions_ = 0;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::vector<std::unique_ptr<FakeGroup>> groups_;
  std::map<std::string, StreamCheck> checks_;
};

TEST_F(DispatcherTest, ARequestRunsToItsEnd) {
  FakeGroup& group = AddGroup("a");
  const GenerationRequest request = Request("r");
  const StreamCheck& check = Submit(request);
  group.Finish(now_);
  check.ExpectWhole(request, 7);
  EXPECT_EQ(dispatcher_->flights(), 0);
  EXPECT_EQ(dispatcher_->Load().total().tokens_in_flight(), 0);
}

TEST_F(DispatcherTest, AnAbsentSeedIsFixedBeforeDispatchAndDiffersByRequest) {
  FakeGroup& group = AddGroup("a");
  GenerationRequest one = Request("one"), two = Request("two");
  one.sampling.seed.reset();
  two.sampling.seed.reset();
  Submit(one);
  Submit(two);
  Wait(1);
  group.TakeIn();
  ASSERT_EQ(group.running(), 2);
  EXPECT_NE(group.submission(group.Names()[0]).sampling().seed(), group.submission(group.Names()[1]).sampling().seed());
}

TEST_F(DispatcherTest, AnIdleGroupGetsARequestAtOnceABusyOneAfterTheWindow) {
  DispatcherOptions options;
  options.batch_window_s = 0.005;
  Make(options);
  FakeGroup& group = AddGroup("a");
  Submit(Request("first"));
  EXPECT_EQ(group.inbox().size(), 1u);
  Submit(Request("second"));
  Submit(Request("third"));
  EXPECT_EQ(group.inbox().size(), 1u);
  EXPECT_NEAR(dispatcher_->NextTime(), now_ + 0.005, 1e-9);
  Wait(0.006);
  ASSERT_EQ(group.inbox().size(), 2u);
  EXPECT_EQ(group.inbox()[1].submissions_size(), 2);  // together
}

TEST_F(DispatcherTest, ManyLargeSubmissionsGoInSeveralMessages) {
  DispatcherOptions options;
  options.message_bytes = 1000;
  Make(options);
  FakeGroup& group = AddGroup("a", 32);
  Submit(Request("first"));
  ASSERT_EQ(group.inbox().size(), 1u);
  for (int i = 0; i < 12; ++i) Submit(Request("r" + std::to_string(i), 20, 1, 300));
  EXPECT_GT(group.inbox().size(), 3u);  // none waits for the window
  Wait(1);
  int submissions = 0;
  for (const v1::ExecuteRequest& message : group.inbox()) {
    submissions += message.submissions_size();
    const size_t last = message.submissions(message.submissions_size() - 1).ByteSizeLong();
    EXPECT_LT(message.ByteSizeLong(), 1000 + last + 10);
  }
  EXPECT_EQ(submissions, 13);
}

TEST_F(DispatcherTest, RequestsGoWhereThereIsLessToCompute) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  Submit(Request("long", 4000));
  for (int i = 0; i < 4; ++i) Submit(Request("short" + std::to_string(i), 10));
  Wait(1);
  a.TakeIn();
  b.TakeIn();
  EXPECT_EQ(a.running(), 1);
  EXPECT_EQ(b.running(), 4);
}

TEST_F(DispatcherTest, AKnownPrefixDrawsARequestUnlessThatCostsMoreThanItSaves) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  GenerationRequest request = Request("first", 10, 1, 256);
  const std::vector<int32_t> prompt = request.prompt;
  Submit(request);
  ASSERT_EQ(a.inbox().size(), 1u);
  a.Finish(now_);
  Submit(Request("on-b", 10));  // its turn
  Submit(Request("on-a", 190));
  request = Request("again", 10);
  request.prompt = prompt;
  Submit(request);  // 200 to 20 tokens of load, but 256 known
  Wait(1);
  b.TakeIn();
  a.TakeIn();
  EXPECT_EQ(a.running(), 2);
  EXPECT_EQ(b.running(), 1);
  request = Request("once-more", 10);
  request.prompt = prompt;
  Submit(request);  // 466 to 20
  Wait(1);
  a.TakeIn();
  b.TakeIn();
  EXPECT_EQ(a.running(), 2);
  EXPECT_EQ(b.running(), 2);
}

TEST_F(DispatcherTest, MoreThanAGroupTakesWaitsHereInOrderOfPriority) {
  FakeGroup& group = AddGroup("a", 4);  // five at a time: one more than it can run
  for (int i = 0; i < 10; ++i) Submit(Request("r" + std::to_string(i)));
  GenerationRequest urgent = Request("urgent");
  urgent.priority = -1;
  Submit(urgent);
  Wait(1);
  group.TakeIn();
  EXPECT_EQ(group.running(), 5);
  EXPECT_EQ(dispatcher_->Load().total().waiting(), 6);
  while (group.running() == 5) {
    group.Step();
    group.Deliver(now_);
    Wait(0.01);
    group.TakeIn();
    if (group.running() < 5) break;
    bool there = false;
    for (const std::string& name : group.Names()) there = there || name.starts_with("urgent@");
    if (there) return;
  }
  FAIL() << "the urgent one was not the first to follow";
}

TEST_F(DispatcherTest, AGroupIsNotFilledBeyondItsPages) {
  FakeGroup& group = AddGroup("a", 64, 10);
  for (int i = 0; i < 8; ++i) Submit(Request("r" + std::to_string(i), 20, 1, 40));  // two and a half pages and one
  for (int turns = 0; dispatcher_->flights() > 0; ++turns) {
    ASSERT_LT(turns, 1000);
    Wait(0.01);
    group.TakeIn();
    EXPECT_LE(group.running(), 3);
    EXPECT_GE(group.running(), 1);
    group.Step();
    group.Deliver(now_);
  }
}

// As of clients that speak to it directly.
TEST_F(DispatcherTest, PagesThatRequestsFromElsewhereHoldAreNotFree) {
  FakeGroup& group = AddGroup("a", 64, 20);
  group.LoadWithOthers(now_, 1, 13);
  for (int i = 0; i < 4; ++i) Submit(Request("r" + std::to_string(i), 20, 1, 40));  // two and a half pages and one
  Wait(0.01);
  group.TakeIn();
  EXPECT_EQ(group.running(), 2);
  group.LoadWithOthers(now_, 0, 7);  // of its own two alone
  Wait(0.01);
  group.TakeIn();
  EXPECT_EQ(group.running(), 4);
  FakeGroup& other = AddGroup("b", 64, 20);
  group.LoadWithOthers(now_, 1, 19);
  Submit(Request("next", 20, 1, 40));
  Wait(0.01);
  other.TakeIn();
  EXPECT_EQ(other.running(), 1);
}

TEST_F(DispatcherTest, AClientWithMuchWaitingDoesNotHoldUpAnother) {
  FakeGroup& group = AddGroup("a", 4);  // five at a time
  for (int i = 0; i < 12; ++i) Submit(Request("much" + std::to_string(i)), "greedy");
  Submit(Request("one"), "modest");
  int ended = 0;
  for (int turns = 0; checks_["one"].sequences.empty(); ++turns) {
    ASSERT_LT(turns, 1000);
    Wait(0.01);
    group.TakeIn();
    group.Step();
    group.Deliver(now_);
    ended = 13 - dispatcher_->flights();
  }
  EXPECT_LT(ended, 8);  // it was the first or second that followed the five
}

TEST_F(DispatcherTest, StalledIsWhoseRequestsRunAndGetNothing) {
  FakeGroup& group = AddGroup("a");
  EXPECT_FALSE(dispatcher_->Stalled(now_ + 1000, 30));  // nothing runs
  Submit(Request("r"));
  group.TakeIn();
  for (int i = 0; i < 29; ++i) {
    Wait(1);
    group.Load(now_);  // it answers, but puts nothing out
  }
  EXPECT_FALSE(dispatcher_->Stalled(now_, 30));
  Wait(2);
  EXPECT_TRUE(dispatcher_->Stalled(now_, 30));
  group.Step();
  group.Deliver(now_);
  EXPECT_FALSE(dispatcher_->Stalled(now_, 30));
  group.Finish(now_);
  EXPECT_FALSE(dispatcher_->Stalled(now_ + 1000, 30));
}

TEST_F(DispatcherTest, AFullQueueIsResourceExhausted) {
  DispatcherOptions options;
  options.max_queue = 3;
  Make(options);
  AddGroup("a", 1);
  for (int i = 0; i < 5; ++i) Submit(Request("r" + std::to_string(i)));
  const StreamCheck& refused = Submit(Request("refused"));
  EXPECT_EQ(refused.sequences.at(0).last.status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(dispatcher_->flights(), 5);
}

TEST_F(DispatcherTest, ADuplicateIsRefusedAndTheFirstGoesOn) {
  FakeGroup& group = AddGroup("a");
  const GenerationRequest request = Request("r");
  const StreamCheck& first = Submit(request);
  StreamCheck second;
  dispatcher_->Submit(request, "client", second.Callback(), now_);
  EXPECT_EQ(second.sequences.at(0).last.status.code(), StatusCode::kAlreadyExists);
  group.Finish(now_);
  first.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, SeveralSequencesAreSpreadAndDrawAsUndisturbed) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  const GenerationRequest request = Request("r", 40, 4);
  const StreamCheck& check = Submit(request);
  Wait(1);
  a.TakeIn();
  b.TakeIn();
  EXPECT_EQ(a.running(), 2);
  EXPECT_EQ(b.running(), 2);
  a.Finish(now_);
  b.Finish(now_);
  check.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, SequencesBehindALongPromptShareItsPrefill) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  const GenerationRequest request = Request("r", 10, 4, 2000);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  b.TakeIn();
  ASSERT_EQ(a.running() + b.running(), 1);
  a.Finish(now_);
  b.Finish(now_);
  check.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, ALostGroupsRequestsGoOnWithAnother) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 30);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  for (int i = 0; i < 7; ++i) a.Step();
  a.Deliver(now_);
  FakeGroup& b = AddGroup("b");
  a.Down(now_);
  b.TakeIn();
  ASSERT_EQ(b.running(), 1);
  const v1::Submission& submission = b.submission(b.Names()[0]);
  EXPECT_EQ(submission.output_token_ids_size(), 7);
  EXPECT_EQ(submission.id().attempt(), 1u);
  EXPECT_EQ(submission.sampling().seed(), 7u);
  b.Finish(now_);
  check.ExpectWhole(request, 7);
  EXPECT_EQ(dispatcher_->Load().total().failovers(), 1);
}

TEST_F(DispatcherTest, ForkedSequencesGoOnEachByItselfAfterALoss) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 60, 3);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  ASSERT_EQ(a.running(), 1);
  for (int i = 0; i < 5; ++i) a.Step();
  a.Deliver(now_);
  FakeGroup& b = AddGroup("b");
  a.Down(now_);
  b.Finish(now_);
  check.ExpectWhole(request, 7);
  EXPECT_EQ(dispatcher_->flights(), 0);
}

TEST_F(DispatcherTest, AGroupThatFallsSilentIsTakenOverAndItsLateEventsAreDropped) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 30);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  for (int i = 0; i < 3; ++i) a.Step();
  a.Deliver(now_);
  a.Step(4);  // on their way when it stops
  FakeGroup& b = AddGroup("b");
  for (int i = 0; i < 30; ++i) {
    Wait(0.1);
    b.Load(now_);
  }
  b.TakeIn();
  ASSERT_EQ(b.running(), 1);
  b.Step(2);
  b.Deliver(now_);
  a.Deliver(now_);  // it goes on
  EXPECT_GT(dispatcher_->Load().total().late_events_dropped(), 0);
  a.TakeIn();
  EXPECT_EQ(a.running(), 0);  // it was told to give it up
  b.Finish(now_);
  check.ExpectWhole(request, 7);
  // And it is of use again.
  EXPECT_TRUE(dispatcher_->Load().groups(0).available());
}

TEST_F(DispatcherTest, WithNoGroupLeftRequestsFailWithinTheWaitAndServiceResumes) {
  FakeGroup& a = AddGroup("a");
  const StreamCheck& check = Submit(Request("r", 30));
  a.TakeIn();
  a.Step();
  a.Deliver(now_);
  a.Down(now_);
  EXPECT_TRUE(dispatcher_->Available(now_).ok());  // one may come
  Wait(1.9);
  EXPECT_FALSE(check.finished(1));
  Wait(0.2);
  ASSERT_TRUE(check.finished(1));
  EXPECT_EQ(check.sequences.at(0).last.status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(dispatcher_->Available(now_).code(), StatusCode::kUnavailable);
  FakeGroup& b = AddGroup("b");
  EXPECT_TRUE(dispatcher_->Available(now_).ok());
  const GenerationRequest again = Request("again");
  const StreamCheck& second = Submit(again);
  b.Finish(now_);
  second.ExpectWhole(again, 7);
}

TEST_F(DispatcherTest, AGroupThatComesBackInTimeGetsTheRequest) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 30);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  a.Step(5);
  a.Deliver(now_);
  a.Down(now_);
  Wait(1.5);
  FakeGroup& b = AddGroup("a");
  b.Finish(now_);
  check.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, ARequestThatTakesGroupAfterGroupWithItEnds) {
  const StreamCheck* check = nullptr;
  for (int i = 0; i < 20 && (check == nullptr || !check->finished(1)); ++i) {
    FakeGroup& group = AddGroup("g" + std::to_string(i));
    if (check == nullptr) check = &Submit(Request("poison"));
    group.TakeIn();
    group.Down(now_);
  }
  ASSERT_TRUE(check->finished(1));
  EXPECT_EQ(check->sequences.at(0).last.status.code(), StatusCode::kUnavailable);
  EXPECT_LT(groups_.size(), 10u);
}

TEST_F(DispatcherTest, CancelReachesTheGroupAtOnceAndEndsWithAborted) {
  FakeGroup& a = AddGroup("a");
  const StreamCheck& check = Submit(Request("r", 30, 2));
  a.TakeIn();
  a.Step();
  a.Deliver(now_);
  dispatcher_->Cancel("r", now_);
  EXPECT_EQ(a.inbox().size(), 1u);
  a.TakeIn();
  EXPECT_EQ(a.running(), 0);
  a.Deliver(now_);
  ASSERT_TRUE(check.finished(2));
  EXPECT_EQ(check.sequences.at(0).last.reason, FinishReason::kAborted);
  EXPECT_TRUE(check.sequences.at(0).last.status.ok());
  EXPECT_EQ(dispatcher_->flights(), 0);
  dispatcher_->Cancel("r", now_);  // again: nothing
}

TEST_F(DispatcherTest, CancelOfWhatWaitsOrWhoseGroupIsLostEndsHere) {
  FakeGroup& a = AddGroup("a", 1);
  const StreamCheck& lost = Submit(Request("lost", 30));
  Submit(Request("beside", 30));
  const StreamCheck& waiting = Submit(Request("waiting", 30));
  dispatcher_->Cancel("waiting", now_);
  EXPECT_TRUE(waiting.finished(1));
  dispatcher_->Cancel("lost", now_);
  EXPECT_FALSE(lost.finished(1));
  a.Down(now_);
  ASSERT_TRUE(lost.finished(1));
  EXPECT_EQ(lost.sequences.at(0).last.reason, FinishReason::kAborted);
}

TEST_F(DispatcherTest, AFullGroupIsPassedOverAndWhenAllAreFullThatIsSaid) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  const GenerationRequest request = Request("r");
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  ASSERT_EQ(a.running(), 1);
  a.Fail(a.Names()[0], StatusCode::kResourceExhausted, "the queue is full", now_);
  b.TakeIn();
  ASSERT_EQ(b.running(), 1);
  b.Fail(b.Names()[0], StatusCode::kResourceExhausted, "too large for the cache", now_);
  ASSERT_TRUE(check.finished(1));
  EXPECT_EQ(check.sequences.at(0).last.status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(check.sequences.at(0).last.status.message(), "too large for the cache");
}

TEST_F(DispatcherTest, AnInvalidRequestFailsWithTheGroupsSentenceAndItsOtherPartsEnd) {
  FakeGroup& a = AddGroup("a");
  FakeGroup& b = AddGroup("b");
  const StreamCheck& check = Submit(Request("r", 40, 2));
  a.TakeIn();
  b.TakeIn();
  ASSERT_EQ(a.running(), 1);
  ASSERT_EQ(b.running(), 1);
  a.Fail(a.Names()[0], StatusCode::kInvalidArgument, "top_p is 7", now_);
  ASSERT_TRUE(check.finished(2));
  EXPECT_EQ(check.sequences.at(1).last.status.message(), "top_p is 7");
  Wait(0.001);
  b.TakeIn();
  EXPECT_EQ(b.running(), 0);
  EXPECT_EQ(dispatcher_->flights(), 0);
}

TEST_F(DispatcherTest, ADrainingGroupGetsNothingNewAndWhatItGivesUpMoves) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 30);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  a.Step(3);
  a.Deliver(now_);
  FakeGroup& b = AddGroup("b");
  a.Load(now_, /*available=*/false);
  Submit(Request("new"));
  EXPECT_TRUE(a.inbox().empty());
  // The end of its drain.
  v1::ExecuteRequest abort;
  *abort.add_aborts() = a.submission(a.Names()[0]).id();
  a.Send(abort);
  a.TakeIn();
  a.Deliver(now_);
  Wait(1);
  b.Finish(now_);
  check.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, AGroupThatSkipsATokenIsDropped) {
  FakeGroup& a = AddGroup("a");
  const GenerationRequest request = Request("r", 30);
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  a.Step();
  a.outbox().Clear();  // lost
  a.Step();
  FakeGroup& b = AddGroup("b");
  a.Deliver(now_);
  EXPECT_TRUE(a.was_reset());
  b.Finish(now_);
  check.ExpectWhole(request, 7);
}

TEST_F(DispatcherTest, KeptSubmissionsOfAStreamBeforeAreGivenUp) {
  FakeGroup group("a", 99, dispatcher_.get());
  v1::WorkerHello hello;
  *hello.mutable_identity() = FakeIdentity("a");
  hello.add_kept()->mutable_id()->set_request_id("orphan");
  dispatcher_->OnUp(99, &group, hello, now_);
  ASSERT_EQ(group.inbox().size(), 1u);
  EXPECT_EQ(group.inbox()[0].aborts(0).request_id(), "orphan");
}

TEST_F(DispatcherTest, ARequestThatWasBegunElsewhereGoesOnBehindItsTokens) {
  FakeGroup& a = AddGroup("a");
  GenerationRequest request = Request("r", 40);
  const FakeOutput whole = ExpectedOutput(request, 7, 3);
  ASSERT_GT(whole.tokens.size(), 4u);
  request.resume.emplace();
  request.resume->sequence = 3;
  request.resume->tokens.assign(whole.tokens.begin(), whole.tokens.begin() + 4);
  StreamCheck check;
  check.sequences[3];
  std::vector<int> indices;
  dispatcher_->Submit(
      request, "client",
      [&](const TokenEvent& event) {
        indices.push_back(event.index);
        auto& sequence = check.sequences[event.sequence];
        sequence.tokens.insert(sequence.tokens.end(), event.token_ids.begin(), event.token_ids.end());
        sequence.finished = event.finished;
        sequence.last = event;
      },
      now_);
  a.Finish(now_);
  ASSERT_FALSE(indices.empty());
  EXPECT_EQ(indices[0], 4);
  check.ExpectWhole(request, 7, 4);
}

TEST_F(DispatcherTest, AVeryLongRequestIdMakesAValidName) {
  FakeGroup& a = AddGroup("a");
  std::string id;
  for (int i = 0; i < 85; ++i) id += "é§";  // two bytes each: a cut by bytes may halve one
  GenerationRequest request = Request("x");
  request.request_id = id + "\x1f" + "3";
  const StreamCheck& check = Submit(request);
  a.TakeIn();
  ASSERT_EQ(a.running(), 1);
  const std::string name = a.Names()[0];
  EXPECT_LE(name.size(), 256u);
  EXPECT_EQ(name.find('\x1f'), std::string::npos);
  std::string bytes;
  EXPECT_TRUE(a.submission(name).SerializeToString(&bytes));
  v1::Submission parsed;
  EXPECT_TRUE(parsed.ParseFromString(bytes));
  a.Finish(now_);
  check.ExpectWhole(request, 7);
}

}  // namespace
}  // namespace quire::rpc
