// The json of every subcommand: field names and what they hold, on the small committed models.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>

#include "tests/launch/program.h"

namespace quire {
namespace {

using Json = nlohmann::json;

std::set<std::string> Keys(const Json& json) {
  std::set<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.insert(key);
  return keys;
}

Json Reference(const std::string& model) {
  std::ifstream in(DataPath(model + "/greedy_reference.json"));
  return Json::parse(in, nullptr, false);
}

TEST(GenerateJson, GreedyIdsOfStories260KAtEveryPageSizeDenseAndQuest) {
  const ScratchFolder scratch;
  const Json reference = Reference("stories260K");
  const std::string ids = scratch.Write("ids.json", reference["prompt_ids"].dump());
  for (const std::string page_size : {"1", "3", "16", "64"}) {
    for (const std::string attention : {"dense", "quest:token_budget=512:dense_layers=0"}) {
      const Json json =
          RunQuireJson({"generate", "--model", DataPath("stories260K"), "--token-ids-file", ids, "--max-tokens", "60",
                        "--page-size", page_size, "--attention", attention, "--dtype", "float32"});
      EXPECT_EQ(json["sequences"][0]["token_ids"], reference["greedy_ids"]) << page_size << " " << attention;
    }
  }
}

TEST(GenerateJson, HasTheDocumentedFields) {
  const Json json = RunQuireJson({"generate", "--model", DataPath("retriever-2m"), "--prompt",
                                  "It was a bright cold day", "--max-tokens", "6", "--n", "2", "--temperature", "1",
                                  "--logprobs", "3", "--ignore-eos", "--attention", "quest:token_budget=128"});
  EXPECT_EQ(Keys(json), (std::set<std::string>{"model", "prompt_tokens", "sequences", "timings", "attention"}));
  EXPECT_EQ(json["model"], DataPath("retriever-2m"));
  EXPECT_EQ(json["prompt_tokens"], 25);  // 24 bytes and BOS
  ASSERT_EQ(json["sequences"].size(), 2u);
  for (const Json& sequence : json["sequences"]) {
    EXPECT_EQ(Keys(sequence), (std::set<std::string>{"token_ids", "text", "finish_reason", "logprobs"}));
    EXPECT_EQ(sequence["token_ids"].size(), 6u);
    EXPECT_EQ(sequence["finish_reason"], "length");
    ASSERT_EQ(sequence["logprobs"].size(), 6u);
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(sequence["logprobs"][i]["id"], sequence["token_ids"][i]);
      EXPECT_LE(sequence["logprobs"][i]["logprob"].get<double>(), 0);
      EXPECT_EQ(sequence["logprobs"][i]["top"].size(), 3u);
    }
  }
  EXPECT_NE(json["sequences"][0]["token_ids"], json["sequences"][1]["token_ids"]);
  EXPECT_EQ(Keys(json["timings"]),
            (std::set<std::string>{"load_s", "prefill_s", "decode_s", "ttft_s", "prefill_tok_s", "decode_tok_s"}));
  for (const auto& [name, value] : json["timings"].items()) EXPECT_GT(value.get<double>(), 0) << name;
  const Json& attention = json["attention"];
  EXPECT_EQ(Keys(attention),
            (std::set<std::string>{"policy", "token_budget", "page_size", "pages_read", "pages_total"}));
  EXPECT_EQ(attention["policy"], "quest");
  EXPECT_EQ(attention["token_budget"], 128);
  // 2 sequences × 5 decode steps × 4 layers × 3 KV heads × 2 pages: all of them, as the budget covers the text.
  EXPECT_EQ(attention["pages_total"], 2 * 5 * 4 * 3 * 2);
  EXPECT_EQ(attention["pages_read"], attention["pages_total"]);
}

TEST(GenerateJson, QuestReadsFewerPagesThanThereAre) {
  const ScratchFolder scratch;
  std::string text;
  while (text.size() < 1500) text += "The grass is green. ";
  const std::string prompt = scratch.Write("prompt.txt", text);
  const Json json =
      RunQuireJson({"generate", "--model", DataPath("retriever-2m"), "--prompt-file", prompt, "--max-tokens", "4",
                    "--ignore-eos", "--attention", "quest", "--token-budget", "64", "--dense-layers", "0"});
  // 3 decode steps × 4 layers × 3 KV heads, 4 pages each of 95.
  EXPECT_EQ(json["attention"]["pages_read"], 3 * 4 * 3 * 4);
  EXPECT_GT(json["attention"]["pages_total"], 20 * json["attention"]["pages_read"].get<int64_t>());
}

TEST(GenerateJson, PagesDoNotDependOnPreemptions) {
  std::vector<std::string> args = {"generate", "--model",          DataPath("stories260K"),
                                   "--prompt", "Once upon a time", "--max-tokens",
                                   "60",       "--ignore-eos",     "--n",
                                   "3",        "--page-size",      "4",
                                   "--dtype",  "float32"};
  const Json roomy = RunQuireJson(args);
  // Room for 20 pages (5 layers · 2 · 4 heads · 8 channels · 4 bytes a token), of which one sequence takes 16.
  args.insert(args.end(), {"--kv-cache-memory-bytes", std::to_string(20 * 4 * 5 * 2 * 4 * 8 * 4)});
  const Json tight = RunQuireJson(args);
  ASSERT_EQ(tight["sequences"].size(), 3u);
  for (const Json& sequence : tight["sequences"]) EXPECT_EQ(sequence["token_ids"].size(), 60u);
  EXPECT_GT(roomy["attention"]["pages_total"].get<int64_t>(), 0);
  EXPECT_EQ(tight["attention"], roomy["attention"]);
}

TEST(GenerateText, TextIsOnStdoutAndFiguresOnStderr) {
  const ProgramResult result = RunQuire(
      {"generate", "--model", DataPath("retriever-2m"), "--prompt", "abc", "--max-tokens", "3", "--ignore-eos"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = RunQuireJson(
      {"generate", "--model", DataPath("retriever-2m"), "--prompt", "abc", "--max-tokens", "3", "--ignore-eos"});
  EXPECT_EQ(result.out, json["sequences"][0]["text"].get<std::string>() + "\n");
  EXPECT_NE(result.err.find("pages read"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("tok/s"), std::string::npos);
}

TEST(GenerateText, APromptFromStdin) {
  const std::vector<std::string> base = {"generate",      "--model", DataPath("retriever-2m"), "--max-tokens", "3",
                                         "--prompt-file", "-"};
  const ProgramResult result = RunQuire(base, {}, "abc");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(RunQuire(base, {}, "").exit_code, 1);
}

TEST(TokenizeJson, BytesOfTheRetriever) {
  const ScratchFolder scratch;
  const std::string file = scratch.Write("text", "aé");
  const std::vector<std::string> command = {"tokenize", "--model", DataPath("retriever-2m"), "--text-file", file};
  const Json json = RunQuireJson(command);
  EXPECT_EQ(Keys(json), std::set<std::string>{"token_ids"});
  EXPECT_EQ(json["token_ids"], Json({256, 97, 195, 169}));
  std::vector<std::string> bare = command;
  bare.push_back("--no-special-tokens");
  EXPECT_EQ(RunQuireJson(bare)["token_ids"], Json({97, 195, 169}));
}

TEST(ScoreJson, LogprobsAgreeWithTheTopFive) {
  const ScratchFolder scratch;
  const Json reference = Reference("stories260K");
  Json all = reference["prompt_ids"];
  for (const Json& id : reference["greedy_ids"]) all.push_back(id);
  const Json json = RunQuireJson({"score", "--model", DataPath("stories260K"), "--token-ids-file",
                                  scratch.Write("ids.json", all.dump()), "--dtype", "float32"});
  EXPECT_EQ(Keys(json), (std::set<std::string>{"token_ids", "logprobs", "top", "sum"}));
  EXPECT_EQ(json["token_ids"], all);
  ASSERT_EQ(json["logprobs"].size(), all.size());
  ASSERT_EQ(json["top"].size(), all.size());
  EXPECT_TRUE(json["logprobs"][0].is_null());
  EXPECT_EQ(json["top"][0].size(), 0u);
  for (size_t i = 1; i < all.size(); ++i) {
    ASSERT_EQ(json["top"][i].size(), 5u);
    // The sequence is greedy, so each of its tokens is the best one where it stands.
    EXPECT_EQ(json["top"][i][0]["id"], all[i]) << i;
    EXPECT_EQ(json["top"][i][0]["logprob"], json["logprobs"][i]);
    for (size_t k = 1; k < 5; ++k) {
      EXPECT_LE(json["top"][i][k]["logprob"].get<double>(), json["top"][i][k - 1]["logprob"].get<double>());
    }
  }
}

TEST(ScoreJson, AListIsItsTextsOneByOne) {
  const ScratchFolder scratch;
  // More texts than are in the engine at a time, of strings and ids, one of a single token.
  Json list = {"Once upon a time", Json::array({1})};
  for (int i = 0; i < 9; ++i) list.push_back(Json::array({1, 403 + i, 407, 261 + i}));
  const std::vector<std::string> flags = {"score",           "--model", DataPath("stories260K"), "--dtype", "float32",
                                          "--batch-invariant", "--top",   "2"};
  const auto with = [&](const std::string& flag, const std::string& file) {
    std::vector<std::string> arguments = flags;
    arguments.insert(arguments.end(), {flag, file});
    return RunQuireJson(arguments);
  };
  const Json results = with("--list-file", scratch.Write("list.json", list.dump()))["results"];
  ASSERT_EQ(results.size(), list.size());
  EXPECT_EQ(results[1]["token_ids"], list[1]);
  EXPECT_TRUE(results[1]["logprobs"][0].is_null());
  EXPECT_EQ(results[1]["sum"], 0);
  for (const size_t i : {0, 5, 10}) {
    const std::string ids = scratch.Write("ids.json", results[i]["token_ids"].dump());
    EXPECT_EQ(results[i], with("--token-ids-file", ids)) << i;
    EXPECT_LT(results[i]["sum"].get<double>(), 0);
  }
  EXPECT_EQ(results[10]["token_ids"], list[10]);
  EXPECT_EQ(results[0]["token_ids"].size(), 5u);  // BOS, and what "Once upon a time" is

  const ProgramResult text = RunQuire({"score", "--model", DataPath("stories260K"), "--list-file",
                                       scratch.Write("two.json", R"([[1, 403], "A"])")});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.out.find("text  tokens"), 0u) << text.out;
  EXPECT_EQ(std::count(text.out.begin(), text.out.end(), '\n'), 3);
}

TEST(EvalJson, PerplexityOfDenseAndQuest) {
  const ScratchFolder scratch;
  std::string text;
  std::ifstream in(QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt");
  std::getline(in, text, '\0');
  const std::string file = scratch.Write("text", text.substr(0, 1200));
  const Json json = RunQuireJson({"eval", "perplexity", "--model", DataPath("retriever-2m"), "--text-file", file,
                                  "--context", "256", "--max-tokens", "510", "--attention",
                                  "dense,quest:dense_layers=0", "--token-budget", "64,256", "--dtype", "float32"});
  const Json& results = json["results"];
  ASSERT_EQ(results.size(), 3u);
  for (const Json& row : results) {
    // Two windows of 256, each opened by BOS: the second half of each is scored.
    EXPECT_EQ(row["tokens"], 256);
    EXPECT_EQ(row["context"], 256);
    EXPECT_NEAR(row["perplexity"].get<double>(), std::exp(row["nll"].get<double>()), 1e-6);
  }
  EXPECT_EQ(results[0]["attention"], "dense");
  EXPECT_TRUE(results[0]["token_budget"].is_null());
  EXPECT_EQ(results[1]["token_budget"], 64);
  EXPECT_EQ(results[2]["token_budget"], 256);
  EXPECT_EQ(results[0]["pages_read"], results[0]["pages_total"]);
  EXPECT_LT(results[1]["pages_read"].get<int64_t>(), results[1]["pages_total"].get<int64_t>());
  // A budget that covers the window is dense to the bit; a small one isn't.
  EXPECT_EQ(results[2]["nll"], results[0]["nll"]);
  EXPECT_NE(results[1]["nll"], results[0]["nll"]);
  EXPECT_LT(results[1]["nll"].get<double>(), results[0]["nll"].get<double>() + 1);
}

TEST(EvalJson, DecodedPerplexityIsThatOfScore) {
  // The same tokens by another way: score prefills the whole window.
  const ScratchFolder scratch;
  const std::string text = "It is a truth universally acknowledged, that a single man in possession of a good fortune";
  const std::string file = scratch.Write("text", text);
  const Json ids = RunQuireJson({"tokenize", "--model", DataPath("retriever-2m"), "--text-file", file})["token_ids"];
  const Json score = RunQuireJson({"score", "--model", DataPath("retriever-2m"), "--dtype", "float32",
                                   "--token-ids-file", scratch.Write("ids.json", ids.dump())});
  const int context = 64;
  double nll = 0;
  for (int i = context / 2; i < context; ++i) nll -= score["logprobs"][i].get<double>();
  const Json eval = RunQuireJson({"eval", "perplexity", "--model", DataPath("retriever-2m"), "--dtype", "float32",
                                  "--text-file", file, "--context", std::to_string(context), "--max-tokens", "63"});
  EXPECT_EQ(eval["results"][0]["tokens"], context / 2);
  EXPECT_NEAR(eval["results"][0]["nll"].get<double>(), nll / (context / 2), 1e-4);
}

TEST(BenchJson, DecodeCrossesItsLists) {
  const Json json = RunQuireJson({"bench",          "decode",
                                  "--model",        DataPath("stories260K"),
                                  "--load-format",  "dummy",
                                  "--depth",        "0,200",
                                  "--attention",    "dense,quest:dense_layers=0",
                                  "--token-budget", "64",
                                  "--batch",        "1,2",
                                  "--steps",        "2",
                                  "--repeats",      "1",
                                  "--threads",      "2",
                                  "--machine-seconds", "0.05"});
  EXPECT_EQ(Keys(json), (std::set<std::string>{"results", "machine"}));
  EXPECT_GT(json["machine"]["read_gb_s"].get<double>(), 0);
  EXPECT_GT(json["machine"]["matmul_gflop_s"].get<double>(), 0);
  ASSERT_EQ(json["results"].size(), 8u);
  for (const Json& row : json["results"]) {
    EXPECT_EQ(row["name"], "decode");
    for (const char* field : {"seconds", "tok_s", "gb_s", "share_of_copy_bandwidth"})
      EXPECT_GT(row[field].get<double>(), 0) << field;
    EXPECT_GT(row["bytes"].get<int64_t>(), 0);
    EXPECT_EQ(row["steps"], 2);
  }
  const Json& dense = json["results"][4];
  const Json& quest = json["results"][5];
  EXPECT_EQ(dense["depth"], 200);
  EXPECT_EQ(quest["attention"], "quest");
  EXPECT_LT(quest["pages_read"].get<int64_t>(), dense["pages_read"].get<int64_t>());
}

TEST(BenchJson, PrefillAndKernels) {
  const Json prefill =
      RunQuireJson({"bench", "prefill", "--model", DataPath("stories260K"), "--lengths", "16,100", "--repeats", "1",
                    "--machine-seconds", "0.05"});
  ASSERT_EQ(prefill["results"].size(), 2u);
  EXPECT_EQ(prefill["results"][1]["length"], 100);
  EXPECT_GT(prefill["results"][1]["share_of_matmul_rate"].get<double>(), 0);
  const Json kernels = RunQuireJson({"bench", "kernels", "--depth", "512", "--prefill", "64", "--rows", "1,8",
                                     "--hidden", "64", "--ffn", "128", "--repeats", "1", "--token-budget", "64",
                                     "--machine-seconds", "0.05"});
  std::set<std::string> names;
  for (const Json& row : kernels["results"]) names.insert(row["name"]);
  EXPECT_EQ(names, (std::set<std::string>{"attend", "select", "step", "prefill_attention", "append", "linear_gate_up",
                                          "linear_down"}));
}

TEST(BenchJson, KernelsHasAStepOfEveryPolicyAtEveryDepthAndBatch) {
  const std::vector<std::string> names = {"dense", "quest", "hierarchical", "hybrid", "sparq", "swa",
                                          "streaming", "h2o", "tova", "top-p", "auto"};
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ",") + name;
  const Json json = RunQuireJson({"bench", "kernels", "--depth", "320,640", "--batch", "1,3", "--prefill", "16", "--rows",
                                  "1", "--hidden", "64", "--ffn", "64", "--repeats", "1", "--q-heads", "4", "--kv-heads",
                                  "2", "--head-dim", "32", "--machine-seconds", "0.05", "--attention", list,
                                  "--token-budget", "64", "--dense-layers", "0"});
  std::map<std::string, int> steps;
  for (const Json& row : json["results"]) {
    if (row["name"] != "step") continue;
    SCOPED_TRACE(row.dump());
    const std::string name = row["attention"];
    ++steps[name];
    const double depth = row["depth"], lists = 2 * row["batch"].get<double>();
    EXPECT_GT(row["seconds"].get<double>(), 0);
    EXPECT_GT(row["speedup"].get<double>(), 0);
    const double parts = row["selection_seconds"].get<double>() + row["attention_seconds"].get<double>() +
                         row["remembering_seconds"].get<double>();
    EXPECT_NEAR(row["seconds"].get<double>(), parts, 1e-9);
    const bool remembers = name == "swa" || name == "h2o" || name == "tova";
    EXPECT_EQ(row["remembering_seconds"].get<double>() > 0, remembers);
    EXPECT_EQ(row["formula_bytes"].is_null(), name == "top-p");
    // 64 tokens or all of them, K and V of 32 channels of two bytes, and what README says of the selection.
    const std::map<std::string, double> reads = {{"dense", 0},
                                                 {"quest", depth / 16 * 128},
                                                 {"auto", depth / 16 * 128},
                                                 {"hybrid", depth / 16 * 16},
                                                 {"sparq", depth * 64},
                                                 {"swa", depth / 16 * 16},
                                                 {"h2o", depth / 16 * 4},
                                                 {"tova", depth / 16 * 4},
                                                 {"streaming", 0}};
    if (const auto selection = reads.find(name); selection != reads.end()) {
      const double tokens = name == "dense" || (name == "auto" && row["selection_seconds"] == 0.0) ? depth : 64;
      const double selects = tokens == depth ? 0 : selection->second;
      EXPECT_EQ(row["formula_bytes"].get<double>(), lists * (selects + tokens * 128));
    }
    // Counted: at least the formula's, in whole lines and pages.
    if (name != "top-p") {
      EXPECT_GE(row["bytes"].get<double>(), row["formula_bytes"].get<double>());
    }
  }
  for (const std::string& name : names) EXPECT_EQ(steps[name], 4) << name;
}

// Of what they keep, 64 tokens, whatever the depth; h2o and tova read K a second time, and a position and a weight a slot.
TEST(BenchJson, EvictingPoliciesAreMeasuredToo) {
  const Json kernels = RunQuireJson({"bench", "kernels", "--depth", "64,640", "--batch", "2", "--prefill", "16", "--rows", "1",
                                     "--hidden", "64", "--ffn", "64", "--repeats", "1", "--q-heads", "4", "--kv-heads", "2",
                                     "--head-dim", "32", "--machine-seconds", "0.05", "--attention", "dense,streaming,h2o,tova",
                                     "--token-budget", "64", "--evict"});
  int steps = 0;
  for (const Json& row : kernels["results"]) {
    if (row["name"] != "step" || row["attention"] == "dense") continue;
    SCOPED_TRACE(row.dump());
    ++steps;
    const bool weighs = row["attention"] != "streaming";
    const double lists = 4, slots = lists * 64;
    EXPECT_EQ(row["formula_bytes"].get<double>(), slots * 2 * 64 + (weighs ? slots * (64 + 8) : 0));
    EXPECT_EQ(row["bytes"], row["formula_bytes"]);
    EXPECT_EQ(row["pages_read"].get<double>(), lists * 4);
    EXPECT_EQ(row["pages_total"].get<double>(), lists * row["depth"].get<double>() / 16);
    EXPECT_GT(row["attention_seconds"].get<double>(), 0);
    EXPECT_EQ(row["remembering_seconds"].get<double>() > 0, weighs);
    if (weighs || row["depth"] == 64) {
      EXPECT_EQ(row["selection_seconds"].get<double>() > 0, row["depth"] == 640);
    }
  }
  EXPECT_EQ(steps, 6);

  const Json decode = RunQuireJson({"bench", "decode", "--model", DataPath("stories260K"), "--load-format", "dummy", "--depth",
                                    "300", "--attention", "streaming,h2o,tova", "--token-budget", "64", "--evict",
                                    "--kv-cache-dtype", "float32", "--batch", "2", "--steps", "2", "--repeats", "1",
                                    "--machine-seconds", "0.05"});
  ASSERT_EQ(decode["results"].size(), 3u);
  for (const Json& row : decode["results"]) {
    SCOPED_TRACE(row.dump());
    EXPECT_EQ(row["depth"], 300);
    EXPECT_EQ(row["pages_read"], 2 * 20 * 4);  // sequences, layers and KV heads, pages
    EXPECT_EQ(row["pages_total"], 2 * 20 * 19);
    EXPECT_EQ(row["bytes"].get<int64_t>() - decode["results"][0]["bytes"].get<int64_t>(),
              row["attention"] == "streaming" ? 0 : 2 * 20 * 64 * (8 * 4 + 8));
  }
}

TEST(BenchJson, CrossoverFitsTheCostModelToWhatItMeasures) {
  const Json json = RunQuireJson({"bench", "crossover", "--depth", "256,512,1024", "--token-budget", "64,512",
                                  "--q-heads", "4", "--kv-heads", "2", "--head-dim", "32", "--repeats", "3",
                                  "--machine-seconds", "0.05"});
  EXPECT_EQ(json["results"].size(), 4u);  // budgets below the depth
  for (const Json& row : json["results"]) {
    EXPECT_GT(row["depth"].get<int64_t>(), row["token_budget"].get<int64_t>());
    EXPECT_NEAR(row["speedup"].get<double>(), row["dense_us"].get<double>() / row["quest_us"].get<double>(), 1e-6);
  }
  ASSERT_EQ(json["crossovers"].size(), 2u);
  EXPECT_GT(json["crossovers"][0]["committed"].get<int64_t>(), 64);
  for (const char* cost : {"dense_byte", "sparse_byte", "select_byte", "fixed"}) {
    EXPECT_GE(json["costs"]["fitted"][cost].get<double>(), 0) << cost;
    EXPECT_GT(json["costs"]["committed"][cost].get<double>(), 0) << cost;
  }
}

TEST(InfoJson, PredictionAndRunAgree) {
  const auto expect = [](const Json& json, const std::vector<const char*>& parts) {
    EXPECT_EQ(json["config"]["kv_heads"], 3);
    EXPECT_EQ(json["shards"].size(), 1u);
    for (const char* part : parts) {
      const double predicted = json["memory"]["predicted"][part].get<double>();
      EXPECT_GT(predicted, 0) << part;
      EXPECT_NEAR(json["memory"]["loaded"][part].get<double>(), predicted, 0.05 * predicted) << part;
    }
  };
  const std::string model = DataPath("retriever-2m");
  expect(RunQuireJson({"info", "--model", model, "--attention", "quest", "--load"}),
         {"weights", "kv_cache", "kv_metadata", "scratch", "total"});
  // What prompts' attention mass takes comes with the first prompt, and nothing has run here.
  expect(RunQuireJson({"info", "--model", model, "--attention", "quest,h2o", "--load"}),
         {"weights", "kv_cache", "kv_metadata", "history"});
}

TEST(InfoJson, PoliciesSayUpToWhichLengthTheyAreDense) {
  const Json json = RunQuireJson({"info", "--model", DataPath("retriever-2m"), "--attention",
                                  "dense,quest,auto,auto:crossover=5000", "--token-budget", "512"});
  const auto dense = [&](size_t i) { return json["attention"][i]["dense_up_to"]; };
  EXPECT_EQ(json["attention"][2]["spec"], "auto:token_budget=512");
  EXPECT_TRUE(dense(0).is_null());
  EXPECT_EQ(dense(1), 512);
  EXPECT_GT(dense(2).get<int64_t>(), 512);
  EXPECT_LT(dense(2).get<int64_t>(), 8192);
  EXPECT_EQ(dense(3), 4999);
}

TEST(InfoJson, ACacheForLayersWithAWindowAndOneForThoseWithoutArePredicted) {
  const auto info = [](const char* length) {
    return RunQuireJson({"info", "--model", DataPath("gemma-dummy"), "--load-format", "dummy", "--max-num-seqs", "1",
                         "--max-num-batched-tokens", "32", "--max-model-len", length, "--load"});
  };
  const Json json = info("500"), half = info("250");
  EXPECT_EQ(json["config"]["window"], Json({37, 0, 37, 0}));
  EXPECT_EQ(json["config"]["attention_softcap"], 2.0);
  for (const char* part : {"weights", "kv_cache"}) {
    const double predicted = json["memory"]["predicted"][part].get<double>();
    EXPECT_NEAR(json["memory"]["loaded"][part].get<double>(), predicted, 0.05 * predicted) << part;
  }
  // A page of the two layers without a window has K and V of 2 heads of 28 channels in f32; twice the length takes 16
  // more of them, and none of the layers whose window is 37 tokens.
  const auto cache = [](const Json& j) { return j["memory"]["predicted"]["kv_cache"].get<double>(); };
  const double page = 2 * (2 * 2 * 28 * 16 * 4);
  EXPECT_EQ(cache(json) - cache(half), (32 - 16) * page);
}

TEST(InfoJson, ShardsOfTwoRanksAreUneven) {
  const Json json = RunQuireJson({"info", "--model", DataPath("retriever-2m"), "-tp", "2"});
  ASSERT_EQ(json["shards"].size(), 2u);
  EXPECT_EQ(json["shards"][0]["kv_heads"], Json({0, 2}));
  EXPECT_EQ(json["shards"][1]["q_heads"], Json({4, 6}));
}

}  // namespace
}  // namespace quire
