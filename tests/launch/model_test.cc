// The program with SmolLM2-135M-Instruct, where it has been fetched (launch/fetch_model.sh).
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace quire {
namespace {

using Json = nlohmann::json;

class SmolLM2Model : public testing::Test {
 protected:
  void SetUp() override {
    model_ = ModelPath();
    if (model_.empty()) GTEST_SKIP() << "SmolLM2 is not in the cache folder; launch/fetch_model.sh fetches it";
  }
  std::string model_;
};

TEST_F(SmolLM2Model, AnswersAQuestion) {
  const Json json = RunQuireJson(
      {"generate", "--model", model_, "--chat", "--prompt", "What is the capital of France?", "--max-tokens", "32"});
  const std::string text = json["sequences"][0]["text"];
  EXPECT_NE(text.find("Paris"), std::string::npos) << text;
  EXPECT_EQ(json["sequences"][0]["finish_reason"], "stop");
}

TEST_F(SmolLM2Model, QuestAtFullBudgetWritesWhatDenseWrites) {
  std::vector<std::string> command = {
      "generate",     "--model", model_, "--prompt-file", QUIRE_SOURCE_DIR "/launch/quickstart_passage.txt",
      "--max-tokens", "24"};
  const Json dense = RunQuireJson(command);
  command.insert(command.end(), {"--attention", "quest:token_budget=8192:dense_layers=0"});
  const Json quest = RunQuireJson(command);
  EXPECT_EQ(dense["sequences"][0]["token_ids"], quest["sequences"][0]["token_ids"]);
  EXPECT_EQ(quest["attention"]["pages_read"], quest["attention"]["pages_total"]);
  EXPECT_GT(dense["prompt_tokens"].get<int>(), 1500);
}

TEST_F(SmolLM2Model, PasskeyAt2k) {
  const Json json = RunQuireJson({"eval", "passkey", "--model", model_, "--lengths", "2048", "--depths", "3",
                                  "--attention", "dense,quest", "--token-budget", "512"});
  ASSERT_EQ(json["results"].size(), 2u);
  for (const Json& row : json["results"]) EXPECT_GE(row["correct"].get<int>(), 2) << row;
  EXPECT_LT(json["results"][1]["pages_read"].get<int64_t>(), json["results"][1]["pages_total"].get<int64_t>());
}

TEST_F(SmolLM2Model, PredictedMemoryIsTheMemoryTaken) {
  const Json json = RunQuireJson({"info", "--model", model_, "--attention", "quest", "--load"});
  const double predicted = json["memory"]["predicted"]["total"].get<double>();
  EXPECT_NEAR(json["memory"]["loaded"]["total"].get<double>(), predicted, 0.05 * predicted);
}

}  // namespace
}  // namespace quire
