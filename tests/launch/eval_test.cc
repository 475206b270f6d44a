// quire eval recall, agreement and tasks on the committed retriever: what they must find, and how answers are scored.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "launch/task_metrics.h"
#include "tests/launch/program.h"

namespace quire {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

Strings With(Strings command, const Strings& more) {
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

TEST(EvalJson, RecallOfPoliciesBesideRandomAndRecentPages) {
  const ScratchFolder scratch;
  std::string text;
  std::ifstream in(QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt");
  std::getline(in, text, '\0');
  const std::string file = scratch.Write("text", text.substr(0, 800));
  const std::vector<std::string> command = {"eval", "recall", "--model", DataPath("retriever-2m"), "--text-file", file,
                                            "--context", "512", "--max-tokens", "400", "--dtype", "float32"};
  std::vector<std::string> sparse = command;
  sparse.insert(sparse.end(), {"--attention", "quest,sparq", "--token-budget", "64,128", "--dense-layers", "1"});
  const Json json = RunQuireJson(sparse);
  const Json& results = json["results"];
  ASSERT_EQ(results.size(), 4u);
  for (const Json& row : results) {
    // 145 of the second half's tokens, one BOS among the first; the first of them only enters the cache.
    EXPECT_EQ(row["tokens"], 145);
    EXPECT_EQ(row["selections"], row["tokens"].get<int>() * 3 * 3);  // three layers of three KV heads
    ASSERT_EQ(row["by_layer"].size(), 3u);
    double sum = 0;
    for (int layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(row["by_layer"][static_cast<size_t>(layer)]["layer"], layer + 1);
      ASSERT_EQ(row["by_layer"][static_cast<size_t>(layer)]["recall"].size(), 3u);
      for (const Json& head : row["by_layer"][static_cast<size_t>(layer)]["recall"]) sum += head.get<double>();
    }
    EXPECT_NEAR(row["recall"].get<double>(), sum / 9, 1e-9);
    EXPECT_GT(row["recall"].get<double>(), row["random"].get<double>());
    EXPECT_LE(row["recall"].get<double>(), 1 + 1e-5);
    EXPECT_LT(row["pages_read"].get<int64_t>(), row["pages_total"].get<int64_t>());
  }
  EXPECT_GT(results[1]["recall"].get<double>(), results[0]["recall"].get<double>());  // twice the budget
  EXPECT_LT(results[1]["missing_mass"].get<double>(), results[0]["missing_mass"].get<double>());
  EXPECT_GE(results[0]["missing_mass_bound"].get<double>(), results[0]["missing_mass"].get<double>());

  // Beside them, what leaves nothing to choose.
  std::vector<std::string> mixed = command;
  mixed.insert(mixed.end(), {"--attention", "dense,quest,tova:evict=true", "--token-budget", "128,400", "--tokens", "20"});
  const Json with_nulls = RunQuireJson(mixed);
  ASSERT_EQ(with_nulls["results"].size(), 5u);
  int nulls = 0;
  for (const Json& row : with_nulls["results"]) {
    if (row["attention"] == "quest" && row["token_budget"] == 128) {
      EXPECT_GT(row["recall"].get<double>(), 0.1);
      continue;
    }
    ++nulls;
    EXPECT_TRUE(row["recall"].is_null()) << row.dump();
    EXPECT_FALSE(row["reason"].get<std::string>().empty());
  }
  EXPECT_EQ(nulls, 4);
  EXPECT_EQ(RunQuire({"eval", "report", "--json", scratch.Write("json", with_nulls.dump()), "--output", "-"}).exit_code, 0);

  std::vector<std::string> dense = command;
  dense.insert(dense.end(), {"--attention", "dense"});
  const ProgramResult refused = RunQuire(dense);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("selects nothing"), std::string::npos) << refused.err;
}

// Policies behind one prompt, whether they share its prefill or not, and only the first --tokens of each window's half.
TEST(EvalJson, PoliciesThatShareAPromptScoreAsTheyDoAlone) {
  const ScratchFolder scratch;
  std::string text;
  std::ifstream in(QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt");
  std::getline(in, text, '\0');
  const Strings command = {"eval",      "perplexity", "--model",   DataPath("retriever-2m"), "--text-file",
                           scratch.Write("text", text.substr(0, 600)), "--context", "256", "--tokens", "20",
                           "--dtype",   "float32",    "--batch-invariant"};
  const Strings policies = {"dense", "quest:dense_layers=0:token_budget=48", "quest:dense_layers=0:token_budget=64",
                            "swa:dense_layers=0:token_budget=48", "swa:dense_layers=0:token_budget=64",
                            "h2o:dense_layers=0:token_budget=48:evict=true"};
  std::string all;
  for (const std::string& policy : policies) all += (all.empty() ? "" : ",") + policy;
  const Json together = RunQuireJson(With(command, {"--attention", all}))["results"];
  ASSERT_EQ(together.size(), policies.size());
  for (size_t i = 0; i < policies.size(); ++i) {
    const Json alone = RunQuireJson(With(command, {"--attention", policies[i]}))["results"][0];
    EXPECT_EQ(alone["tokens"], 2 * 20);
    for (const char* field : {"spec", "tokens", "nll", "pages_read", "pages_total", "bytes_read", "bytes_total"}) {
      EXPECT_EQ(together[i][field], alone[field]) << policies[i] << " " << field;
    }
  }
  EXPECT_NE(together[1]["nll"], together[2]["nll"]);
  EXPECT_NE(together[3]["nll"], together[4]["nll"]);
}

TEST(EvalJson, AgreementWithWhatDenseGenerates) {
  const ScratchFolder scratch;
  std::string text;
  std::ifstream in(QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt");
  std::getline(in, text, '\0');
  const Json json = RunQuireJson({"eval", "agreement", "--model", DataPath("retriever-2m"), "--text-file",
                                  scratch.Write("text", text.substr(0, 1200)), "--context", "512", "--tokens", "24",
                                  "--attention", "dense,quest:dense_layers=0", "--token-budget", "48,1024", "--dtype",
                                  "float32"});
  const Json& results = json["results"];
  ASSERT_EQ(results.size(), 3u);
  for (const Json& row : results) {
    EXPECT_EQ(row["prompts"], 2);  // a third window has less than half
    EXPECT_EQ(row["prompt_tokens"], 255);
    EXPECT_EQ(row["tokens"], 2 * 23);
    EXPECT_NEAR(row["agreement"].get<double>(), row["agreed"].get<double>() / 46, 1e-12);
    EXPECT_LE(row["before_first_difference"].get<double>(), row["agreed"].get<double>() / 2);
  }
  // Dense agrees with itself, and so does a budget that covers the whole.
  for (const size_t whole : {0, 2}) {
    EXPECT_EQ(results[whole]["agreed"], 46);
    EXPECT_EQ(results[whole]["before_first_difference"], 23);
  }
  EXPECT_LT(results[1]["pages_read"].get<int64_t>(), results[1]["pages_total"].get<int64_t>());
  EXPECT_LT(results[1]["agreed"], 46);  // three pages of sixteen are not enough
}

// A pass key as a LongBench task: the question is decoded with the policy, and so needs the page of the key.
TEST(EvalJson, TasksInLongBenchsFormat) {
  const ScratchFolder scratch;
  std::string filler;
  while (filler.size() < 900) filler += "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
  std::ostringstream lines;
  for (const std::string key : {"48213", "90717"}) {
    const Json task = {{"context", "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
                                   "it. I will quiz you about the important information there.\n" + filler +
                                       "\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n" + filler},
                       {"input", "What is the pass key? The pass key is "},
                       {"answers", {key, "the " + key}},
                       {"all_classes", nullptr},
                       {"dataset", key == "48213" ? "first" : "second"},
                       {"_id", key}};
    lines << task.dump() << "\n\n";
  }
  const std::string file = scratch.Write("tasks.jsonl", lines.str()), predictions = scratch.Write("predictions", "");
  const Strings command = {"eval", "tasks", "--model", DataPath("retriever-2m"), "--dtype", "float32", "--jsonl", file,
                           "--prompt", "{context}\n{input}", "--tokens", "5"};
  const Json json = RunQuireJson(With(command, {"--attention", "dense,quest:dense_layers=0", "--token-budget", "128",
                                                "--predictions", predictions}));
  ASSERT_EQ(json["results"].size(), 2u);
  for (const Json& row : json["results"]) {
    EXPECT_EQ(row["tasks"], 2);
    EXPECT_EQ(row["shortened"], 0);
    for (const char* score : {"f1", "rouge_l", "exact_match"}) EXPECT_EQ(row[score], 1.0) << row.dump();
    EXPECT_TRUE(row["classification"].is_null());
    EXPECT_EQ(row["by_dataset"]["second"]["tasks"], 1);
  }
  EXPECT_LT(json["results"][1]["pages_read"].get<int64_t>() * 2, json["results"][1]["pages_total"].get<int64_t>());
  std::ifstream written(predictions);
  int count = 0;
  for (std::string line; std::getline(written, line); ++count) EXPECT_EQ(Json::parse(line)["exact_match"], 1.0) << line;
  EXPECT_EQ(count, 4);

  // With its middle cut out, the context has no key any more.
  const Json cut = RunQuireJson(With(command, {"--context", "400", "--limit", "1"}));
  EXPECT_EQ(cut["results"][0]["shortened"], 1);
  EXPECT_EQ(cut["results"][0]["exact_match"], 0.0);
  // A digit ends the answer.
  const Json stopped = RunQuireJson(With(command, {"--stop", "2", "--limit", "1"}));
  EXPECT_EQ(stopped["results"][0]["exact_match"], 0.0);
}

TEST(EvalTasks, WhatIsRefusedSaysTheLine) {
  const ScratchFolder scratch;
  const std::string good = R"({"context": "a b", "input": "c", "answers": ["d"]})";
  const auto run = [&](const std::string& lines, const Strings& more = {}) {
    const ProgramResult result = RunQuire(
        With({"eval", "tasks", "--model", DataPath("retriever-2m"), "--jsonl", scratch.Write("bad.jsonl", lines)}, more));
    EXPECT_EQ(result.exit_code, 1) << lines;
    return result.err;
  };
  EXPECT_NE(run(good + "\n{\"context\": 3}").find("line 2"), std::string::npos);
  EXPECT_NE(run(good + "\nnot json").find("line 2"), std::string::npos);
  EXPECT_NE(run(R"({"context": "a", "input": "b"})").find("answers"), std::string::npos);
  EXPECT_NE(run(R"({"context": "a", "input": "b", "answers": [3]})").find("answers"), std::string::npos);
  EXPECT_NE(run("\n\n").find("no task"), std::string::npos);
  EXPECT_NE(run(good, {"--prompt", "{input} {context}"}).find("{context}"), std::string::npos);
  EXPECT_NE(run(good, {"--context", "20", "--tokens", "30"}).find("leave no room"), std::string::npos);
  EXPECT_NE(run(good, {"--context", "10000000"}).find("the model takes"), std::string::npos);
  EXPECT_NE(run(good, {"--predictions", "/nowhere/at/all"}).find("/nowhere"), std::string::npos);
}

TEST(TaskMetrics, WordsAreNormalizedAndTheBestAnswerCounts) {
  using namespace launch;
  EXPECT_EQ(NormalizedWords(" The  Cat, an \t(old) one; a \xc3\x89t\xc3\xa9!"), (Strings{"cat", "old", "one", "\xc3\x89t\xc3\xa9"}));
  EXPECT_EQ(ExactMatch("the Answer.", {"no", "answer"}), 1);
  EXPECT_EQ(ExactMatch("answers", {"answer"}), 0);
  // Two of three predicted words are among the four wanted; one that is said twice counts once.
  EXPECT_NEAR(TokenF1("red red fish", {"one fish, red fish"}), 2 * (2.0 / 3) * 0.5 / (2.0 / 3 + 0.5), 1e-12);
  EXPECT_EQ(TokenF1("blue", {"red"}), 0);
  EXPECT_EQ(TokenF1("", {"red"}), 0);
  EXPECT_EQ(TokenF1("red", {"blue", "Red"}), 1);
  // "police killed gunman" in order: 3 of 4 predicted, 3 of 3 wanted; out of order only 2 of them.
  EXPECT_NEAR(RougeL("police has killed gunman", {"police killed gunman"}), 2 * 0.75 / 1.75, 1e-12);
  EXPECT_NEAR(RougeL("gunman police killed", {"police killed gunman"}), 2.0 / 3, 1e-12);
  const Strings classes = {"Food", "Fast food", "Sport"};
  EXPECT_EQ(Classification("It is Fast food.", {"Fast food"}, classes), 1);
  EXPECT_EQ(Classification("Food or Sport", {"Food"}, classes), 0.5);
  EXPECT_EQ(Classification("Food", {"Sport"}, classes), 0);
}

}  // namespace
}  // namespace quire
