#include "tests/rpc/client_streams.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "core/base/clock.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {

ClientStreams::ClientStreams(const std::string& address, std::vector<ClientStream> streams, double retry_s)
    : streams_(std::move(streams)), running_(static_cast<int>(streams_.size())) {
  for (ClientStream& stream : streams_) {
    const size_t n = stream.request.prompts.size() * static_cast<size_t>(stream.request.parameters.sampling.n);
    stream.tokens.assign(n, {});
    stream.texts.assign(n, "");
    stream.last.assign(n, {});
    stream.logprobs.assign(n, {});
    stream.prompt_logprobs.assign(n, {});
    threads_.emplace_back([this, &stream, address, retry_s] {
      std::call_once(connect_, [&] {
        ClientOptions options;
        options.address = address;
        options.retry_s = retry_s;
        auto client = Client::Connect(options);
        connected_ = client.status();
        if (client.ok()) client_ = std::move(client).value();
      });
      if (client_ == nullptr) {
        stream.status = connected_;
      } else {
        stream.status = client_->Generate(stream.request, [&](const ClientChunk& chunk) {
          const TokenEvent& event = chunk.event;
          const size_t at = static_cast<size_t>(chunk.prompt * stream.request.parameters.sampling.n + event.sequence);
          EXPECT_FALSE(stream.last[at].finished) << "a chunk after the last";
          EXPECT_EQ(event.index, static_cast<int>(stream.tokens[at].size()));
          stream.tokens[at].insert(stream.tokens[at].end(), event.token_ids.begin(), event.token_ids.end());
          stream.texts[at] += event.text;
          stream.logprobs[at].insert(stream.logprobs[at].end(), event.logprobs.begin(), event.logprobs.end());
          stream.prompt_logprobs[at].insert(stream.prompt_logprobs[at].end(), event.prompt_logprobs.begin(),
                                            event.prompt_logprobs.end());
          if (event.finished) stream.last[at] = event;
          tokens_ += static_cast<int64_t>(event.token_ids.size());
        });
      }
      --running_;
    });
  }
}

void ClientStreams::Join() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool ClientStreams::WaitTokens(int64_t count, double seconds) const {
  const double end = NowSeconds() + seconds * kSlowness;
  while (tokens_ < count && NowSeconds() < end && !done()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  return tokens_ >= count && !done();
}

std::vector<ClientStream> MixedStreams(const std::vector<std::string>& policies, int per_policy, int prompt, int tokens) {
  std::vector<ClientStream> streams;
  for (const std::string& policy : policies) {
    for (int i = 0; i < per_policy; ++i) {
      ClientStream stream;
      ClientPrompt text;
      text.text = "";
      while (static_cast<int>(text.text->size()) < prompt) *text.text += "The key of day " + std::to_string(i * 7) + ". ";
      stream.request.prompts.push_back(text);
      GenerationRequest& parameters = stream.request.parameters;
      parameters.stopping.max_tokens = tokens;
      parameters.stopping.ignore_eos = true;
      parameters.attention = *AttentionSpec::Parse(policy);
      parameters.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
      parameters.sampling.seed = 100 + static_cast<uint64_t>(i);
      streams.push_back(std::move(stream));
    }
  }
  return streams;
}

namespace {

bool Same(const TokenLogprob& a, const TokenLogprob& b) { return a.id == b.id && a.logprob == b.logprob; }
bool Same(const TokenLogprobs& a, const TokenLogprobs& b) {
  return Same(a.chosen, b.chosen) && std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(),
                                                [](const auto& x, const auto& y) { return Same(x, y); });
}
bool Same(const std::optional<TokenLogprobs>& a, const std::optional<TokenLogprobs>& b) {
  return a.has_value() == b.has_value() && (!a.has_value() || Same(*a, *b));
}

template <typename T>
void ExpectSame(const std::vector<T>& got, const std::vector<T>& wanted, const char* what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(Same(got[i], wanted[i])) << what << " of token " << i;
}

}  // namespace

void ExpectEqual(const std::vector<ClientStream>& disturbed, const std::vector<ClientStream>& undisturbed) {
  ASSERT_EQ(disturbed.size(), undisturbed.size());
  for (size_t i = 0; i < disturbed.size(); ++i) {
    const ClientStream &got = disturbed[i], &wanted = undisturbed[i];
    SCOPED_TRACE("stream " + std::to_string(i));
    ASSERT_TRUE(wanted.status.ok()) << wanted.status.ToString();
    ASSERT_TRUE(got.status.ok()) << got.status.ToString();
    EXPECT_EQ(got.tokens, wanted.tokens);
    EXPECT_EQ(got.texts, wanted.texts);
    for (size_t s = 0; s < wanted.last.size(); ++s) {
      SCOPED_TRACE("sequence " + std::to_string(s));
      EXPECT_TRUE(got.last[s].finished);
      EXPECT_EQ(FinishReasonName(got.last[s].reason), std::string(FinishReasonName(wanted.last[s].reason)));
      EXPECT_EQ(got.last[s].matched_stop, wanted.last[s].matched_stop);
      EXPECT_EQ(got.last[s].matched_stop_id, wanted.last[s].matched_stop_id);
      EXPECT_EQ(got.last[s].prompt_tokens, wanted.last[s].prompt_tokens);
      EXPECT_EQ(got.last[s].completion_tokens, wanted.last[s].completion_tokens);
      ExpectSame(got.logprobs[s], wanted.logprobs[s], "log-probabilities");
      ExpectSame(got.prompt_logprobs[s], wanted.prompt_logprobs[s], "log-probabilities of the prompt");
    }
  }
}

}  // namespace quire
