// An engine on several ranks, as threads of the test: rank 0 is the test's own thread.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "core/engine/group.h"
#include "parallel/threads_communicator.h"
#include "tests/core/engine/engine_fixture.h"

namespace quire {

// tests/data/gqa-dummy: grouped-query attention with an odd vocabulary, uneven feed-forward columns and 8 query heads
// on 2 KV heads, so that 3 ranks share one KV head unevenly and 8 ranks have one query head each. Random weights.
inline constexpr int kGqaVocab = 701;
inline EngineOptions GqaOptions(std::vector<AttentionSpec> attention) {
  EngineOptions options;
  options.model = DataPath("gqa-dummy");
  options.load_format = "dummy";
  options.load_tokenizer = false;
  options.threads = 1;
  options.dtype = "float32";
  options.max_num_seqs = 4;
  options.kv_cache_bytes = 8 << 20;
  options.page_size = 4;
  options.attention = std::move(attention);
  return options;
}

// A folder with gqa-dummy's config, some numbers replaced.
class ConfigFolder {
 public:
  ConfigFolder(const std::string& name, std::vector<std::pair<std::string, std::string>> changes)
      : path_(std::filesystem::path(::testing::TempDir()) / name) {
    std::filesystem::create_directories(path_);
    std::string config = ReadAll(DataPath("gqa-dummy/config.json"));
    for (const auto& [from, to] : changes) {
      const size_t at = config.find(from);
      EXPECT_NE(at, std::string::npos) << from;
      config.replace(at, from.size(), to);
    }
    std::ofstream(path_ / "config.json") << config;
  }
  ~ConfigFolder() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// Token ids without a pattern.
inline std::vector<int32_t> Ids(int count, uint32_t seed, int vocab = kGqaVocab) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    ids.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(vocab)));
  }
  return ids;
}

// Tokens, log-probabilities bit for bit, and pages.
inline void ExpectSame(const Output& got, const Output& want) {
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_EQ(got.last.attention.pages_read, want.last.attention.pages_read);
  ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
  for (size_t i = 0; i < got.logprobs.size(); ++i) {
    ASSERT_EQ(got.logprobs[i].chosen.logprob, want.logprobs[i].chosen.logprob) << "token " << i;
  }
}

// Three drawn sequences of one prompt, forked from its cache, against the same with a prefill each.
inline void ExpectForksAsAlone(EngineOptions options, GenerationRequest request) {
  request.sampling.temperature = 1;
  request.sampling.seed = 11;
  request.sampling.n = 3;
  request.request_id = "n";
  std::vector<Output> forked, alone;
  for (const int slots : {4, 1}) {  // with one slot each sequence has its own prefill
    options.max_num_seqs = slots;
    options.max_num_batched_tokens = slots == 4 ? 512 : 7;
    auto engine = MakeEngine(options);
    ASSERT_NE(engine, nullptr);
    Collector collector;
    ASSERT_TRUE(engine->Submit(request, collector.callback()).ok());
    ASSERT_TRUE(engine->Run().ok());
    for (int i = 0; i < 3; ++i) (slots == 4 ? forked : alone).push_back(collector.at("n", i));
    EXPECT_EQ(collector.at("n", 2).last.preemptions, 0);
    EXPECT_EQ(engine->Stats().pages_free, engine->Stats().pages_total);
  }
  for (size_t i = 0; i < 3; ++i) ExpectSame(forked[i], alone[i]);
  EXPECT_NE(forked[0].ids, forked[1].ids);
}

class TestRanks {
 public:
  // observer, which may be empty, gives each follower's.
  explicit TestRanks(int size, const std::function<SelectionObserver*(int rank)>& observer = {})
      : comms_(MakeThreadCommunicators(size, {.timeout = std::chrono::seconds(60)})), marks_(size), ends_(size) {
    for (int rank = 1; rank < size; ++rank) {
      SelectionObserver* sees = observer ? observer(rank) : nullptr;
      threads_.emplace_back([this, rank, sees] {
        ends_[rank] = FollowLeader({.comm = comms_[rank].get(), .progress_mark = &marks_[rank], .observer = sees});
      });
    }
  }
  ~TestRanks() { Release(); }

  int size() const { return static_cast<int>(comms_.size()); }
  Communicator* leader() { return comms_[0].get(); }
  ProgressMark& mark(int rank) { return marks_[rank]; }

  EngineOptions Options(EngineOptions options) {
    options.comm = leader();
    options.progress_mark = &marks_[0];
    return options;
  }

  // Lets the followers go, and gives how each ended. Engines must be gone.
  const std::vector<Status>& Release() {
    if (!threads_.empty()) static_cast<void>(ReleaseFollowers(leader()));
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return ends_;
  }

 private:
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<ProgressMark> marks_;
  std::vector<Status> ends_;
  std::vector<std::thread> threads_;
};

}  // namespace quire
