// Given the same q and K, the pages chosen are the same at every tp, exactly: each rank's AttentionRunner gets its
// heads of one set of rows, and what it chooses is compared by KV head with what one rank chooses. Where ranks
// outnumber KV heads the replicas of a head choose alike, from the whole group's queries and attention mass; where they
// outnumber query heads the last have none, and are there in the gathers alone.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/model/decoder_attention.h"
#include "parallel/counted_communicator.h"
#include "parallel/threads_communicator.h"
#include "tests/core/model/test_cache.h"
#include "tests/core/model/test_model.h"

namespace quire {
namespace {

constexpr int kHeadDim = 16, kPage = 4, kSequences = 3;
constexpr int kLengths[kSequences] = {201, 64, 130};  // tokens before the decode row
constexpr int kLongest = 256;

struct Heads {
  int q, kv;
};

// One layer's rows [rows][(q + 2 kv) * d]: a prompt of each sequence, then one decode row of each.
struct Rows {
  explicit Rows(Heads heads) : width(int64_t{heads.q + 2 * heads.kv} * kHeadDim) {
    std::mt19937 rng(7 + heads.q * 100 + heads.kv);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int64_t n) {
      x.resize(static_cast<size_t>(n * width));
      for (float& v : x) v = normal(rng);
    };
    for (int s = 0; s < kSequences; ++s) fill(prompts[s], kLengths[s]);
    fill(decode, kSequences);
  }
  int64_t width;
  std::vector<float> prompts[kSequences], decode;
};

// The columns of a rank's heads.
std::vector<float> Slice(const std::vector<float>& rows, Heads heads, int64_t width, const ShardPlan& plan) {
  std::vector<float> out;
  for (size_t row = 0; row < rows.size() / static_cast<size_t>(width); ++row) {
    const float* x = rows.data() + row * static_cast<size_t>(width);
    const auto put = [&](int64_t first_head, const Range& range) {
      out.insert(out.end(), x + (first_head + range.begin) * kHeadDim, x + (first_head + range.end) * kHeadDim);
    };
    put(0, plan.q_heads);
    put(heads.q, plan.kv_heads);
    put(heads.q + heads.kv, plan.kv_heads);
  }
  return out;
}

// (sequence, KV head) → pages.
using Pages = std::map<std::pair<int, int>, std::vector<int32_t>>;

class Recorder final : public SelectionObserver {
 public:
  explicit Recorder(int first_kv_head) : first_kv_head_(first_kv_head) {}
  void OnSelect(const SelectParams& p, const SelectionView& s) override {
    const int heads = p.table.format.kv_heads;
    for (int row = 0; row < p.rows; ++row) {
      for (int head = 0; head < heads; ++head) {
        const int64_t list = int64_t{row} * heads + head;
        const int32_t* pages = s.pages + list * s.max_pages;
        lists[{p.row_seq[row], first_kv_head_ + head}].assign(pages, pages + s.counts[list]);
      }
    }
  }
  Pages lists;

 private:
  int first_kv_head_;
};

// A rank's history of one layer, by sequence.
struct Histories {
  Histories(int kv_heads, int width) {
    constexpr int kPages = kLongest / kPage;
    values.resize(static_cast<size_t>(kSequences * kv_heads * kPages * width));
    for (int s = 0; s < kSequences; ++s) {
      float* own = values.data() + int64_t{s} * kv_heads * kPages * width;
      layers[s] = {kv_heads > 0 ? own : nullptr, int64_t{kPages} * width, kv_heads, kPages, width};
    }
  }
  std::vector<float> values;
  PageHistory layers[kSequences];
};

struct GroupPages {
  Pages pages;
  int holders = 0;  // lists that several ranks made
  bool replicas_agree = true;
  int64_t gathers_of_a_rank = 0;  // in the one layer, of the decode rows
  std::vector<float> attended;    // [sequences][q heads][d] of the decode rows
};

GroupPages Choose(Heads heads, int tp, const std::string& policy_spec, DType dtype) {
  const Rows rows(heads);
  ModelConfig config;
  config.layers = 1;
  config.q_heads = heads.q;
  config.kv_heads = heads.kv;
  config.head_dim = kHeadDim;
  config.ffn = config.vocab = 64;
  config.window = {0};
  const auto policy = TestModel::Value(MakePolicy(TestModel::Value(AttentionSpec::Parse(policy_spec)), kPage));
  auto comms = MakeThreadCommunicators(tp);
  GroupPages group;
  group.attended.resize(static_cast<size_t>(kSequences * heads.q * kHeadDim));
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < tp; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Context ctx;
      ctx.pool = &pool;
      const ShardPlan plan = TestModel::Value(ShardPlan::Create({heads.q, heads.kv, 64, 64, 1}, tp, rank));
      CountedCommunicator comm(comms[rank].get());
      const TestCache cache(config, plan, dtype, kPage, kSequences, kLongest);
      AttentionRunner runner = TestModel::Value(AttentionRunner::Create(ctx, config, plan, &comm, kLongest));
      const int width = policy->Declare().history;
      Histories histories(static_cast<int>(plan.kv_heads.size()), width);
      const auto history = [&](int s) { return width > 0 ? &histories.layers[s] : nullptr; };
      Recorder recorder(static_cast<int>(plan.kv_heads.begin));
      runner.set_observer(&recorder);
      const auto step = [&](const std::vector<float>& all, const std::vector<ForwardChunk>& chunks, float* out) {
        const std::vector<float> qkv = Slice(all, heads, rows.width, plan);
        const std::vector<int32_t> tokens(all.size() / static_cast<size_t>(rows.width));
        DecoderRows placed;
        placed.Build({tokens, chunks, {}, {}});
        // The runner wants rows by place.
        const size_t qkv_width = qkv.size() / tokens.size();
        std::vector<float> by_place(qkv.size());
        for (size_t row = 0; row < tokens.size(); ++row) {
          std::copy_n(qkv.begin() + row * qkv_width, qkv_width, by_place.begin() + placed.place[row] * qkv_width);
        }
        AttentionStats stats;
        stats.row_reads.resize(kSequences);
        const size_t out_width = static_cast<size_t>(plan.q_heads.size() * kHeadDim);
        std::vector<float> attended(tokens.size() * out_width);
        DecoderInputs inputs;
        EXPECT_TRUE(inputs.Bring(ctx, placed, cache.views()).ok());
        EXPECT_TRUE(runner.BeginStep(placed).ok());
        const Status status = runner.Run({.layer = 0,
                                          .pages = cache.views()[0].layers[0],
                                          .table = cache.views()[0].table,
                                          .qkv = by_place.data(),
                                          .out = attended.data()},
                                         placed, inputs, stats);
        EXPECT_TRUE(status.ok()) << status.ToString();
        for (size_t row = 0; out != nullptr && row < tokens.size(); ++row) {
          std::copy_n(attended.begin() + placed.place[row] * out_width, out_width,
                      out + row * heads.q * kHeadDim + plan.q_heads.begin * kHeadDim);
        }
      };
      for (int s = 0; s < kSequences; ++s) {
        step(rows.prompts[s], {{.seq = s, .rows = kLengths[s], .policy = policy.get(), .history = history(s)}},
             nullptr);
      }
      std::vector<ForwardChunk> decode;
      for (int s = 0; s < kSequences; ++s) {
        decode.push_back({.seq = s,
                          .first_row = s,
                          .rows = 1,
                          .start_pos = kLengths[s],
                          .decode = true,
                          .policy = policy.get(),
                          .history = history(s)});
      }
      const int64_t before = comm.stats().calls();
      std::vector<float> out(group.attended.size());
      step(rows.decode, decode, out.data());
      std::lock_guard lock(mutex);
      group.gathers_of_a_rank = comm.stats().calls() - before;
      for (const auto& [key, pages] : recorder.lists) {
        const auto [at, added] = group.pages.insert({key, pages});
        if (added) continue;
        ++group.holders;
        group.replicas_agree &= at->second == pages;
      }
      for (int s = 0; s < kSequences; ++s) {
        for (int64_t i = plan.q_heads.begin * kHeadDim; i < plan.q_heads.end * kHeadDim; ++i) {
          const size_t at = static_cast<size_t>(s * heads.q * kHeadDim + i);
          group.attended[at] = out[at];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return group;
}

// gathers: that a rank makes of a layer's decode rows where KV heads have replicas.
void ExpectSamePagesOnTwoToEightRanks(Heads heads, const char* spec, DType dtype, int gathers) {
  const GroupPages one = Choose(heads, 1, spec, dtype);
  ASSERT_EQ(one.pages.size(), static_cast<size_t>(heads.kv * kSequences));
  EXPECT_EQ(one.gathers_of_a_rank, 0);
  for (int tp = 2; tp <= 8; ++tp) {
    SCOPED_TRACE(std::to_string(heads.q) + "/" + std::to_string(heads.kv) + " heads, " + std::to_string(tp) +
                 " ranks, " + spec);
    const GroupPages many = Choose(heads, tp, spec, dtype);
    EXPECT_EQ(many.pages, one.pages);
    EXPECT_TRUE(many.replicas_agree);
    EXPECT_EQ(many.holders, tp > heads.kv ? (std::min(tp, heads.q) - heads.kv) * kSequences : 0);
    // Selection adds no collective but where a query group is split over replicas.
    EXPECT_EQ(many.gathers_of_a_rank, tp > heads.kv ? gathers : 0);
    EXPECT_LE(RelativeError(many.attended, one.attended), 1e-6);
  }
}

TEST(AttentionOfRanks, ChoosesTheSamePagesGivenTheSameQueriesAndKeys) {
  for (const Heads heads :
       {Heads{9, 3}, Heads{8, 2}, Heads{8, 1}, Heads{8, 8}, Heads{12, 4}, Heads{4, 2}, Heads{4, 1}}) {
    for (const auto& [spec, dtype] : std::vector<std::pair<const char*, DType>>{
             {"quest:token_budget=40:dense_layers=0", DType::kF32},
             {"quest:token_budget=40:dense_layers=0", DType::kBF16},
             {"quest:token_budget=64:dense_layers=0:group_reduce=sum", DType::kF32},
             {"quest:token_budget=64:dense_layers=0:group_reduce=sum", DType::kBF16},
             {"hierarchical:token_budget=16:dense_layers=0:keep=0.3", DType::kBF16},
             {"hybrid:token_budget=40:dense_layers=0", DType::kF32},
             {"sparq:token_budget=40:dense_layers=0:channels=8", DType::kBF16},
             {"top-p:token_budget=40:dense_layers=0:loose=0.5:p=0.9", DType::kF32}}) {
      ExpectSamePagesOnTwoToEightRanks(heads, spec, dtype, 1);
    }
  }
}

// Of attention mass the sums over a group's ranks round in another order than those of one rank, so these pages are the
// same unless two masses are nearer than that.
TEST(AttentionOfRanks, ChoosesTheSamePagesByTheAttentionOfTheWholeGroup) {
  for (const Heads heads : {Heads{9, 3}, Heads{8, 2}, Heads{4, 2}, Heads{4, 1}, Heads{2, 2}, Heads{1, 1}}) {
    for (const auto& [spec, gathers] : std::vector<std::pair<const char*, int>>{
             {"h2o:token_budget=40:dense_layers=0", 1},
             {"tova:token_budget=40:dense_layers=0", 1},
             {"swa:token_budget=40:dense_layers=0:rows=9", 1},
             {"streaming:token_budget=40:dense_layers=0", 0},  // by positions alone
             {"top-p:selector=h2o:token_budget=40:dense_layers=0:loose=0.5:p=0.9", 2}}) {
      ExpectSamePagesOnTwoToEightRanks(heads, spec, DType::kF32, gathers);
    }
  }
}

}  // namespace
}  // namespace quire
