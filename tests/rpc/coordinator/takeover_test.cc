// What crosses a takeover beside the tokens: text cut inside a character or a stop string, log-probabilities, and
// requests of many sequences. The way to a group is cut while streams run; each must end as an undisturbed one.
#include <set>

#include "tests/rpc/client_streams.h"
#include "tests/rpc/coordinator/local_cluster.h"

namespace quire {
namespace {

constexpr int32_t kFirstByteToken = 3;  // <0x00>

EngineOptions Options() {
  EngineOptions options = ModelOptions("stories260K");
  options.batch_invariant = true;
  options.max_num_seqs = 32;
  options.attention = {*AttentionSpec::Parse("dense"), *AttentionSpec::Parse("quest:token_budget=64:dense_layers=0")};
  return options;
}

ClientStream Ask(const std::string& text, int tokens, uint64_t seed) {
  ClientStream stream;
  stream.request.prompts.emplace_back().text = text;
  GenerationRequest& parameters = stream.request.parameters;
  parameters.stopping.max_tokens = tokens;
  parameters.stopping.ignore_eos = true;
  parameters.sampling.temperature = 1;
  parameters.sampling.seed = seed;
  return stream;
}

// A stream of these bytes alone, each a token of the model, in an order that the seed draws.
ClientStream AskForBytes(const std::string& bytes, int tokens, uint64_t seed) {
  ClientStream stream = Ask("The alphabet is ours.", tokens, seed);
  SamplingParams& sampling = stream.request.parameters.sampling;
  sampling.temperature = 4;
  for (const char byte : bytes) sampling.logit_bias[kFirstByteToken + static_cast<unsigned char>(byte)] = 100;
  return stream;
}

// Runs them undisturbed, and then with `cuts` cuts of the ways to the groups in turn. What they came to.
std::vector<ClientStream> ExpectUndisturbed(LocalCluster& cluster, const std::vector<ClientStream>& streams, int cuts) {
  ClientStreams undisturbed(cluster.address(), streams);
  undisturbed.Join();
  EXPECT_TRUE(cluster.WaitEmpty());
  const int64_t step = undisturbed.tokens() / (cuts + 1);
  const int64_t before = cluster.Load().total().failovers();
  ClientStreams disturbed(cluster.address(), streams);
  int done = 0;
  // A way is there again a fifth of a second later; when the other is cut meanwhile, all wait for one of them.
  while (done < cuts && disturbed.WaitTokens((done + 1) * step)) cluster.way(done++ % 2).Cut();
  disturbed.Join();
  EXPECT_EQ(done, cuts);
  ExpectEqual(disturbed.results(), undisturbed.results());
  EXPECT_GE(cluster.Load().total().failovers() - before, cuts);
  EXPECT_TRUE(cluster.WaitGroups(2));
  EXPECT_TRUE(cluster.WaitEmpty());
  return undisturbed.results();
}

TEST(Takeover, CharactersOfSeveralBytesStayWhole) {
  LocalCluster cluster(2, Options());
  std::vector<ClientStream> streams;
  // In halves, thirds and quarters.
  const std::vector<std::string> characters = {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const std::string& character : characters) streams.push_back(AskForBytes(character, 300, seed));
  }
  std::vector<std::string> texts(3);
  const std::vector<ClientStream> results = ExpectUndisturbed(cluster, streams, 5);
  for (size_t i = 0; i < results.size(); ++i) texts[i % 3] += results[i].texts[0];
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NE(texts[i].find(characters[i]), std::string::npos) << i;    // whole ones
    EXPECT_NE(texts[i].find("\xef\xbf\xbd"), std::string::npos) << i;  // and others that are none: U+FFFD
  }
}

TEST(Takeover, StopStringsEndAStreamWhereverTheyBegan) {
  LocalCluster cluster(2, Options());
  std::vector<ClientStream> streams;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    // Each often begins, and seldom ends.
    for (const auto& [bytes, stop] : {std::pair<std::string, std::string>{"ab", "aababbaab"},
                                      {"abc", "abcab"},
                                      {"\xc3\xa9", "\xc3\xa9\xc3\xa9\xc3\xa9"}}) {
      ClientStream stream = AskForBytes(bytes, 480, seed);
      stream.request.parameters.stopping.stop = {stop, "never this"};
      stream.request.parameters.stopping.include_stop = seed % 2 == 1;
      stream.request.parameters.stopping.min_tokens = 100;
      streams.push_back(stream);
    }
  }
  int stopped = 0;
  for (const ClientStream& stream : ExpectUndisturbed(cluster, streams, 6)) {
    const TokenEvent& last = stream.last[0];
    if (last.reason != FinishReason::kStop) continue;
    ++stopped;
    EXPECT_EQ(last.matched_stop, stream.request.parameters.stopping.stop[0]);
    EXPECT_EQ(stream.texts[0].ends_with(last.matched_stop), stream.request.parameters.stopping.include_stop);
  }
  EXPECT_GE(stopped, 8);
}

TEST(Takeover, LogProbabilitiesGoOnAndThePromptsComeOnce) {
  LocalCluster cluster(2, Options());
  std::vector<ClientStream> streams;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    ClientStream stream = Ask("The key of day " + std::to_string(seed) + " is under the stone by the well.", 250, seed);
    GenerationRequest& parameters = stream.request.parameters;
    parameters.logprobs = 3;
    parameters.prompt_logprobs = 2;
    parameters.sampling.temperature = seed % 2 == 0 ? 0.0f : 1.0f;
    parameters.sampling.n = seed == 5 ? 3 : 1;
    parameters.attention = AttentionSpec::Parse(seed % 3 == 0 ? "dense" : "quest:token_budget=64:dense_layers=0").value();
    streams.push_back(stream);
  }
  for (const ClientStream& stream : ExpectUndisturbed(cluster, streams, 5)) {
    EXPECT_EQ(stream.logprobs[0].size(), stream.tokens[0].size());
    EXPECT_EQ(static_cast<int>(stream.prompt_logprobs[0].size()), stream.last[0].prompt_tokens);
  }
}

TEST(Takeover, ManyPromptsOfManySequencesAreSpreadAndComeBackInOrder) {
  LocalCluster cluster(2, Options());
  ClientStream many;
  GenerationRequest& parameters = many.request.parameters;
  parameters = Ask("", 200, 7).request.parameters;
  parameters.sampling.n = 4;
  for (const char* text : {"One.", "Two, and some more.", "Three: "}) many.request.prompts.emplace_back().text = text;
  (void)ExpectUndisturbed(cluster, {many}, 3);
  for (int group = 0; group < 2; ++group) EXPECT_GT(cluster.GroupLoad(group).generation_tokens(), 600) << group;

  // The whole at once, in the same order; each the engine's own.
  v1::GenerateRequest request;
  for (const ClientPrompt& prompt : many.request.prompts) request.add_prompts()->set_text(*prompt.text);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.mutable_sampling()->set_n(4);
  request.mutable_stopping()->set_max_tokens(200);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_response()->set_echo_token_ids(true);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = cluster.generation().Generate(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.outputs_size(), 12);
  const auto engine = MakeEngine(Options());
  std::set<std::vector<int32_t>> different;
  for (int p = 0; p < 3; ++p) {
    GenerationRequest own = parameters;
    own.prompt = *engine->tokenizer()->Encode(*many.request.prompts[static_cast<size_t>(p)].text, {});
    Collector collector;
    const auto id = engine->Submit(own, collector.callback());
    ASSERT_TRUE(id.ok() && engine->Run().ok());
    for (int s = 0; s < 4; ++s) {
      const v1::Output& output = response.outputs(4 * p + s);
      EXPECT_EQ(output.prompt_index(), p);
      EXPECT_EQ(output.sequence_index(), s);
      const std::vector<int32_t> ids(output.token_ids().begin(), output.token_ids().end());
      EXPECT_EQ(ids, collector.at(*id, s).ids);
      EXPECT_EQ(output.text(), collector.at(*id, s).text);
      EXPECT_EQ(output.prompt_token_ids_size(), s == 0 ? static_cast<int>(own.prompt.size()) : 0);
      different.insert(ids);
    }
  }
  EXPECT_EQ(different.size(), 12u);
}

}  // namespace
}  // namespace quire
