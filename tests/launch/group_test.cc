// The program on several ranks as threads: what it prints is what it prints on one.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/launch/program.h"

namespace quire {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

const Strings kGenerate = {"generate",
                           "--model",
                           DataPath("stories260K"),
                           "--prompt",
                           "Once upon a time, in a land far away, there lived a small bird.",
                           "--max-tokens",
                           "24",
                           "--dtype",
                           "float32",
                           "--attention",
                           "quest:token_budget=16:dense_layers=1:sink_tokens=4:recent_tokens=4",
                           "--page-size",
                           "4",
                           "--logprobs",
                           "2"};

Strings With(Strings arguments, const Strings& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(GroupOfThreads, GenerateWritesWhatOneRankWrites) {
  const Json one = RunQuireJson(kGenerate);
  EXPECT_LT(one["attention"]["pages_read"].get<int>(), one["attention"]["pages_total"].get<int>());
  for (const char* ranks : {"2", "3", "4", "9"}) {  // of nine, one has no heads
    const Json many = RunQuireJson(With(kGenerate, {"-tp", ranks}));
    EXPECT_EQ(many["sequences"][0]["token_ids"], one["sequences"][0]["token_ids"]) << ranks;
    EXPECT_EQ(many["sequences"][0]["text"], one["sequences"][0]["text"]) << ranks;
    EXPECT_EQ(many["attention"], one["attention"]) << ranks;
  }
}

TEST(GroupOfThreads, InfoShowsShardsAndTheBytesThatEachRankReads) {
  const Strings info = {"info", "--model", DataPath("stories260K"), "-tp", "3"};
  const Json planned = RunQuireJson(info);
  const Json loaded = RunQuireJson(With(info, {"--load"}));
  const Json alone = RunQuireJson({"info", "--model", DataPath("stories260K")});
  ASSERT_EQ(planned["shards"].size(), 3u);
  ASSERT_EQ(loaded["shards"].size(), 3u);
  int64_t sum = 0;
  for (size_t rank = 0; rank < 3; ++rank) {
    const Json& shard = planned["shards"][rank];
    const int64_t bytes = shard["bytes_read"].get<int64_t>();
    EXPECT_EQ(loaded["shards"][rank]["loaded"]["bytes_read"].get<int64_t>(), bytes);
    EXPECT_LT(bytes, alone["shards"][0]["bytes_read"].get<int64_t>() * 3 / 5);
    EXPECT_GE(loaded["shards"][rank]["loaded"]["threads"].get<int>(), 1);
    sum += bytes;
  }
  EXPECT_GE(sum, alone["shards"][0]["bytes_read"].get<int64_t>());
  // Without --load it is arithmetic, and the refusal is the plan's.
  const ProgramResult wide = RunQuire({"info", "--model", DataPath("stories260K"), "-tp", "4097"});
  EXPECT_EQ(wide.exit_code, 1);
  EXPECT_NE(wide.err.find("4097 is outside [1, 4096]"), std::string::npos) << wide.err;
  // More ranks than the 8 query heads on 4 KV heads.
  const Json ninth =
      RunQuireJson({"info", "--model", DataPath("stories260K"), "-tp", "9", "--attention", "h2o"})["shards"][8];
  EXPECT_EQ(ninth["q_heads"], Json::array({8, 8}));
  EXPECT_EQ(ninth["kv_heads"], Json::array({4, 4}));
  EXPECT_EQ(ninth["replicas"], 0);
  EXPECT_GT(ninth["bytes_read"].get<int64_t>(), 0);
  for (const char* part : {"kv_cache", "kv_metadata", "history"}) EXPECT_EQ(ninth["memory"][part], 0) << part;
  EXPECT_GT(ninth["memory"]["weights"].get<int64_t>(), 0);
}

TEST(GroupOfThreads, BenchDecodeShowsWhatRanksCost) {
  const Json json = RunQuireJson({"bench", "decode", "--model", DataPath("gqa-dummy"), "--load-format", "dummy",
                                  "--depth", "64", "--steps", "4", "--repeats", "1", "-tp", "2", "--threads", "2",
                                  "--machine-seconds", "0.05"});
  const Json& row = json["results"][0];
  EXPECT_EQ(row["tensor_parallel_size"], 2);
  EXPECT_EQ(row["threads"], 2);  // one a rank
  for (const char* field : {"collective_seconds", "broadcast_seconds"}) EXPECT_GT(row[field].get<double>(), 0) << field;
  for (const char* field : {"collective_share", "broadcast_share"}) {
    EXPECT_GT(row[field].get<double>(), 0) << field;
    EXPECT_LT(row[field].get<double>(), 1) << field;
  }
}

TEST(GroupOfThreads, WhatCannotBeOpenedIsSaidOnce) {
  const ProgramResult result = RunQuire({"generate", "--model", "/nothing/here", "--prompt", "x", "-tp", "3"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "quire: error: there is no model at /nothing/here (NOT_FOUND)\n");
}

}  // namespace
}  // namespace quire
