// The paged cache against a plain map from sequence to its list of tokens, over 10⁵ random calls: append, fork,
// truncate, free, window release, with little memory, so that it runs out often. After every step the sequences it
// touched are compared with the map down to each value and each bound; now and then all are.
// QUIRE_TEST_SEED repeats a run; the seed is printed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <string>

#include "tests/kvstore/test_cache.h"

namespace quire {
namespace {

struct Setting {
  int page_size;
  int window;
  bool metadata;
  DType dtype;
  int32_t pages, groups;  // capacity of each cache group
  int steps;
};

class Driver {
 public:
  Driver(const Setting& setting, uint64_t seed)
      : setting_(setting),
        max_append_(std::min(20 * setting.page_size, 100)),
        rng_(seed),
        cache_(TestCache::Config(setting.page_size, setting.window, setting.metadata, setting.dtype),
               {{setting.pages, setting.groups}, {setting.pages, setting.groups}}, max_append_) {}

  void Drive() {
    for (int step = 0; step < setting_.steps; ++step) {
      const int calls = Draw(1, 3);
      for (int i = 0; i < calls; ++i) {
        ASSERT_NO_FATAL_FAILURE(Call()) << "step " << step;
        ++calls_;
      }
      cache_.books.CheckInvariants();
      cache_.Run();
      for (auto& [seq, model] : models_) model.new_tokens = 0;
      const bool all = step % 1000 == 0;
      for (const auto& [seq, model] : models_) {
        if (!all && !touched_.contains(seq)) continue;
        ASSERT_TRUE(cache_.Holds(seq, model.tokens)) << "step " << step << " sequence " << seq << " after " << last_;
        ASSERT_NO_FATAL_FAILURE(CheckTables(seq, model));
      }
      ASSERT_NO_FATAL_FAILURE(CheckReservations());
      touched_.clear();
    }
    while (!models_.empty()) Free(models_.begin()->first);
    cache_.Run();
    for (int g = 0; g < 2; ++g) {
      EXPECT_EQ(cache_.books.pages(g).free(), setting_.pages);
      EXPECT_EQ(cache_.books.pages(g).reserved(), 0);
      EXPECT_EQ(cache_.books.metadata_groups(g).free(), setting_.metadata ? setting_.groups : 0);
      EXPECT_EQ(cache_.books.metadata_groups(g).reserved(), 0);
    }
    EXPECT_EQ(cache_.books.num_sequences(), 0);
    std::cout << "  page size " << setting_.page_size << ": " << calls_ << " calls";
    for (const auto& [what, count] : counts_) std::cout << ", " << count << " " << what;
    std::cout << "\n";
    for (const char* what : {"append", "append refused", "fork", "truncate", "free", "release"}) {
      EXPECT_GT(counts_[what], setting_.steps / 500) << what << " was hardly tried";
    }
  }

 private:
  struct Model {
    std::vector<uint32_t> tokens;
    int64_t max_tokens = 0;   // reserved
    int64_t released_at = 0;  // longest length at which the window was released
    int new_tokens = 0;       // appended in this step
  };

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }

  SeqId Pick() { return std::next(models_.begin(), Draw(0, static_cast<int>(models_.size()) - 1))->first; }

  int64_t Pages(int64_t tokens) const { return (tokens + setting_.page_size - 1) / setting_.page_size; }

  int64_t DrawMaxTokens() { return Draw(0, 2) > 0 ? 0 : Draw(1, setting_.pages * setting_.page_size / 3); }

  void Note(const char* what, SeqId seq, bool ok) {
    last_ = std::string(what) + (ok ? "" : " refused");
    ++counts_[last_];
    touched_.insert(seq);
  }

  void Call() {
    const int choice = Draw(0, 99);
    if (models_.empty() || (choice < 8 && models_.size() < 8)) return Add();
    const SeqId seq = Pick();
    if (choice < 58) return Append(seq);
    if (choice < 68) return Release(seq);
    if (choice < 76) return Free(seq);
    if (models_[seq].new_tokens > 0) return;  // not in memory yet
    if (choice < 88 && models_.size() < 8) return Fork(seq);
    return Truncate(seq);
  }

  void Add() {
    const int64_t max_tokens = DrawMaxTokens();
    bool fits = true;
    for (int g = 0; g < 2; ++g) {
      fits &= MaxLivePages(cache_.config, g, max_tokens, max_append_) <= cache_.books.pages(g).available();
      fits &= MaxLiveMetadataGroups(cache_.config, g, max_tokens, max_append_) <=
              cache_.books.metadata_groups(g).available();
    }
    const std::vector<int64_t> before = cache_.Snapshot();
    const Result<SeqId> seq = cache_.books.AddSequence(max_tokens);
    ASSERT_EQ(seq.ok(), fits);
    Note("add", seq.ok() ? *seq : -1, seq.ok());
    if (!seq.ok()) {
      ASSERT_EQ(cache_.Snapshot(), before);
      return;
    }
    ASSERT_FALSE(models_.contains(*seq));
    models_[*seq].max_tokens = max_tokens;
  }

  void Append(SeqId seq) {
    Model& model = models_[seq];
    const int64_t length = std::ssize(model.tokens);
    int n = Draw(0, 2) > 0 ? 1 : Draw(0, max_append_);
    n = std::min(n, max_append_ - model.new_tokens);
    const bool promised = model.max_tokens > length;
    if (promised) {  // as an engine does: release first, stay within the promise
      n = static_cast<int>(std::min<int64_t>(n, model.max_tokens - length));
      ASSERT_NO_FATAL_FAILURE(Release(seq));
    }
    bool fits = true;
    for (int g = 0; g < 2; ++g) {
      const PageTable& table = cache_.books.Table(seq, g);
      const PagePool& pages = cache_.books.pages(g);
      const PagePool& groups = cache_.books.metadata_groups(g);
      const int64_t group_tokens = setting_.page_size * kPagesPerGroup;
      int64_t wanted = Pages(length + n) - Pages(length);
      if (n > 0 && length % setting_.page_size != 0) wanted += pages.refs(table.pages.back()) > 1;
      fits &= wanted <= pages.available();
      if (!setting_.metadata) continue;
      wanted = (length + n + group_tokens - 1) / group_tokens - (length + group_tokens - 1) / group_tokens;
      if (n > 0 && length % group_tokens != 0) wanted += groups.refs(table.groups.back()) > 1;
      fits &= wanted <= groups.available();
    }
    const std::vector<int64_t> before = cache_.Snapshot();
    const std::vector<uint32_t> tokens = cache_.NewTokens(n);
    const Status status = cache_.Append(seq, tokens);
    ASSERT_EQ(status.ok(), fits || promised) << status.ToString() << (promised ? ", promised" : "");
    Note("append", seq, status.ok());
    if (!status.ok()) {
      ASSERT_EQ(status.code(), StatusCode::kResourceExhausted);
      ASSERT_EQ(cache_.Snapshot(), before);
      return;
    }
    model.tokens.insert(model.tokens.end(), tokens.begin(), tokens.end());
    model.new_tokens += n;
  }

  void Fork(SeqId seq) {
    const int64_t max_tokens = DrawMaxTokens();
    const std::vector<int64_t> before = cache_.Snapshot();
    const Result<SeqId> child = cache_.books.Fork(seq, max_tokens);
    if (max_tokens == 0 && models_[seq].max_tokens <= std::ssize(models_[seq].tokens)) {
      ASSERT_TRUE(child.ok());
    }
    Note("fork", seq, child.ok());
    if (!child.ok()) {
      ASSERT_EQ(child.status().code(), StatusCode::kResourceExhausted);
      ASSERT_EQ(cache_.Snapshot(), before);
      return;
    }
    ASSERT_FALSE(models_.contains(*child));
    Model copy = models_[seq];
    copy.max_tokens = max_tokens;
    models_[*child] = std::move(copy);
    touched_.insert(*child);
  }

  void Truncate(SeqId seq) {
    Model& model = models_[seq];
    const int64_t length = std::ssize(model.tokens);
    // Often a little (speculative tokens), sometimes anywhere.
    const int64_t to = Draw(0, 1) == 0 ? std::max<int64_t>(0, length - Draw(0, 2 * setting_.page_size))
                                       : Draw(0, static_cast<int>(length));
    const int64_t first_kept = cache_.books.Table(seq, 1).first_live_page * setting_.page_size;
    const bool gone = to < length && to > 0 && first_kept > std::max<int64_t>(0, to - setting_.window);
    const std::vector<int64_t> before = cache_.Snapshot();
    const Status status = cache_.books.Truncate(seq, to);
    Note("truncate", seq, status.ok());
    ASSERT_EQ(status.code() == StatusCode::kFailedPrecondition, gone && setting_.window > 0) << status.ToString();
    if (!status.ok()) {
      ASSERT_TRUE(gone || status.code() == StatusCode::kResourceExhausted);
      ASSERT_EQ(cache_.Snapshot(), before);
      return;
    }
    model.tokens.resize(static_cast<size_t>(to));
    if (to == 0) model.released_at = 0;
  }

  void Free(SeqId seq) {
    cache_.Free(seq);
    models_.erase(seq);
    Note("free", seq, true);
    for (const auto& [other, model] : models_) touched_.insert(other);
  }

  void Release(SeqId seq) {
    Model& model = models_[seq];
    cache_.books.ReleaseOutOfWindow(seq);
    model.released_at = std::max(model.released_at, std::ssize(model.tokens) - model.new_tokens);
    Note("release", seq, true);
  }

  void CheckTables(SeqId seq, const Model& model) {
    for (int g = 0; g < 2; ++g) {
      const int window = cache_.config.groups[static_cast<size_t>(g)].window;
      const PageTable& table = cache_.books.Table(seq, g);
      const int64_t first_live =
          window == 0 ? 0 : std::max<int64_t>(0, model.released_at - window) / setting_.page_size;
      ASSERT_EQ(table.first_live_page, first_live);
      ASSERT_EQ(std::ssize(table.pages), Pages(std::ssize(model.tokens)));
    }
  }

  // For the cache group without a window, from the map alone but for who shares a sequence's last page.
  void CheckReservations() {
    int64_t pages = 0, groups = 0;
    const int64_t group_tokens = setting_.page_size * kPagesPerGroup;
    for (const auto& [seq, model] : models_) {
      const int64_t length = std::ssize(model.tokens);
      if (model.max_tokens <= length) continue;
      const PageTable& table = cache_.books.Table(seq, 0);
      pages += Pages(model.max_tokens) - Pages(length);
      if (length % setting_.page_size != 0) pages += cache_.books.pages(0).refs(table.pages.back()) > 1;
      if (!setting_.metadata) continue;
      groups += (model.max_tokens + group_tokens - 1) / group_tokens - (length + group_tokens - 1) / group_tokens;
      if (length % group_tokens != 0) groups += cache_.books.metadata_groups(0).refs(table.groups.back()) > 1;
    }
    ASSERT_EQ(cache_.books.pages(0).reserved(), pages);
    ASSERT_EQ(cache_.books.metadata_groups(0).reserved(), groups);
  }

  const Setting setting_;
  const int max_append_;
  std::mt19937_64 rng_;
  TestCache cache_;
  std::map<SeqId, Model> models_;
  std::set<SeqId> touched_;
  std::map<std::string, int> counts_;
  std::string last_;
  int64_t calls_ = 0;
};

class CacheModel : public ::testing::TestWithParam<Setting> {};

TEST_P(CacheModel, AgreesWithAPlainMap) {
  const char* given = std::getenv("QUIRE_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE("QUIRE_TEST_SEED=" + std::to_string(seed));
  std::cout << "  QUIRE_TEST_SEED=" << seed << "\n";
  Driver(GetParam(), seed).Drive();
}

INSTANTIATE_TEST_SUITE_P(, CacheModel,
                         ::testing::Values(Setting{1, 7, true, DType::kBF16, 120, 12, 28000},
                                           Setting{3, 11, true, DType::kF32, 100, 12, 23000},
                                           Setting{7, 40, true, DType::kF16, 70, 10, 22000},
                                           Setting{16, 33, true, DType::kBF16, 50, 8, 11000},
                                           Setting{2, 1, true, DType::kBF16, 80, 8, 9000},
                                           Setting{5, 9, false, DType::kBF16, 60, 0, 9000}),
                         [](const ::testing::TestParamInfo<Setting>& info) {
                           return "PageSize" + std::to_string(info.param.page_size) +
                                  (info.param.metadata ? "" : "NoMetadata");
                         });

}  // namespace
}  // namespace quire
