// The forward pass as a step sees it: mixed batches, rows with and without logits, policies side by side,
// what it counts, and the same answers from several ranks.
#include "core/model/decoder.h"

#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <mutex>
#include <random>
#include <set>

#include "core/model/decoder_rows.h"
#include "tests/core/model/test_model.h"
#include "tests/core/model/test_threads.h"

namespace quire {
namespace {

std::vector<int32_t> RandomIds(int count, int vocab, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % vocab);
  return ids;
}

std::unique_ptr<AttentionPolicy> Policy(const std::string& spec, int page_size) {
  return TestModel::Value(MakePolicy(TestModel::Value(AttentionSpec::Parse(spec)), page_size));
}

std::vector<float> RowOf(const std::vector<float>& logits, int row, int64_t vocab) {
  return {logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab};
}

// Remembers the selections of a step by layer, sequence and KV head.
class Recorder final : public SelectionObserver {
 public:
  std::map<std::tuple<int, int, int>, std::vector<int32_t>> lists;
  int first_kv_head = 0;
  int q_heads_seen = 0;

  void OnSelect(const SelectParams& p, const SelectionView& s) override {
    const int heads = p.table.format.kv_heads;
    q_heads_seen = p.q_heads;
    for (int row = 0; row < p.rows; ++row) {
      for (int head = 0; head < heads; ++head) {
        const int64_t list = int64_t{row} * heads + head;
        const int32_t* pages = s.pages + list * s.max_pages;
        lists[{p.layer, p.row_seq[row], first_kv_head + head}].assign(pages, pages + s.counts[list]);
      }
    }
  }
};

TEST(DecoderRows, SortsDecodeRowsByPolicyThenLengthAndKeepsPrefillInPlace) {
  const AllPagesPolicy first, second;
  const std::vector<int32_t> tokens = {10, 11, 12, 13, 20, 21, 22};
  const std::vector<ForwardChunk> chunks = {
      {.seq = 0, .first_row = 0, .rows = 1, .start_pos = 9, .decode = true, .policy = &second},
      {.seq = 1, .first_row = 1, .rows = 1, .start_pos = 5, .decode = true},
      {.seq = 2, .first_row = 2, .rows = 1, .start_pos = 7, .decode = true, .policy = &first},
      {.seq = 3, .first_row = 3, .rows = 1, .start_pos = 4, .decode = true, .policy = &second},
      {.seq = 4, .first_row = 4, .rows = 3, .start_pos = 2, .rope_length = 50}};
  const std::vector<int32_t> wanted = {0, 2, 6};
  DecoderRows rows;
  rows.Build({tokens, chunks, {}, wanted});
  EXPECT_EQ(rows.decode_rows, 4);
  EXPECT_EQ(rows.tokens, (std::vector<int32_t>{11, 13, 10, 12, 20, 21, 22}));
  EXPECT_EQ(rows.seq, (std::vector<int32_t>{1, 3, 0, 2, 4, 4, 4}));
  EXPECT_EQ(rows.pos, (std::vector<int32_t>{5, 4, 9, 7, 2, 3, 4}));
  EXPECT_EQ(rows.len, (std::vector<int32_t>{6, 5, 10, 8, 3, 4, 5}));
  EXPECT_EQ(rows.rope_len, (std::vector<int32_t>{6, 5, 10, 8, 50, 50, 50}));
  EXPECT_EQ(rows.logit_places, (std::vector<int32_t>{2, 3, 6}));
  ASSERT_EQ(rows.prefill_with_logits.size(), 1u);
  EXPECT_EQ(rows.prefill_with_logits[0].first_row, 6);
  EXPECT_EQ(rows.prefill_with_logits[0].rows, 1);
  EXPECT_EQ(rows.prefill_with_logits[0].start_pos, 4);
}

TEST(RowPadding, BucketsAreNotBelowAndFew) {
  const int rows[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 63, 65};
  const int buckets[] = {1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 72};
  for (size_t i = 0; i < std::size(rows); ++i) EXPECT_EQ(RowPadding::RowBucket(rows[i]), buckets[i]) << rows[i];
  std::set<int32_t> lengths;
  int32_t last = 0;
  for (int32_t length = 1; length <= 1 << 17; ++length) {
    const int32_t bucket = RowPadding::LengthBucket(length);
    ASSERT_GE(bucket, length);
    ASSERT_GE(bucket, last);
    ASSERT_LE(bucket, std::max(128, length + length / 4));
    lengths.insert(last = bucket);
  }
  EXPECT_EQ(lengths.size(), 1u + 4 * 10);
  EXPECT_GE(RowPadding::LengthBucket(2147483647), 2147483647);
}

// Rows that attend alike in the last layer are filled up together: here three dense ones (one of them short of quest's budget),
// and two sparse ones.
TEST(DecoderRows, FillsAStepOfDecodeRowsUp) {
  const auto quest = Policy("quest:token_budget=24:dense_layers=1", 4);
  const std::vector<int32_t> tokens = {10, 11, 12, 13, 14};
  const std::vector<ForwardChunk> chunks = {
      {.seq = 0, .first_row = 0, .rows = 1, .start_pos = 300, .decode = true, .policy = quest.get()},
      {.seq = 1, .first_row = 1, .rows = 1, .start_pos = 5, .decode = true},
      {.seq = 2, .first_row = 2, .rows = 1, .start_pos = 7, .decode = true, .policy = quest.get()},
      {.seq = 3, .first_row = 3, .rows = 1, .start_pos = 4, .decode = true},
      {.seq = 4, .first_row = 4, .rows = 1, .start_pos = 90, .decode = true, .policy = quest.get()}};
  const std::vector<int32_t> wanted = {0, 2, 4};
  RowPadding padding{.max_rows = 8, .max_logit_rows = 4, .last_layer = 1, .page_size = 4};
  DecoderRows rows;
  rows.Build({tokens, chunks, {}, wanted}, &padding);
  EXPECT_EQ(rows.rows, 6);
  EXPECT_EQ(rows.given_rows, 5);
  EXPECT_EQ(rows.decode_rows, 6);
  EXPECT_EQ(rows.counted_rows, 6);
  EXPECT_FALSE(rows.overwrites);
  EXPECT_EQ(rows.tokens, (std::vector<int32_t>{13, 11, 12, 0, 14, 10}));
  EXPECT_EQ(rows.seq, (std::vector<int32_t>{3, 1, 2, -1, 4, 0}));
  EXPECT_EQ(rows.len, (std::vector<int32_t>{5, 6, 8, 0, 91, 301}));
  EXPECT_EQ(rows.source, (std::vector<int32_t>{3, 1, 2, -1, 4, 0}));
  EXPECT_EQ(rows.place, (std::vector<int32_t>{5, 1, 2, 0, 4}));
  EXPECT_EQ(rows.logit_places, (std::vector<int32_t>{5, 2, 4, -1}));
  EXPECT_EQ(rows.Longest(0, 4), 128);
  EXPECT_EQ(rows.Longest(4, 6), 320);
  padding.max_length = 310;
  rows.Build({tokens, chunks, {}, wanted}, &padding);
  EXPECT_EQ(rows.Longest(4, 6), 310);
  // Where there is no room, there are those that were given.
  padding.max_rows = 5;
  padding.max_logit_rows = 3;
  rows.Build({tokens, chunks, {}, wanted}, &padding);
  EXPECT_EQ(rows.rows, 5);
  EXPECT_EQ(rows.seq, (std::vector<int32_t>{3, 1, 2, 4, 0}));
  EXPECT_EQ(rows.logit_places, (std::vector<int32_t>{4, 2, 3}));
}

TEST(Decoder, RefusesAnActivationItDoesNotHave) {
  TestModel model(TestData("golden/llama"));
  ModelConfig config = model.config();
  config.activation = Activation::kGelu;
  const auto comm = MakeSelfCommunicator();
  const Result<Decoder> decoder =
      Decoder::Create(model.ctx(), config, &model.weights(), model.plan(), comm.get(), {.max_rows = 1, .max_logit_rows = 1});
  ASSERT_FALSE(decoder.ok());
  EXPECT_EQ(decoder.status().code(), StatusCode::kUnimplemented);
  EXPECT_NE(decoder.status().message().find("GELU"), std::string::npos);
}

// Five sequences at different points of their lives in one step, against each alone.
void ExpectMixedBatchEqualsSeparateRuns(const std::string& name, bool batch_invariant, double tolerance) {
  TestModel model(TestData(name), {.threads = 2, .batch_invariant = batch_invariant});
  const int vocab = model.config().vocab;
  constexpr int kPage = 4, kLength = 80;
  const auto quest = Policy("quest:token_budget=24:dense_layers=1", kPage);
  struct Sequence {
    int start, rows;
    bool decode;
    const AttentionPolicy* policy;
  };
  const std::vector<Sequence> sequences = {{60, 1, true, quest.get()}, {13, 1, true, nullptr},
                                           {33, 1, true, quest.get()}, {20, 1, true, quest.get()},
                                           {0, 17, false, nullptr},    {29, 9, false, nullptr}};
  std::vector<std::vector<int32_t>> ids;
  for (size_t s = 0; s < sequences.size(); ++s) ids.push_back(RandomIds(kLength, vocab, 100 + s));

  const TestCache shared = model.Cache(kPage, kLength, static_cast<int>(sequences.size()));
  std::vector<std::vector<float>> alone;
  std::vector<int32_t> tokens, wanted;
  std::vector<ForwardChunk> chunks;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const Sequence& q = sequences[s];
    const TestCache own = model.Cache(kPage, kLength);
    const std::vector<int32_t> past(ids[s].begin(), ids[s].begin() + q.start);
    if (q.start > 0) {
      model.Prefill(own, past, 64);
      model.Prefill(shared, past, 64, static_cast<int>(s));
    }
    const std::vector<int32_t> now(ids[s].begin() + q.start, ids[s].begin() + q.start + q.rows);
    ForwardChunk chunk{.rows = q.rows, .start_pos = q.start, .decode = q.decode, .policy = q.policy};
    std::vector<int32_t> last = {q.rows - 1};
    alone.push_back(model.Step(own, now, {chunk}, last));
    chunk.seq = static_cast<int32_t>(s);
    chunk.first_row = static_cast<int32_t>(tokens.size());
    chunks.push_back(chunk);
    tokens.insert(tokens.end(), now.begin(), now.end());
    wanted.push_back(static_cast<int32_t>(tokens.size()) - 1);
  }
  const std::vector<float> mixed = model.Step(shared, tokens, chunks, wanted);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::vector<float> row = RowOf(mixed, static_cast<int>(s), vocab);
    if (batch_invariant) {
      EXPECT_EQ(row, alone[s]) << "sequence " << s;
    } else {
      EXPECT_LE(RelativeError(row, alone[s]), tolerance) << "sequence " << s;
    }
  }
}

TEST(Decoder, MixedBatchEqualsSeparateRuns) {
  ExpectMixedBatchEqualsSeparateRuns("golden/llama", false, 1e-5);
  ExpectMixedBatchEqualsSeparateRuns("golden/qwen2-window", false, 1e-5);
  ExpectMixedBatchEqualsSeparateRuns("golden/llama-dynamic", false, 1e-5);
  ExpectMixedBatchEqualsSeparateRuns("golden/gemma2", false, 1e-5);
}

TEST(Decoder, MixedBatchHasTheBitsOfSeparateRunsInBatchInvariantMode) {
  ExpectMixedBatchEqualsSeparateRuns("golden/llama", true, 0);
  ExpectMixedBatchEqualsSeparateRuns("golden/qwen3", true, 0);
  ExpectMixedBatchEqualsSeparateRuns("golden/gemma3", true, 0);
}

TEST(Decoder, ThreadsAndChunkingDoNotChangeBitsInBatchInvariantMode) {
  const std::vector<int32_t> ids = RandomIds(90, 260, 5);
  std::vector<float> first_prefill, first_decode;
  for (const int threads : {1, 2, 3}) {
    TestModel model(TestData("retriever-2m"), {.threads = threads, .batch_invariant = true});
    const auto quest = Policy("quest:token_budget=48:dense_layers=1", 8);
    const TestCache cache = model.Cache(8, 91);
    const std::vector<float> prefill = model.Prefill(cache, ids, threads == 1 ? 90 : 20 + threads);
    const std::vector<float> decode = model.Decode(cache, 7, 90, quest.get());
    if (threads == 1) first_prefill = prefill, first_decode = decode;
    EXPECT_EQ(prefill, first_prefill) << threads << " threads";
    EXPECT_EQ(decode, first_decode) << threads << " threads";
  }
}

TEST(Decoder, LogitsOfSomeRowsAreThoseOfAllRows) {
  TestModel model(TestData("golden/smollm2"), {.batch_invariant = true});
  const int64_t vocab = model.config().vocab;
  const std::vector<int32_t> ids = RandomIds(40, model.config().vocab, 7);
  const TestCache all_cache = model.Cache(16, 40), some_cache = model.Cache(16, 40), none_cache = model.Cache(16, 41);
  const std::vector<float> all = model.Prefill(all_cache, ids, 40);
  const std::vector<float> some = model.Step(some_cache, ids, {{.rows = 40}}, {3, 17, 39});
  EXPECT_EQ(RowOf(some, 0, vocab), RowOf(all, 3, vocab));
  EXPECT_EQ(RowOf(some, 1, vocab), RowOf(all, 17, vocab));
  EXPECT_EQ(RowOf(some, 2, vocab), RowOf(all, 39, vocab));
  // A chunk without logits leaves the same cache behind.
  EXPECT_TRUE(model.Step(none_cache, ids, {{.rows = 40}}, {}).empty());
  EXPECT_EQ(model.Decode(none_cache, 5, 40), model.Decode(none_cache, 5, 40));
  const TestCache reference = model.Cache(16, 41);
  model.Prefill(reference, ids, 40);
  EXPECT_EQ(model.Decode(none_cache, 5, 40), model.Decode(reference, 5, 40));
}

TEST(Decoder, EmptyStepDoesNothing) {
  TestModel model(TestData("golden/llama"));
  const TestCache cache = model.Cache(16, 16);
  EXPECT_TRUE(model.Step(cache, {}, {}, {}).empty());
  EXPECT_EQ(model.decoder().last_stats().pages_total, 0);
}

TEST(Decoder, CountsPagesReadOfPagesThere) {
  TestModel model(TestData("golden/llama"));  // 3 layers, 2 KV heads
  constexpr int kPage = 4, kPast = 70;
  const TestCache cache = model.Cache(kPage, kPast + 1);
  model.Prefill(cache, RandomIds(kPast, model.config().vocab, 3), kPast);
  EXPECT_EQ(model.decoder().last_stats().pages_total, 0);  // prefill rows don't count
  const int64_t live = 18;                                 // ceil(71 / 4)
  model.Decode(cache, 5, kPast);
  EXPECT_EQ(model.decoder().last_stats().pages_total, live * 3 * 2);
  EXPECT_EQ(model.decoder().last_stats().pages_read, live * 3 * 2);
  const auto quest = Policy("quest:token_budget=24:dense_layers=1", kPage);
  model.Decode(cache, 5, kPast, quest.get());
  EXPECT_EQ(model.decoder().last_stats().pages_total, live * 3 * 2);
  EXPECT_EQ(model.decoder().last_stats().pages_read, live * 2 + 6 * 2 * 2);  // one layer dense, two read 24 tokens
  EXPECT_GT(model.decoder().last_stats().selection_seconds, 0);
  // The switch looks at the length with the row itself: 71 tokens fit a budget of 71, not of 70.
  model.Decode(cache, 5, kPast, Policy("quest:token_budget=71:dense_layers=0", kPage).get());
  EXPECT_EQ(model.decoder().last_stats().pages_read, live * 3 * 2);
  EXPECT_EQ(model.decoder().last_stats().selection_seconds, 0);
  model.Decode(cache, 5, kPast, Policy("quest:token_budget=70:dense_layers=0", kPage).get());
  EXPECT_EQ(model.decoder().last_stats().pages_read, (live - 1) * 3 * 2);
  EXPECT_GT(model.decoder().last_stats().attention_seconds, 0);
}

TEST(Decoder, CountsThePagesOfAWindowOnly) {
  TestModel model(TestData("golden/mistral"));  // 3 layers, 2 KV heads, window 16
  const TestCache cache = model.Cache(4, 71);
  model.Prefill(cache, RandomIds(70, model.config().vocab, 3), 70);
  const auto quest = Policy("quest:token_budget=24:dense_layers=0", 4);
  model.Decode(cache, 5, 70, quest.get());
  // Tokens 55 … 70 lie in logical pages 13 … 17; a layer with a window attends densely to it.
  EXPECT_EQ(model.decoder().last_stats().pages_total, 5 * 3 * 2);
  EXPECT_EQ(model.decoder().last_stats().pages_read, 5 * 3 * 2);
}

TEST(Decoder, ObserverSeesEachSelectionOfTheSparseLayers) {
  TestModel model(TestData("golden/llama"));
  const TestCache cache = model.Cache(4, 71);
  model.Prefill(cache, RandomIds(70, model.config().vocab, 3), 70);
  Recorder recorder;
  model.decoder().set_observer(&recorder);
  const auto quest = Policy("quest:token_budget=24:dense_layers=1", 4);
  model.Decode(cache, 5, 70, quest.get());
  ASSERT_EQ(recorder.lists.size(), 4u);  // two layers of two KV heads
  for (const auto& [key, pages] : recorder.lists) {
    EXPECT_GE(std::get<0>(key), 1);
    EXPECT_EQ(pages.size(), 6u);
    EXPECT_TRUE(std::is_sorted(pages.begin(), pages.end()));
    EXPECT_EQ(pages.front(), 0);
    EXPECT_EQ(pages.back(), 17);
  }
  model.decoder().set_observer(nullptr);
  recorder.lists.clear();
  model.Decode(cache, 5, 70, quest.get());
  EXPECT_TRUE(recorder.lists.empty());
}

TEST(Decoder, SelectionOfFewPagesChangesTheAnswerAndOfAllPagesDoesNot) {
  TestModel model(TestData("golden/llama"));
  const TestCache cache = model.Cache(4, 71);
  model.Prefill(cache, RandomIds(70, model.config().vocab, 3), 70);
  const std::vector<float> dense = model.Decode(cache, 5, 70);
  const AllPagesPolicy all_pages;
  EXPECT_LE(RelativeError(model.Decode(cache, 5, 70, &all_pages), dense), 1e-6);
  for (const std::string name : {"quest", "hierarchical", "hybrid", "sparq"}) {
    const auto decode = [&](const char* options) {
      return model.Decode(cache, 5, 70, Policy(name + options, 4).get());
    };
    EXPECT_EQ(decode(":token_budget=71:dense_layers=0"), dense) << name;
    EXPECT_GT(RelativeError(decode(":token_budget=16:dense_layers=0"), dense), 1e-3) << name;
  }
}

TEST(Decoder, ScratchGrowsToTheLargestStepAndStays) {
  TestModel model(TestData("golden/llama"));
  const TestCache cache = model.Cache(4, 128);
  const std::vector<int32_t> ids = RandomIds(128, model.config().vocab, 3);
  const auto quest = Policy("quest:token_budget=24:dense_layers=0", 4);
  model.Prefill(cache, ids, 127);
  model.Decode(cache, 5, 127, quest.get());
  const size_t after_first = model.decoder().scratch_bytes();
  for (int i = 0; i < 3; ++i) {
    model.Prefill(cache, ids, 100);
    model.Decode(cache, 5, 127, quest.get());
    model.Decode(cache, 5, 127);
  }
  EXPECT_EQ(model.decoder().scratch_bytes(), after_first);
}

// Dynamic scaling: a row's rotation belongs to its own sequence's length, not to its neighbours'.
TEST(Decoder, DynamicRopeFollowsEachSequencesLength) {
  TestModel model(TestData("golden/llama-dynamic"));  // trained for 32 positions
  const std::vector<int32_t> ids = RandomIds(24, model.config().vocab, 3);
  const TestCache a = model.Cache(16, 64), b = model.Cache(16, 64), c = model.Cache(16, 64);
  const auto run = [&](const TestCache& cache, int rope_length) {
    return model.Step(cache, ids, {{.rows = 24, .rope_length = rope_length}}, {23});
  };
  EXPECT_EQ(run(a, 0), run(b, 32));                          // up to the original maximum nothing is scaled
  EXPECT_GT(RelativeError(run(a, 0), run(c, 60)), 1e-3);     // beyond it all rows turn by other angles
}

// What `ranks` ranks make of a prompt and two decode steps, put together.
struct GroupAnswer {
  std::vector<float> logits;  // of the last step, [vocab]
  std::map<std::tuple<int, int, int>, std::vector<int32_t>> selections;
  int group_q_heads = 0;
  bool replicas_agree = true;
};

GroupAnswer RunGroup(const std::string& name, int ranks, bool sparse) {
  TestGroup group(ranks);
  GroupAnswer answer;
  std::mutex mutex;
  group.Run([&](Communicator* comm) {
    TestModel model(TestData(name), {.threads = 1, .rank = comm->rank(), .comm = comm});
    const std::vector<int32_t> ids = RandomIds(70, model.config().vocab, 11);
    const TestCache cache = model.Cache(4, 72);
    const auto quest = Policy("quest:token_budget=24:dense_layers=0", 4);
    Recorder recorder;
    recorder.first_kv_head = static_cast<int>(model.plan().kv_heads.begin);
    model.decoder().set_observer(&recorder);
    model.Prefill(cache, ids, 33);
    model.Decode(cache, 5, 70, sparse ? quest.get() : nullptr);
    const std::vector<float> logits = model.Decode(cache, 9, 71, sparse ? quest.get() : nullptr);
    std::lock_guard lock(mutex);
    answer.logits.resize(model.config().vocab);
    std::copy(logits.begin(), logits.end(), answer.logits.begin() + model.plan().vocab.begin);
    for (const auto& [key, pages] : recorder.lists) {
      const auto [where, added] = answer.selections.insert({key, pages});
      if (!added && where->second != pages) answer.replicas_agree = false;
    }
    if (!model.plan().has_heads()) {
      EXPECT_TRUE(recorder.lists.empty());
      EXPECT_EQ(model.decoder().last_stats().bytes_total, 0);
      return;
    }
    answer.group_q_heads = recorder.q_heads_seen / static_cast<int>(model.plan().kv_heads.size());
  });
  return answer;
}

class Ranks : public testing::TestWithParam<std::tuple<const char*, int>> {};

std::string RanksName(const testing::TestParamInfo<std::tuple<const char*, int>>& info) {
  std::string name = std::string(std::get<0>(info.param)) + "_tp" + std::to_string(std::get<1>(info.param));
  for (char& c : name) if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

TEST_P(Ranks, GiveTheLogitsAndPagesOfOneRank) {
  const auto [name, ranks] = GetParam();
  for (const bool sparse : {false, true}) {
    const GroupAnswer one = RunGroup(name, 1, sparse), many = RunGroup(name, ranks, sparse);
    EXPECT_LE(RelativeError(many.logits, one.logits), 1e-5) << (sparse ? "quest" : "dense");
    EXPECT_TRUE(many.replicas_agree);
    EXPECT_EQ(many.selections, one.selections);
    EXPECT_EQ(many.group_q_heads, one.group_q_heads);
    // Layers with a window attend to all of it, and Mistral has no others.
    EXPECT_EQ(many.selections.empty(), !sparse || std::string(name) == "golden/mistral");
  }
}

// Every family and rope variant: most have four query heads on two KV heads, so uneven on 3 ranks, replicated from 3
// on, and on 5 and more some ranks have no heads.
INSTANTIATE_TEST_SUITE_P(
    Families, Ranks,
    testing::Combine(testing::Values("golden/llama", "golden/llama-bias", "golden/llama-dynamic", "golden/llama-linear",
                                     "golden/llama-llama3", "golden/llama-yarn", "golden/llama-yarn-mscale",
                                     "golden/gemma2", "golden/gemma3", "golden/gemma3-new", "golden/mistral",
                                     "golden/qwen2", "golden/qwen2-window", "golden/qwen3", "retriever-2m"),
                     testing::Range(2, 9)),
    RanksName);
// 9/3 heads: unevenly on 2, whole on 3, replicated beyond, and two ranks of 11 without heads.
INSTANTIATE_TEST_SUITE_P(SmolLm2, Ranks, testing::Combine(testing::Values("golden/smollm2"), testing::Range(2, 12)),
                         RanksName);

}  // namespace
}  // namespace quire
