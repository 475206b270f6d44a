// Ten faults that others had with sparse or sharded attention, each as a test that fails when the fault is there, on
// one to four ranks where ranks matter. The model is tests/data/gqa-dummy, 8 query heads on 2 KV heads: two ranks hold
// a KV head each, three and four share them.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "core/model/weight_slices.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_mass.h"
#include "kernels/cpu/amx.h"
#include "parallel/shard_plan.h"
#include "tests/core/engine/group_fixture.h"
#include "tests/kernels/decode_call.h"
#include "tests/kernels/prefill_call.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using testing::DecodeCall;
using testing::PagedCache;
using testing::RandomFloats;
using testing::SameBits;
using testing::Select;
using testing::Selected;
using testing::Step;
using testing::TwoThreads;

constexpr int kRanks[] = {1, 2, 3, 4};

// Every policy that chooses pages, at eight pages of four.
const std::vector<std::string>& Policies() {
  static const std::vector<std::string> specs = {"quest",
                                                 "hierarchical",
                                                 "hybrid",
                                                 "sparq:channels=8",
                                                 "swa:recent_tokens=4",
                                                 "h2o:recent_tokens=4",
                                                 "tova",
                                                 "top-p:loose=0.3",
                                                 "top-p:selector=h2o:loose=0.3:recent_tokens=4"};
  return specs;
}
AttentionSpec Spec(const std::string& policy, int budget = 32, int dense_layers = 0) {
  return AttentionSpec::Parse(policy + ":token_budget=" + std::to_string(budget) +
                              ":dense_layers=" + std::to_string(dense_layers))
      .value();
}

EngineOptions Options(std::vector<AttentionSpec> attention = {AttentionSpec{}}) {
  EngineOptions options = GqaOptions(std::move(attention));
  options.max_model_len = 256;
  options.batch_invariant = true;
  return options;
}

// What one rank selected, in order and by (layer, length, KV head of the model).
class Watcher final : public SelectionObserver {
 public:
  explicit Watcher(int first_kv_head) : first_kv_head_(first_kv_head) {}
  void OnSelect(const SelectParams& p, const SelectionView& s) override {
    for (int row = 0; row < p.rows; ++row) {
      calls.push_back({p.layer, p.row_len[row]});
      for (int head = 0; head < p.table.format.kv_heads; ++head) {
        const int64_t list = int64_t{row} * p.table.format.kv_heads + head;
        const int32_t* pages = s.pages + list * s.max_pages;
        lists[{p.layer, p.row_len[row], first_kv_head_ + head}].assign(pages, pages + s.counts[list]);
      }
    }
  }
  std::vector<std::array<int32_t, 2>> calls;
  std::map<std::array<int32_t, 3>, std::vector<int32_t>> lists;

 private:
  int first_kv_head_;
};

// An engine on so many ranks, each watched.
class Group {
 public:
  Group(int size, const EngineOptions& options) {
    for (int rank = 0; rank < size; ++rank) {
      const auto plan = ShardPlan::Create({8, 2, 8, 701}, size, rank).value();
      watchers.push_back(std::make_unique<Watcher>(static_cast<int>(plan.kv_heads.begin)));
    }
    ranks_ = std::make_unique<TestRanks>(size, [&](int rank) { return watchers[static_cast<size_t>(rank)].get(); });
    engine_ = MakeEngine(ranks_->Options(options));
    if (engine_ != nullptr) engine_->set_selection_observer(watchers[0].get());
  }
  ~Group() {
    engine_.reset();
    for (const Status& end : ranks_->Release()) EXPECT_TRUE(end.ok()) << end.ToString();
  }
  Engine& operator*() { return *engine_; }
  Engine* operator->() { return engine_.get(); }
  std::vector<std::unique_ptr<Watcher>> watchers;

 private:
  std::unique_ptr<TestRanks> ranks_;
  std::unique_ptr<Engine> engine_;
};

// Every sequence of the requests, run at once; of resumed ones, what is new.
std::vector<Output> RunAll(Engine& engine, const std::vector<GenerationRequest>& requests) {
  std::vector<std::vector<Output>> outputs(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    outputs[i].resize(static_cast<size_t>(requests[i].sampling.n));
    const auto id = engine.Submit(requests[i], [&outputs, i](const TokenEvent& event) {
      Output& out = outputs[i][static_cast<size_t>(event.sequence)];
      out.ids.insert(out.ids.end(), event.token_ids.begin(), event.token_ids.end());
      out.last = event;
    });
    EXPECT_TRUE(id.ok()) << id.status().ToString();
  }
  EXPECT_TRUE(engine.Run().ok());
  std::vector<Output> all;
  for (const auto& sequences : outputs) {
    for (const Output& out : sequences) {
      EXPECT_TRUE(out.last.finished && out.last.status.ok()) << out.last.status.ToString();
      all.push_back(out);
    }
  }
  return all;
}

// A rank's KV heads of a cache, in pages of its own.
struct RankSlice {
  RankSlice(const PagedCache& full, const std::vector<float>& q, int q_heads, const ShardPlan& plan)
      : kv(plan.kv_heads),
        cache(full.table().format.dtype, full.table().format.page_size, static_cast<int>(kv.size()),
              full.table().format.k_dim, full.table().format.v_dim, full.lengths(),
              77 + static_cast<uint64_t>(plan.rank), true),
        step(cache, q_heads / full.table().format.kv_heads * static_cast<int>(kv.size()), {0}, {full.lengths()[0]}, 1) {
    const PageFormat& f = full.table().format;
    const int tokens = full.lengths()[0], d = f.k_dim, group = q_heads / f.kv_heads, mine = static_cast<int>(kv.size());
    std::vector<float> k, v;
    std::vector<int32_t> seq(static_cast<size_t>(tokens)), pos;
    for (int t = 0; t < tokens; ++t) {
      pos.push_back(t);
      const auto at = [&](const std::vector<float>& all) { return all.begin() + (t * f.kv_heads + kv.begin) * d; };
      k.insert(k.end(), at(full.key()), at(full.key()) + mine * d);
      v.insert(v.end(), at(full.value()), at(full.value()) + mine * d);
    }
    for (int page = 0; page < cache.Pages(0); ++page)
      ZeroPage(cache.pages(), cache.table().format, cache.PageId(0, page));
    KvAppend(TwoThreads(), {.pages = cache.pages(),
                            .table = cache.table(),
                            .k = k.data(),
                            .k_stride = mine * d,
                            .v = v.data(),
                            .v_stride = mine * d,
                            .row_seq = seq.data(),
                            .row_pos = pos.data(),
                            .rows = tokens});
    // Where a KV head is shared, the whole group's queries, as its ranks gather them.
    step.q.assign(q.begin() + kv.begin * group * d, q.begin() + (kv.begin + mine) * group * d);
    step.p.q = step.q.data();
  }
  Range kv;
  PagedCache cache;
  Step step;
};

TEST(Pitfalls, Pitfall01CapacityIsTheMinimumOverRanks) {
  // On two and four ranks of three KV heads some hold twice what others do, in as many bytes.
  for (const int size : kRanks) {
    EngineOptions options = ModelOptions("retriever-2m");  // 6 query and 3 KV heads
    options.kv_cache_bytes = 1 << 20;
    options.max_num_seqs = 2;
    options.max_model_len = 4096;
    options.load_tokenizer = false;
    options.attention = {AttentionSpec::Parse("quest:token_budget=64:dense_layers=0").value()};
    TestRanks ranks(size);
    auto engine = MakeEngine(ranks.Options(options));
    ASSERT_NE(engine, nullptr);
    const int64_t pages = engine->Stats().pages_total;
    for (const RankInfo& rank : engine->Ranks()) {
      const auto plan = ShardPlan::Create({6, 3, 6, 6}, size, rank.rank).value();
      // Pages of this rank, from the bytes it took: what the books hand out must be in all.
      const int64_t page_bytes = int64_t{4} * plan.kv_heads.size() * 16 * 2 * 64 * 4;
      EXPECT_EQ(static_cast<int64_t>(rank.memory.kv_cache), pages * page_bytes)
          << "rank " << rank.rank << " of " << size;
    }
    // A sequence that takes the last page: ids out of a rank's range would be found out by its memory.
    const int fits = static_cast<int>(pages) * 16;
    const Output out = RunOne(*engine, Greedy(BytePrompt(std::min(fits, 4096) - 5), 5));
    EXPECT_EQ(out.ids.size(), 5u);
  }
}

TEST(Pitfalls, Pitfall02TiesGoToTheLowerPageOnEveryRankAndRun) {
  // All keys are the same, so all pages score the same (but for what is forced).
  PagedCache full(DType::kF32, 4, 2, 16, 16, {400}, 1, true);
  full.Fill(TwoThreads());
  const_cast<std::vector<float>&>(full.key()).assign(full.key().size(), 0.25f);
  const std::vector<float> q = RandomFloats(8 * 16, 3);
  const auto even = [](int, int, int64_t) { return 0.5f; };
  for (const std::string& name : Policies()) {
    const auto policy = MakePolicy(Spec(name), 4).value();
    for (const int size : kRanks) {
      for (int rank = 0; rank < size; ++rank) {
        RankSlice slice(full, q, 8, ShardPlan::Create({8, 2, 8, 8}, size, rank).value());
        for (const int threads : {1, 2, 3}) {
          const Selected s = Select(*policy, slice.step.p, threads, even);
          for (size_t list = 0; list < s.counts.size(); ++list) {
            const std::vector<int32_t> pages = s.List(list);
            ASSERT_GE(pages.size(), 8u);
            EXPECT_EQ(pages.back(), 99) << name;
            for (size_t i = 0; i + 2 < pages.size(); ++i) {
              EXPECT_EQ(pages[i], static_cast<int32_t>(i)) << name << " rank " << rank << " of " << size;
            }
          }
        }
      }
    }
  }
}

TEST(Pitfalls, Pitfall03EachKvHeadChoosesForItselfSoTheChoiceIsTheSameAtAnyTp) {
  PagedCache full(DType::kF32, 4, 2, 16, 16, {777}, 1, true);
  full.Fill(TwoThreads());
  const std::vector<float> q = RandomFloats(8 * 16, 3);
  for (const std::string& name : Policies()) {
    const auto policy = MakePolicy(Spec(name), 4).value();
    std::vector<std::vector<int32_t>> one;  // [KV head]
    for (const int size : kRanks) {
      for (int rank = 0; rank < size; ++rank) {
        const ShardPlan plan = ShardPlan::Create({8, 2, 8, 8}, size, rank).value();
        RankSlice slice(full, q, 8, plan);
        const Selected s = Select(*policy, slice.step.p, 2, [&](int seq, int head, int64_t page) {
          return testing::RandomEntry(seq, head + static_cast<int>(plan.kv_heads.begin), page);
        });
        if (size == 1) {
          one = {s.List(0), s.List(1)};
          EXPECT_NE(one[0], one[1]) << name << ": heads must differ for this to show anything";
        }
        for (int64_t head = 0; head < plan.kv_heads.size(); ++head) {
          EXPECT_EQ(s.List(static_cast<size_t>(head)), one[static_cast<size_t>(plan.kv_heads.begin + head)])
              << name << " rank " << rank << " of " << size;
        }
      }
    }
  }
}

TEST(Pitfalls, Pitfall04RanksThatShareAKvHeadChooseAlike) {
  for (const std::string& name : Policies()) {
    for (const int size : {3, 4}) {
      Group group(size, Options({Spec(name)}));
      const Output out = RunOne(*group, Greedy(Ids(80, 1), 30));
      EXPECT_EQ(out.ids.size(), 30u);
      size_t shared = 0;
      std::map<std::array<int32_t, 3>, std::vector<int32_t>> all;
      for (const auto& watcher : group.watchers) {
        EXPECT_FALSE(watcher->lists.empty());
        for (const auto& [key, pages] : watcher->lists) {
          const auto [at, added] = all.insert({key, pages});
          shared += !added;
          EXPECT_EQ(at->second, pages) << name << ": layer " << key[0] << " length " << key[1] << " KV head " << key[2];
        }
      }
      EXPECT_GE(shared, 29u * 3);  // at least one KV head has two holders
    }
  }
}

// Requests of one priority in a cache that holds fewer: who has to give way, and when, is the same at any number of
// ranks and in every run, though memory lies elsewhere each time.
TEST(Pitfalls, Pitfall05WhoGivesWayIsDecidedByArrivalNotByAddress) {
  std::vector<GenerationRequest> requests;
  for (uint32_t i = 0; i < 4; ++i) requests.push_back(Greedy(Ids(30, 50 + i), 60));
  std::vector<std::vector<int32_t>> ids;
  std::vector<int> preemptions;
  for (const int size : {1, 2, 3, 4, 1, 4}) {
    // Three layers, a KV head's pages of 4 tokens, K and V of 8 channels in float32: 54 pages on every rank.
    const int kv_heads = size == 1 ? 2 : 1;
    EngineOptions options = Options();
    options.max_model_len = 128;
    options.kv_cache_bytes = int64_t{54} * 3 * 4 * 2 * 8 * 4 * kv_heads;
    std::vector<std::unique_ptr<char[]>> shift;  // other addresses in every run
    for (int i = 0; i < size * 7; ++i) shift.push_back(std::make_unique<char[]>(static_cast<size_t>(1000 + 513 * i)));
    Group group(size, options);
    const std::vector<Output> outputs = RunAll(*group, requests);
    std::vector<int> given;
    std::vector<std::vector<int32_t>> got;
    for (const Output& out : outputs) {
      given.push_back(out.last.preemptions);
      got.push_back(out.ids);
    }
    EXPECT_EQ(group->Stats().pages_free, group->Stats().pages_total);
    if (ids.empty()) {
      ids = got;
      preemptions = given;
      EXPECT_EQ(preemptions[0], 0);  // the first to come never gives way
      EXPECT_GT(preemptions[3], 0);
      continue;
    }
    EXPECT_EQ(got, ids) << size << " ranks";
    EXPECT_EQ(given, preemptions) << size << " ranks";
  }
}

// What is in the cache before a row is the plan's to say, never a rank's own: forks share a prefix, preempted and
// resumed sequences begin again, and every rank computes the same rows at the same lengths in the same order.
TEST(Pitfalls, Pitfall06RanksAgreeOnWhatIsInTheCacheAlready) {
  const AttentionSpec spec = Spec("quest");
  GenerationRequest forked = Greedy(Ids(60, 1), 20), resumed = Greedy(Ids(50, 2), 24), plain = Greedy(Ids(60, 1), 30);
  forked.sampling.n = 3;
  forked.sampling.temperature = 1;
  forked.sampling.seed = 4;
  resumed.resume = {0, Ids(9, 3)};
  for (GenerationRequest* request : {&forked, &resumed, &plain}) request->attention = spec;
  std::vector<std::vector<int32_t>> one;
  for (const int size : kRanks) {
    EngineOptions options = Options({spec});
    options.max_num_seqs = 3;
    options.max_num_batched_tokens = 23;
    Group group(size, options);
    const std::vector<Output> outputs = RunAll(*group, {forked, resumed, plain});
    // The greedy ones: what is drawn may turn on the rounding of sums over ranks.
    const std::vector<std::vector<int32_t>> ids = {outputs[3].ids, outputs[4].ids};
    if (one.empty()) one = ids;
    EXPECT_EQ(ids, one) << size << " ranks";
    EXPECT_GT(group.watchers[0]->calls.size(), 100u);
    for (const auto& watcher : group.watchers) EXPECT_EQ(watcher->calls, group.watchers[0]->calls);
  }
}

// A (row, KV head)'s bits don't depend on how many others the call has: a rank that holds one KV head, or part of its
// queries, gets those of one that holds all. Also where pages go through AMX tiles, which groups of two heads don't, and
// groups of more than eight in another way.
void ExpectBitsOfEachHead(int page_size, int dim, int group, const std::vector<int>& lengths) {
  const int q_heads = 2 * group;
  for (const int length : lengths) {
    PagedCache full(DType::kBF16, page_size, 2, dim, dim, {length}, 1, true);
    full.Fill(TwoThreads());
    for (const bool sparse : {false, true}) {
      const auto attend = [&](PagedCache& cache, int heads, const std::vector<float>& q, int first_kv_head) {
        DecodeCall call(cache, heads, {0}, {length}, 1);
        call.q = q;
        call.p.model_group = group;
        testing::Selection selection(1, cache.table().format.kv_heads, cache.Pages(0));
        for (int head = 0; head < cache.table().format.kv_heads; ++head) {
          std::mt19937_64 random(static_cast<uint64_t>(first_kv_head + head));
          selection.Set(static_cast<size_t>(head),
                        testing::RandomPages(cache.Pages(0), cache.Pages(0) / 2 + 1, random));
        }
        if (sparse) call.p.selection = &selection.view;
        auto workspace = Buffer::Create(AttentionDecodeWorkspace(call.Params()));
        EXPECT_TRUE(workspace.ok());
        AttentionDecode(TwoThreads(), call.Params(), workspace->data());
        return call.out;
      };
      const std::vector<float> q = RandomFloats(static_cast<size_t>(q_heads * dim), 3);
      const std::vector<float> one = attend(full, q_heads, q, 0);
      for (const int size : {2, 3, 4, 6, 8}) {
        for (int rank = 0; rank < size; ++rank) {
          const ShardPlan plan = ShardPlan::Create({q_heads, 2, 8, 8}, size, rank).value();
          RankSlice slice(full, q, q_heads, plan);
          const auto mine = [&](const std::vector<float>& all) {
            return std::vector<float>(all.begin() + plan.q_heads.begin * dim, all.begin() + plan.q_heads.end * dim);
          };
          const std::vector<float> out = attend(slice.cache, static_cast<int>(plan.q_heads.size()), mine(q),
                                                static_cast<int>(plan.kv_heads.begin));
          EXPECT_TRUE(SameBits(out, mine(one))) << "rank " << rank << " of " << size << " length " << length;
        }
      }
    }
  }
}
TEST(Pitfalls, Pitfall07BitsOfAHeadDontDependOnTheHeadsBesideIt) {
  ExpectBitsOfEachHead(4, 16, 4, {40, 700, 5000});
  ExpectBitsOfEachHead(16, 64, 12, {700});
  UseSoftwareTilesForTesting(true);
  for (const int group : {4, 8, 12, 24}) ExpectBitsOfEachHead(16, 64, group, {40, 300});
  UseSoftwareTilesForTesting(false);
}

// Pages and metadata that had another owner, were shared, or written in part: a busy engine gives what a new one gives.
TEST(Pitfalls, Pitfall08NothingIsLeftOfAPagesEarlierOwner) {
  for (const std::string& name :
       {std::string("quest"), std::string("hierarchical"), std::string("h2o:recent_tokens=4")}) {
    const AttentionSpec spec = Spec(name);
    GenerationRequest target = Greedy(Ids(90, 1), 30);
    target.attention = spec;
    for (const int size : kRanks) {
      EngineOptions options = Options({spec});
      options.kv_cache_bytes = int64_t{90} * 3 * 4 * 2 * 8 * 4 * (size == 1 ? 2 : 1) * 2;  // with metadata
      Output want;
      {
        Group fresh(size, options);
        want = RunOne(*fresh, target);
      }
      Group group(size, options);
      for (uint32_t i = 0; i < 5; ++i) {
        // Large keys, many lengths, forks that part in the middle of a page.
        GenerationRequest other = Greedy(Ids(37 + 23 * static_cast<int>(i), 900 + i), 13 + 5 * static_cast<int>(i));
        other.attention = spec;
        if (i % 2 == 1) {
          other.sampling.n = 3;
          other.sampling.temperature = 2;
          other.sampling.seed = i;
        }
        RunAll(*group, {other});
        const Output again = RunOne(*group, target);
        EXPECT_EQ(again.ids, want.ids) << name << " on " << size << " ranks";
        EXPECT_EQ(again.last.attention.pages_read, want.last.attention.pages_read);
      }
    }
  }
}

TEST(Pitfalls, Pitfall09SinksAreInFromTheFirstTokenPastTheBudget) {
  std::vector<std::string> names = Policies();
  names.push_back("streaming");
  for (const std::string& name : names) {
    const AttentionSpec spec = Spec(name);
    const auto policy = MakePolicy(spec, 4).value();
    // Keys of the first page against all queries, nothing of it in the history.
    for (const int length : {33, 34, 36, 37, 200}) {
      PagedCache cache(DType::kF32, 4, 1, 16, 16, {length}, 1, true);
      cache.Fill(TwoThreads());
      const int budget = name.starts_with("top-p") ? std::max(32, length * 3 / 10) : 32;
      if (length <= budget) continue;
      EXPECT_FALSE(policy->IsDense(length, 0, 4)) << name;
      Step step(cache, 2, {0}, {length}, 2);
      std::vector<float> k(16), v(16, 0.0f);
      for (int c = 0; c < 16; ++c)
        k[static_cast<size_t>(c)] = -5 * (step.q[static_cast<size_t>(c)] + step.q[static_cast<size_t>(16 + c)]);
      const int32_t seq = 0;
      for (int32_t pos = 0; pos < 4; ++pos) {
        KvAppend(TwoThreads(), {.pages = cache.pages(),
                                .table = cache.table(),
                                .k = k.data(),
                                .k_stride = 16,
                                .v = v.data(),
                                .v_stride = 16,
                                .row_seq = &seq,
                                .row_pos = &pos,
                                .rows = 1});
      }
      const Selected s = Select(*policy, step.p, 1, [](int, int, int64_t page) { return page == 0 ? 0.0f : 1.0f; });
      EXPECT_EQ(s.List(0).front(), 0) << name << " at " << length;
      EXPECT_EQ(s.List(0).back(), (length - 1) / 4) << name << " at " << length;
    }
    // And in every step of an engine, on all ranks.
    for (const int size : kRanks) {
      Group group(size, Options({spec}));
      RunOne(*group, Greedy(Ids(30, 1), 20));
      for (const auto& watcher : group.watchers) {
        EXPECT_FALSE(watcher->lists.empty());
        for (const auto& [key, pages] : watcher->lists) {
          EXPECT_EQ(pages.front(), 0) << name << " at length " << key[1];
          EXPECT_EQ(pages.back(), (key[1] - 1) / 4) << name << " at length " << key[1];
        }
      }
    }
  }
}

// Memory that isn't read is NaN, and lists, rows and parts are empty: results are 0 and −inf there and right elsewhere.
TEST(Pitfalls, Pitfall10EmptyPartsAndUnreadMemoryGiveNoNan) {
  PagedCache cache(DType::kBF16, 4, 2, 16, 16, {3000, 5}, 1, true);
  cache.Fill(TwoThreads());
  DecodeCall call(cache, 8, {0, 0, 1, 0}, {3000, 3000, 0, 2999}, 2);
  testing::Selection selection(4, 2, 200);
  std::vector<int32_t> few;  // more than a chunk of them
  for (int page = 0; page < 750; page += 5) few.push_back(page);
  selection.Set(0, few);  // KV head 1 of row 0, and all of row 1, have nothing
  selection.Set(6, few);
  selection.Set(7, {749});
  call.p.selection = &selection.view;
  call.mass.assign(4 * 2 * 750, -7.0f);
  call.p.mass_pages = 750;
  const std::set<int32_t> read(few.begin(), few.end());
  for (int page = 0; page < 750; ++page) {
    if (!read.contains(page) && page != 749) cache.PoisonPage(cache.PageId(0, page));
  }
  cache.Poison(cache.PageId(0, 749), 0);
  call.RunReference();
  const DecodeCall expected = call;
  auto workspace = Buffer::Create(AttentionDecodeWorkspace(call.Params()));
  ASSERT_TRUE(workspace.ok());
  std::memset(workspace->data(), 0xff, workspace->size());
  AttentionDecode(TwoThreads(), call.Params(), workspace->data());
  EXPECT_LE(testing::RelativeError(call.out, expected.out), 1e-4);
  for (size_t i = 0; i < call.out.size(); ++i) {
    ASSERT_FALSE(std::isnan(call.out[i])) << i;
    const size_t row = i / 128, head = i % 128 / 16;
    if (row == 1 || row == 2 || (row == 0 && head >= 4)) {
      ASSERT_EQ(call.out[i], 0.0f) << i;
    }
  }
  for (size_t i = 0; i < call.lse.size(); ++i) {
    const size_t row = i / 8;
    ASSERT_FALSE(std::isnan(call.lse[i]));
    if (row == 1 || row == 2 || (row == 0 && i % 8 >= 4)) {
      ASSERT_EQ(call.lse[i], -INFINITY);
    }
  }
  for (const float m : call.mass) ASSERT_GE(m, 0.0f);  // false for NaN

  // Attention with sinks where there are none, and a prompt's row that saw nothing.
  AttentionSinksParams sinks;
  sinks.decode = call.Params();
  sinks.decode.selection = nullptr;
  sinks.decode.mass = nullptr;
  sinks.decode.rows = 1;
  sinks.window = 1;
  const int32_t seq = 1, len = 5;
  sinks.decode.row_seq = &seq;
  sinks.decode.row_len = &len;
  sinks.q_sinks = call.q.data();
  sinks.q_sinks_stride = call.p.q_stride;
  auto sinks_workspace = Buffer::Create(AttentionSinksWorkspace(TwoThreads(), sinks));
  ASSERT_TRUE(sinks_workspace.ok());
  std::memset(sinks_workspace->data(), 0xff, sinks_workspace->size());
  AttentionDecodeSinks(TwoThreads(), sinks, sinks_workspace->data());
  for (int i = 0; i < 128; ++i) ASSERT_TRUE(std::isfinite(call.out[static_cast<size_t>(i)]));
  PrefillMassParams mass;
  mass.q = call.q.data();
  mass.q_stride = call.p.q_stride;
  const std::vector<float> nothing(8, -INFINITY);
  mass.lse = nothing.data();
  mass.q_heads = 8;
  mass.chunk = {1, 0, 1, 4};
  mass.pages = cache.pages();
  mass.table = cache.table();
  std::vector<float> paid(2 * 2, -7.0f);
  mass.mass = paid.data();
  mass.mass_pages = 2;
  auto mass_workspace = Buffer::Create(PrefillMassWorkspace(TwoThreads(), mass));
  ASSERT_TRUE(mass_workspace.ok());
  PrefillMass(TwoThreads(), mass, mass_workspace->data());
  EXPECT_EQ(paid, std::vector<float>(4, 0.0f));

  // Every policy where all scores are NaN lists what is forced and nothing else, and the engine goes on.
  for (const std::string& name : Policies()) {
    const auto policy = MakePolicy(Spec(name, 12), 4).value();
    PagedCache other(DType::kF32, 4, 2, 16, 16, {60}, 1, true);
    other.Fill(TwoThreads());
    Step nan_step(other, 4, {0}, {60}, 2);
    std::fill(nan_step.q.begin(), nan_step.q.end(), std::nanf(""));
    const Selected s = Select(*policy, nan_step.p, 1, [](int, int, int64_t) { return std::nanf(""); });
    for (size_t list = 0; list < 2; ++list) EXPECT_EQ(s.List(list), (std::vector<int32_t>{0, 14})) << name;
  }
}

}  // namespace
}  // namespace quire
