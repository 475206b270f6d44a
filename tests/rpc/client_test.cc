// The client class: the service's calls as functions, and what it hides.
#include "rpc/client.h"

#include <atomic>

#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

class ClientTest : public ServiceTest {
 protected:
  std::unique_ptr<Client> Connect(double retry_s = 5) {
    auto client = Client::Connect({.address = server_->address(), .connect_s = 10, .retry_s = retry_s});
    EXPECT_TRUE(client.ok()) << client.status().ToString();
    return client.ok() ? std::move(client).value() : nullptr;
  }
};

TEST_F(ClientTest, GeneratesWhatTheEngineDoes) {
  Start(Stories());
  auto engine = MakeEngine(Stories());
  const Output wanted = RunOne(*engine, Greedy(*engine->tokenizer()->Encode("Once upon a time", {}), 50));
  ClientRequest request;
  request.parameters = Greedy({}, 50);
  request.parameters.logprobs = 1;
  request.prompts.emplace_back().text = "Once upon a time";
  std::string text;
  std::vector<int32_t> ids;
  TokenEvent last;
  const Status status = Connect()->Generate(request, [&](const ClientChunk& chunk) {
    text += chunk.event.text;
    ids.insert(ids.end(), chunk.event.token_ids.begin(), chunk.event.token_ids.end());
    EXPECT_EQ(chunk.event.logprobs.size(), chunk.event.token_ids.size());
    last = chunk.event;
  });
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(text, wanted.text);
  EXPECT_EQ(ids, wanted.ids);
  EXPECT_EQ(last.reason, FinishReason::kLength);
  EXPECT_EQ(last.prompt_tokens, wanted.last.prompt_tokens);
}

TEST_F(ClientTest, WaitsForAServiceThatIsLoading) {
  StartLoading();
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    server_->Serve(MakeEngine(Stories()));
  });
  ClientRequest request;
  request.parameters = Greedy({}, 5);
  request.prompts.emplace_back().token_ids = {1};
  int tokens = 0;
  const Status status = Connect(20)->Generate(
      request, [&](const ClientChunk& chunk) { tokens += static_cast<int>(chunk.event.token_ids.size()); });
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(tokens, 5);
  later.join();
}

TEST_F(ClientTest, WithoutRetriesAServiceThatIsLoadingIsUnavailable) {
  StartLoading();
  ClientRequest request;
  request.prompts.emplace_back().token_ids = {1};
  EXPECT_EQ(Connect(0)->Generate(request, [](const ClientChunk&) {}).code(), StatusCode::kUnavailable);
}

TEST_F(ClientTest, StopEndsTheRequest) {
  Start(Retriever());
  ClientRequest request;
  request.parameters = Greedy({}, 100000);
  request.prompts.emplace_back().token_ids = BytePrompt(64);
  std::atomic<bool> stop = false;
  TokenEvent last;
  const Status status = Connect()->Generate(
      request,
      [&](const ClientChunk& chunk) {
        stop = true;
        last = chunk.event;
      },
      [&] { return stop.load(); });
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(last.reason, FinishReason::kAborted);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ClientTest, ATimeoutIsDeadlineExceededAndFreesThePages) {
  Start(Retriever());
  ClientRequest request;
  request.parameters = Greedy({}, 100000);
  request.prompts.emplace_back().token_ids = BytePrompt(64);
  request.timeout_s = 0.2;
  EXPECT_EQ(Connect()->Generate(request, [](const ClientChunk&) {}).code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Eventually([&] { return Empty(); }));
}

TEST_F(ClientTest, ScoresAListInOrder) {
  Start(Stories());
  int given = 0;
  std::vector<int64_t> indices;
  const auto client = Connect();
  const Status status = client->Score(
      [&]() -> std::optional<ClientPrompt> {
        if (given == 30) return std::nullopt;
        ClientPrompt prompt;
        prompt.token_ids = {1, 400, 401 + given++};
        return prompt;
      },
      2,
      [&](const ClientScore& score) {
        EXPECT_EQ(score.token_ids[2], 401 + score.index);
        EXPECT_FALSE(score.logprobs[0].has_value());
        EXPECT_EQ(score.logprobs[2]->top.size(), 2u);
        EXPECT_LT(score.sum, 0);
        indices.push_back(score.index);
      });
  ASSERT_TRUE(status.ok()) << status.ToString();
  ASSERT_EQ(indices.size(), 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(indices[i], i);
}

TEST_F(ClientTest, SaysWhatTheServiceIs) {
  Start(Stories());
  const auto client = Connect();
  const auto info = client->Info();
  ASSERT_TRUE(info.ok()) << info.status().ToString();
  EXPECT_EQ(info->role, "group");
  EXPECT_EQ(info->state, "ready");
  EXPECT_EQ(info->model, "stories260K");
  EXPECT_TRUE(*client->Ready());
  const auto load = client->Load();
  ASSERT_TRUE(load.ok());
  EXPECT_EQ(load->groups, 1);
  EXPECT_EQ(load->available_groups, 1);
  EXPECT_EQ(load->pages_free, load->pages_total);
  EXPECT_TRUE(client->Drain(0).ok());
  EXPECT_TRUE(Eventually([&] { return server_->Drained(); }));
}

TEST(Client, NobodyThereIsUnavailableAndABadAddressInvalid) {
  EXPECT_EQ(Client::Connect({.address = "127.0.0.1:1", .connect_s = 0.2}).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Client::Connect({.address = "nonsense", .connect_s = 0.2}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
