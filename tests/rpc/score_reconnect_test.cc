// Client::Score over connections that are cut, and services that are away: each answer once, in order, and none
// computed again that has come.
#include <atomic>
#include <mutex>

#include "rpc/client.h"
#include "tests/rpc/service_fixture.h"
#include "tests/rpc/tcp_proxy.h"

namespace quire {
namespace {

// Texts that Client::Score takes one after another, and what has come of them.
class List {
 public:
  explicit List(int count) : count_(count) {}

  // Of different lengths, so that they don't end in the order in which they begin.
  static std::vector<int32_t> Text(int64_t i) {
    std::vector<int32_t> ids(1, 1);
    for (int64_t k = 0; k < 1 + i * 37 % 90; ++k) ids.push_back(static_cast<int32_t>(3 + (i * 61 + k * 13) % 500));
    return ids;
  }

  // after_each: called with the number of answers that have come.
  Status Score(Client& client, const std::function<void(int64_t)>& after_each = {}, double timeout_s = 0,
               const std::function<bool()>& stop = {}) {
    return client.Score(
        [this]() -> std::optional<ClientPrompt> {
          if (taken_ == count_) return std::nullopt;
          ClientPrompt prompt;
          prompt.token_ids = Text(taken_++);
          return prompt;
        },
        2,
        [&](const ClientScore& score) {
          scores_.push_back(score);
          if (after_each) after_each(static_cast<int64_t>(scores_.size()));
        },
        stop, timeout_s);
  }

  const std::vector<ClientScore>& scores() const { return scores_; }
  // All of them, in order, as those are.
  void ExpectSame(const List& other) const {
    ASSERT_EQ(scores_.size(), static_cast<size_t>(count_));
    ASSERT_EQ(other.scores_.size(), scores_.size());
    for (size_t i = 0; i < scores_.size(); ++i) {
      const ClientScore &got = scores_[i], &want = other.scores_[i];
      EXPECT_EQ(got.index, static_cast<int64_t>(i));
      EXPECT_EQ(got.token_ids, Text(got.index));
      EXPECT_EQ(got.sum, want.sum) << i;
      ASSERT_EQ(got.logprobs.size(), want.logprobs.size()) << i;
      for (size_t k = 1; k < got.logprobs.size(); ++k) {
        EXPECT_EQ(got.logprobs[k]->chosen.logprob, want.logprobs[k]->chosen.logprob) << i << " " << k;
        ASSERT_EQ(got.logprobs[k]->top.size(), 2u);
        EXPECT_EQ(got.logprobs[k]->top[1].id, want.logprobs[k]->top[1].id);
      }
    }
  }

 private:
  const int count_;
  int taken_ = 0;
  std::vector<ClientScore> scores_;
};

constexpr int kWindow = 64;  // texts that the client takes ahead of the answers

class ScoreReconnectTest : public ServiceTest {
 protected:
  void SetUp() override {
    EngineOptions options = Stories();
    options.batch_invariant = true;
    Start(options);
    way_ = std::make_unique<TcpProxy>(server_->address());
  }
  void TearDown() override {
    way_.reset();
    ServiceTest::TearDown();
  }

  static std::unique_ptr<Client> ConnectTo(const std::string& address, double retry_s = 60) {
    auto client = Client::Connect({.address = address, .connect_s = 10 * kSlowness, .retry_s = retry_s});
    EXPECT_TRUE(client.ok()) << client.status().ToString();
    return client.ok() ? std::move(client).value() : nullptr;
  }
  void RunUndisturbed(List* list) {
    const Status status = list->Score(*ConnectTo(server_->address()));
    ASSERT_TRUE(status.ok()) << status.ToString();
  }

  std::unique_ptr<TcpProxy> way_;
};

TEST_F(ScoreReconnectTest, AListGoesOnWhereverItIsCut) {
  constexpr int kTexts = 60;
  List undisturbed(kTexts);
  RunUndisturbed(&undisturbed);
  // From the first bytes, in which no answer can have come, to the middle of answers.
  for (const int64_t bytes : {1, 1000, 5000, 20001, 60000}) {
    SCOPED_TRACE("cut after " + std::to_string(bytes) + " bytes");
    const int before = way_->cuts();
    way_->CutAfter(bytes);
    List list(kTexts);
    const Status status = list.Score(*ConnectTo(way_->address()));
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(way_->cuts(), before + 1);
    list.ExpectSame(undisturbed);
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ScoreReconnectTest, AListThatIsCutAgainAndAgainComputesNothingTwiceThatHasCome) {
  constexpr int kTexts = 400;
  List undisturbed(kTexts);
  RunUndisturbed(&undisturbed);
  const int64_t before = Load().requests_finished();
  List list(kTexts);
  const int cuts = way_->cuts();
  const Status status = list.Score(*ConnectTo(way_->address()), [&](int64_t answered) {
    if (answered % 100 == 50) way_->Cut();
  });
  EXPECT_TRUE(status.ok()) << status.ToString();
  list.ExpectSame(undisturbed);
  EXPECT_EQ(way_->cuts() - cuts, 4);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
  // What was on its way at a cut is all that is computed again.
  EXPECT_LE(Load().requests_finished() - before, kTexts + 4 * kWindow);
}

TEST_F(ScoreReconnectTest, AServiceThatIsOutOfReachForAWhileIsWaitedFor) {
  constexpr int kTexts = 120;
  List undisturbed(kTexts), list(kTexts);
  RunUndisturbed(&undisturbed);
  std::atomic<bool> closed = false;
  std::thread opens([&] {
    EXPECT_TRUE(Eventually([&] { return closed.load(); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    way_->Open();
  });
  const Status status = list.Score(*ConnectTo(way_->address()), [&](int64_t answered) {
    if (answered != 40) return;
    way_->Close();
    closed = true;
  });
  opens.join();
  EXPECT_TRUE(status.ok()) << status.ToString();
  list.ExpectSame(undisturbed);
}

TEST_F(ScoreReconnectTest, WhatItSaysWhenTheServiceStaysAway) {
  struct Case {
    double retry_s, timeout_s;
    StatusCode code;
  };
  for (const Case& one : {Case{0.3, 0, StatusCode::kUnavailable},
                          {0, 0, StatusCode::kUnavailable},
                          {60, 1, StatusCode::kDeadlineExceeded}}) {
    SCOPED_TRACE(StatusCodeName(one.code));
    way_->Open();
    List list(200);
    const auto client = ConnectTo(way_->address(), one.retry_s);
    ASSERT_NE(client, nullptr);
    const double begin = NowSeconds();
    const Status status = list.Score(
        *client,
        [&](int64_t answered) {
          if (answered == 1) way_->Close();
        },
        one.timeout_s * kSlowness);
    EXPECT_EQ(status.code(), one.code) << status.ToString();
    EXPECT_LT(NowSeconds() - begin, 30 * kSlowness);
    EXPECT_GE(list.scores().size(), 1u);  // what came before the cut is the caller's
    EXPECT_LT(list.scores().size(), 200u);
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ScoreReconnectTest, StopEndsItAtOnceWhetherTheServiceIsThereOrNot) {
  for (const bool there : {true, false}) {
    way_->Open();
    std::atomic<bool> stop = false;
    List list(2000);
    const Status status = list.Score(
        *ConnectTo(way_->address()),
        [&](int64_t answered) {
          if (answered != 5) return;
          if (!there) way_->Close();
          stop = true;
        },
        0, [&] { return stop.load(); });
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
    EXPECT_LT(list.scores().size(), 2000u);
  }
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ScoreReconnectTest, ATextThatIsRefusedIsNamedByItsPlaceInTheListAfterACut) {
  int taken = 0;
  std::vector<int64_t> indices;
  const Status status = ConnectTo(way_->address())
                            ->Score(
                                [&]() -> std::optional<ClientPrompt> {
                                  ClientPrompt prompt;
                                  prompt.token_ids = List::Text(taken);
                                  if (taken++ == 150) prompt.token_ids.push_back(512);
                                  return prompt;
                                },
                                0,
                                [&](const ClientScore& score) {
                                  indices.push_back(score.index);
                                  if (indices.size() == 70) way_->Cut();
                                });
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("text 150: "), std::string::npos) << status.ToString();
  EXPECT_EQ(indices.size(), 150u);
  EXPECT_EQ(way_->cuts(), 1);
}

// What a ScriptedService does.
struct Script {
  // Of each call, answers before it ends with `status`, when it reads one text more or the list ends. The calls after
  // these answer all.
  std::vector<int> answers = {};
  grpc::StatusCode status = grpc::UNAVAILABLE;
  std::function<void()> before_end = {};  // may be empty
  int64_t shift = 0;                      // of the answers' numbers
};

// Answers as it is told, so that it is known what the client must send.
class ScriptedService : public v1::Generation::Service {
 public:
  explicit ScriptedService(Script script) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Score(grpc::ServerContext*,
                     grpc::ServerReaderWriter<v1::ScoreResponse, v1::ScoreRequest>* stream) override {
    size_t call = 0;
    {
      std::lock_guard lock(mutex_);
      call = calls_.size();
      calls_.emplace_back();
    }
    const bool ends = call < script_.answers.size();
    int answered = 0;
    for (v1::ScoreRequest request; stream->Read(&request);) {
      {
        std::lock_guard lock(mutex_);
        calls_[call].push_back(request.index());
      }
      if (ends && answered == script_.answers[call]) {
        if (script_.before_end) script_.before_end();
        break;
      }
      v1::ScoreResponse response;
      response.set_index(request.index() + script_.shift);
      *response.mutable_token_ids() = request.prompt().token_ids().ids();
      stream->Write(response);
      ++answered;
    }
    return ends ? grpc::Status(script_.status, "as the script says") : grpc::Status::OK;
  }

  // Texts by number, of each call, as far as it has read.
  std::vector<std::vector<int64_t>> calls() {
    std::lock_guard lock(mutex_);
    return calls_;
  }

 private:
  const Script script_;
  int port_ = 0;
  std::mutex mutex_;
  std::vector<std::vector<int64_t>> calls_;
  std::unique_ptr<grpc::Server> server_;
};

Status ScoreNumbers(const std::string& address, int count, std::vector<int64_t>* indices, double retry_s = 60) {
  auto client = Client::Connect({.address = address, .connect_s = 10 * kSlowness, .retry_s = retry_s});
  if (!client.ok()) return client.status();
  int taken = 0;
  return (*client)->Score(
      [&]() -> std::optional<ClientPrompt> {
        if (taken == count) return std::nullopt;
        ClientPrompt prompt;
        prompt.token_ids = {++taken};
        return prompt;
      },
      0,
      [&](const ClientScore& score) {
        EXPECT_EQ(score.token_ids, std::vector<int32_t>{static_cast<int32_t>(score.index) + 1});
        indices->push_back(score.index);
      });
}

std::vector<int64_t> Range(int64_t from, int64_t to) {
  std::vector<int64_t> numbers;
  for (; from < to; ++from) numbers.push_back(from);
  return numbers;
}

TEST(ScoreTexts, EveryCallBeginsWithTheFirstTextThatHasNoAnswer) {
  ScriptedService service({.answers = {0, 3, 0, 70, 1}});
  std::vector<int64_t> indices;
  const Status status = ScoreNumbers(service.address(), 200, &indices);
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(indices, Range(0, 200));
  // Each of the calls that end early has read one text more than it answers.
  EXPECT_EQ(service.calls(), (std::vector<std::vector<int64_t>>{Range(0, 1), Range(0, 4), Range(3, 4), Range(3, 74),
                                                                Range(73, 75), Range(74, 200)}));
}

TEST(ScoreTexts, WhatWasAnsweredBeforeTheEndWasLostIsNotAskedForAgain) {
  for (const int count : {20, 0}) {
    ScriptedService service({.answers = {count}});
    std::vector<int64_t> indices;
    const Status status = ScoreNumbers(service.address(), count, &indices);
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(indices, Range(0, count));
    EXPECT_EQ(service.calls(), (std::vector<std::vector<int64_t>>{Range(0, count)}));
  }
}

TEST(ScoreTexts, OnlyAServiceThatIsUnavailableIsTriedAgain) {
  for (const grpc::StatusCode code : {grpc::RESOURCE_EXHAUSTED, grpc::CANCELLED, grpc::INTERNAL, grpc::NOT_FOUND}) {
    ScriptedService service({.answers = {5}, .status = code});
    std::vector<int64_t> indices;
    EXPECT_EQ(static_cast<int>(ScoreNumbers(service.address(), 20, &indices).code()), static_cast<int>(code));
    EXPECT_EQ(indices, Range(0, 5));
    EXPECT_EQ(service.calls().size(), 1u);
  }
}

TEST(ScoreTexts, NumbersThatWereNotAskedForAndAnEndBeforeTheLastAnswerAreInternal) {
  ScriptedService shifted({.shift = 1}), short_of({.answers = {5}, .status = grpc::OK});
  std::vector<int64_t> indices;
  Status status = ScoreNumbers(shifted.address(), 20, &indices);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("text 1 where text 0 was next"), std::string::npos) << status.ToString();
  EXPECT_TRUE(indices.empty());
  status = ScoreNumbers(short_of.address(), 20, &indices);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("after 5 texts"), std::string::npos) << status.ToString();
}

TEST(ScoreTexts, NoMoreThanAWindowIsTakenAheadOfTheAnswers) {
  std::atomic<int> taken = 0;
  Script script{.answers = {10}, .status = grpc::OK};
  script.before_end = [&] {
    EXPECT_TRUE(Eventually([&] { return taken >= 10 + kWindow; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for one more, if it came
  };
  ScriptedService service(script);
  auto client = Client::Connect({.address = service.address(), .connect_s = 10 * kSlowness});
  ASSERT_TRUE(client.ok());
  const Status status = (*client)->Score(
      [&]() -> std::optional<ClientPrompt> {
        ClientPrompt prompt;
        prompt.token_ids = {++taken};
        return prompt;
      },
      0, [](const ClientScore&) {});
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(taken, 10 + kWindow);
}

}  // namespace
}  // namespace quire
