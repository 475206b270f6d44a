// TestCache: books and memory as an engine would drive them, with tokens whose K and V are a function of a token
// number, so that a plain vector of token numbers says all that a sequence's pages and metadata must contain.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/base/context.h"
#include "kvstore/kv_books.h"
#include "kvstore/page_storage.h"

namespace quire {

// K (which 0) or V (which 1) of a token; before rounding to the cache's dtype.
float TokenValue(uint32_t token, int which, int layer, int head, int channel);

struct TestCache {
  // Two cache groups: {0, 2} without a window, {1} with one.
  static CacheConfig Config(int page_size, int window, bool metadata = true, DType dtype = DType::kBF16);

  TestCache(CacheConfig config, std::vector<GroupCapacity> capacity, int max_append, int threads = 1);

  // Books a sequence's new tokens; Run() writes them.
  Status Append(SeqId seq, const std::vector<uint32_t>& tokens);
  // `count` tokens that nobody has had yet, as Append takes them.
  std::vector<uint32_t> NewTokens(int count);
  void Free(SeqId seq);
  // Ends the step: executes the books' ops, appends the rows, spoils what has become free.
  void Run();

  // Everything that the memory holds of a sequence against its tokens: K, V, metadata per page and per group.
  ::testing::AssertionResult Holds(SeqId seq, const std::vector<uint32_t>& tokens);

  // Tables, counts, references and pending ops of all sequences, to see that nothing has changed.
  std::vector<int64_t> Snapshot() const;

  CacheConfig config;
  std::unique_ptr<ThreadPool> pool;
  Context ctx;
  KvBooks books;
  PageStorage storage;

 private:
  void Spoil();

  uint32_t next_token_ = 1;
  std::map<SeqId, std::vector<uint32_t>> appended_;           // this step
  std::vector<std::vector<int32_t>> page_refs_, group_refs_;  // [cache group][id] at the last Run
};

}  // namespace quire
