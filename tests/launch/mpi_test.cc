// The program under mpirun: every subcommand prints once and what one rank prints, and a rank that lacks something, or
// fails in the middle, ends all by name. Real processes, more of them than processors.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tests/launch/program.h"
#include "tests/parallel/mpi_job.h"

namespace quire {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;
using testing::DifferOnOneRank;
using testing::MpiJob;
using testing::MpiJobResult;
using testing::RunMpiJob;
using testing::RunMpiJobs;

const std::string kQuire = QUIRE_BINARY_DIR "/bin/quire";

Strings With(Strings arguments, const Strings& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

MpiJob Job(int ranks, const Strings& arguments) {
  return {.ranks = ranks, .command = With({kQuire}, arguments), .seconds = 60};
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

Json JsonOf(const MpiJobResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << result.out;  // two objects would be none
  return json;
}

const Strings kGenerate = {"generate",
                           "--model",
                           DataPath("stories260K"),
                           "--prompt",
                           "Once upon a time, in a land far away, there lived a small bird.",
                           "--dtype",
                           "float32",
                           "--max-tokens",
                           "24",
                           "--attention",
                           "quest:token_budget=16:dense_layers=1:sink_tokens=4:recent_tokens=4",
                           "--page-size",
                           "4"};

TEST(SmolLM2Mpi, GenerateWritesOnTwoAndThreeRanksWhatOneWrites) {
  const std::string model = ModelPath();
  if (model.empty()) GTEST_SKIP() << "SmolLM2 is not in the cache folder; launch/fetch_model.sh fetches it";
  // Some 400 tokens, more than the budget.
  std::ifstream passage(QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt");
  std::string text(1600, ' ');
  ASSERT_TRUE(passage.read(text.data(), static_cast<std::streamsize>(text.size())));
  const ScratchFolder scratch;
  const std::string prompt = scratch.Write("prompt", text);
  for (const std::string attention : {"dense", "quest:token_budget=128"}) {
    const auto job = [&](int ranks) {
      return MpiJob{.ranks = ranks,
                    .command = {kQuire, "generate", "--model", model, "--prompt-file", prompt, "--dtype", "float32",
                                "--max-tokens", "24", "--ignore-eos", "--attention", attention},
                    .seconds = 300};
    };
    const MpiJobResult one = RunMpiJob(job(1));
    EXPECT_EQ(one.exit_code, 0) << one.err;
    EXPECT_GT(one.out.size(), 40u);
    for (const int ranks : {2, 3}) {
      const MpiJobResult many = RunMpiJob(job(ranks));
      EXPECT_EQ(many.exit_code, 0) << many.err;
      EXPECT_EQ(many.out, one.out) << attention << " on " << ranks << " ranks";
    }
  }
}

TEST(MpiProgram, GenerateWritesOnceWhatOneRankWrites) {
  const Json alone = RunQuireJson(kGenerate);
  for (const int ranks : {1, 2, 3, 4}) {
    const Json json = JsonOf(RunMpiJob(Job(ranks, With(kGenerate, {"--format", "json"}))));
    EXPECT_EQ(json["sequences"], alone["sequences"]) << ranks;
    EXPECT_EQ(json["attention"], alone["attention"]) << ranks;
  }
  const MpiJobResult text = RunMpiJob(Job(3, kGenerate));
  EXPECT_EQ(text.out, RunQuire(kGenerate).out);
  EXPECT_EQ(Count(text.err, "prompt tokens at"), 1) << text.err;
}

// Figures that may differ from run to run.
void DropTimes(Json& json) {
  for (const char* key : {"seconds", "load_s", "timings"}) json.erase(key);
  for (Json& row : json["results"]) row.erase("seconds");
}

TEST(MpiProgram, TokenizeScoreAndEvalPrintOnceWhatOneRankPrints) {
  const ScratchFolder scratch;
  const std::string text = scratch.Write(
      "text", "Once upon a time there was a little girl. She liked to play in the park with her red ball every day. ");
  const std::string ids = scratch.Write("ids", "[1, 403, 407, 261, 378, 432, 391, 369]");
  const Strings model = {"--model", DataPath("stories260K"), "--format", "json"};
  const std::vector<Strings> commands = {
      With({"tokenize", "--text-file", text}, model),
      With({"score", "--token-ids-file", ids, "--dtype", "float32", "--top", "0"}, model),
      With({"eval", "perplexity", "--text-file", text, "--context", "16", "--dtype", "float32"}, model),
      {"eval", "passkey", "--model", DataPath("retriever-2m"), "--lengths", "256", "--depths", "2", "--format", "json",
       "--dtype", "float32"}};
  std::vector<MpiJob> jobs;
  for (const Strings& command : commands) jobs.push_back(Job(2, command));
  const auto results = RunMpiJobs(jobs);
  for (size_t i = 0; i < commands.size(); ++i) {
    SCOPED_TRACE(commands[i][0] + " " + commands[i][1]);
    Json many = JsonOf(results[i]), one = Json::parse(RunQuire(commands[i]).out, nullptr, false);
    if (commands[i][0] == "score") {
      ASSERT_EQ(many["logprobs"].size(), 8u);
      for (size_t t = 1; t < 8; ++t) {
        EXPECT_NEAR(many["logprobs"][t].get<double>(), one["logprobs"][t].get<double>(), 1e-4);
      }
      continue;
    }
    if (commands[i][1] == "perplexity") {
      EXPECT_NEAR(many["results"][0]["nll"].get<double>(), one["results"][0]["nll"].get<double>(), 1e-4);
      EXPECT_EQ(many["results"][0]["pages_read"], one["results"][0]["pages_read"]);
      continue;
    }
    DropTimes(many);
    DropTimes(one);
    EXPECT_EQ(many, one);
  }
}

TEST(MpiProgram, BenchAndInfoPrintOnceWithTheGroupsFigures) {
  const Strings dummy = {"--model", DataPath("gqa-dummy"), "--load-format", "dummy", "--format", "json", "--threads",
                         "1"};
  const auto results =
      RunMpiJobs({Job(2, With({"bench", "decode", "--depth", "64", "--steps", "4", "--repeats", "1"}, dummy)),
                  Job(2, With({"info", "--load"}, dummy)), Job(2, {"--help"}), Job(2, {"generate", "--no-such-flag"})});
  const Json decode = JsonOf(results[0]);
  EXPECT_EQ(decode["results"][0]["tensor_parallel_size"], 2);
  EXPECT_GT(decode["results"][0]["collective_seconds"].get<double>(), 0);
  const Json info = JsonOf(results[1]);
  ASSERT_EQ(info["shards"].size(), 2u);
  for (const Json& shard : info["shards"]) EXPECT_EQ(shard["loaded"]["bytes_read"], shard["bytes_read"]);
  EXPECT_EQ(Count(results[2].out, "Each command has its own --help"), 1) << results[2].out;
  EXPECT_EQ(results[3].exit_code, 2);
  EXPECT_EQ(Count(results[3].err, "quire: error:"), 1) << results[3].err;
}

// A rank that lacks something: all end with that rank's reason, at once.
TEST(MpiProgram, WhatOneRankLacksEndsAllWithItsReason) {
  namespace fs = std::filesystem;
  const ScratchFolder scratch;
  const fs::path here = scratch.Path("here"), other = scratch.Path("other"), empty = scratch.Path("empty");
  fs::create_directories(here);
  fs::create_directories(other);
  fs::create_directories(empty);
  fs::copy(DataPath("stories260K"), here / "model", fs::copy_options::recursive);
  fs::copy(DataPath("retriever-2m"), other / "model", fs::copy_options::recursive);
  const Strings command = {"sh",      "-c",           "cd '" + here.string() + "'; exec \"$@\"",
                           "sh",      kQuire,         "generate",
                           "--model", "model",        "--prompt",
                           "Once",    "--max-tokens", "4"};
  const auto on_rank = [&](int rank, const fs::path& folder) {
    // The difference comes after the common cd.
    Strings words(command.begin(), command.begin() + 4);
    const Strings rest = DifferOnOneRank(Strings(command.begin() + 4, command.end()),
                                         {.rank = rank, .before = "cd '" + folder.string() + "'"});
    words.insert(words.end(), rest.begin(), rest.end());
    return words;
  };
  const auto results = RunMpiJobs({{.ranks = 2, .command = command},
                                   {.ranks = 3, .command = on_rank(1, empty)},
                                   {.ranks = 3, .command = on_rank(2, other)},
                                   {.ranks = 3, .command = on_rank(0, empty)},
                                   {.ranks = 2, .command = With(command, {"-tp", "3"})}});
  EXPECT_EQ(results[0].exit_code, 0) << results[0].err;
  const Strings reasons[] = {{},
                             {"rank 1 (host ", "in phase load: there is no model at model"},
                             {"in phase load: another configuration", "rank 2 (host "},
                             {"rank 0 (host ", "in phase load: there is no model at model"},
                             {"--tensor-parallel-size is 3", "mpirun started 2 ranks"}};
  for (size_t i = 1; i < results.size(); ++i) {
    EXPECT_GT(results[i].exit_code, 0);
    EXPECT_EQ(results[i].out, "");
    EXPECT_LT(results[i].seconds, 10);
    EXPECT_EQ(Count(results[i].err, "quire: error:"), 1) << results[i].err;
    for (const std::string& part : reasons[i])
      EXPECT_NE(results[i].err.find(part), std::string::npos) << results[i].err;
    EXPECT_TRUE(results[i].survivors.empty());
  }
}

// The same faults as in group_failure_test, in the real phases of an engine.
TEST(MpiProgram, ARankThatDiesStopsOrHangsEndsTheGroupByName) {
  struct Fault {
    int rank;
    const char *phase, *kind, *says;
  };
  constexpr Fault kFaults[] = {{1, "load", "wedge", " hangs "},       {2, "prefill", "kill", " died "},
                               {1, "decode", "stop", " is stopped "}, {1, "broadcast", "wedge", " hangs "},
                               {0, "decode", "wedge", " hangs "},     {0, "broadcast", "kill", " died "}};
  std::vector<MpiJob> jobs;
  for (const Fault& f : kFaults) {
    MpiJob job = Job(3, {"generate", "--model", DataPath("stories260K"), "--prompt", "Once upon a time", "--max-tokens",
                         "200", "--ignore-eos", "--format", "json"});
    job.environment["QUIRE_FAULT"] = "rank=" + std::to_string(f.rank) + ",phase=" + f.phase + ",kind=" + f.kind;
    jobs.push_back(std::move(job));
  }
  const auto results = RunMpiJobs(jobs);
  for (size_t i = 0; i < results.size(); ++i) {
    const Fault& f = kFaults[i];
    const MpiJobResult& result = results[i];
    SCOPED_TRACE(std::string(f.kind) + " in " + f.phase + " of rank " + std::to_string(f.rank) + "\n" + result.err);
    EXPECT_GT(result.exit_code, 0);
    EXPECT_EQ(result.out, "");
    EXPECT_GE(result.seconds_after_fault, 0);
    EXPECT_LT(result.seconds_after_fault, 10);
    EXPECT_TRUE(result.survivors.empty());
    const size_t line = result.err.find("quire: error: rank " + std::to_string(f.rank) + " (host ");
    ASSERT_NE(line, std::string::npos);
    const std::string sentence = result.err.substr(line, result.err.find('\n', line) - line);
    EXPECT_NE(sentence.find(f.says), std::string::npos) << sentence;
    EXPECT_NE(sentence.find(std::string("in phase ") + f.phase), std::string::npos) << sentence;
  }
}

}  // namespace
}  // namespace quire
