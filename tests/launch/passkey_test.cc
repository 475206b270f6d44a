// The pass key task: its prompts, and the committed retriever solving it at 2k, 4k and 8k tokens, dense and by every
// sparse policy.
#include "launch/passkey.h"

#include <gtest/gtest.h>

#include <set>

#include "core/io/tokenizer.h"
#include "tests/launch/program.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

using launch::PasskeyForm;
using launch::PasskeyTask;

TEST(Passkey, PromptsHaveTheLengthAskedForAndTheKeyAtItsDepth) {
  const auto tokenizer = LoadTokenizer(DataPath("retriever-2m"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const PasskeyTask task(tokenizer->get(), PasskeyForm::kText, "");
  for (const double depth : {0.0, 0.5, 1.0}) {
    const auto prompt = task.MakePrompt(2048, depth, "01234");
    ASSERT_TRUE(prompt.ok()) << prompt.status().ToString();
    EXPECT_EQ(prompt->size(), 2048u);  // a token a byte: hit exactly
    EXPECT_EQ(prompt->front(), 256);   // BOS
    const std::string text = (*tokenizer)->Decode(*prompt, /*skip_special=*/true);
    EXPECT_EQ(text.substr(text.size() - 39), "\nWhat is the pass key? The pass key is ");
    const size_t at = text.find("\nThe pass key is 01234. Remember it. 01234 is the pass key.\n");
    ASSERT_NE(at, std::string::npos);
    EXPECT_NEAR(static_cast<double>(at), 150 + depth * (2048 - 150 - 100), 100);
  }
}

TEST(Passkey, TooFewTokensAreRefused) {
  const auto tokenizer = LoadTokenizer(DataPath("retriever-2m"));
  ASSERT_TRUE(tokenizer.ok());
  const PasskeyTask task(tokenizer->get(), PasskeyForm::kText, "");
  EXPECT_FALSE(task.MakePrompt(100, 0.5, "01234").ok());
}

TEST(Passkey, FillersOfManyByteCharactersStayUtf8) {
  const auto tokenizer = LoadTokenizer(DataPath("retriever-2m"));
  ASSERT_TRUE(tokenizer.ok());
  const PasskeyTask task(tokenizer->get(), PasskeyForm::kText, "äöü€😀 ");
  for (int tokens = 400; tokens < 420; ++tokens) {
    const auto prompt = task.MakePrompt(tokens, 0.5, "01234");
    ASSERT_TRUE(prompt.ok()) << prompt.status().ToString();
    EXPECT_LE(prompt->size(), static_cast<size_t>(tokens));
    EXPECT_GE(prompt->size(), static_cast<size_t>(tokens - 16));
  }
}

TEST(Passkey, KeysDependOnTheirPlaceAlone) {
  std::set<std::string> keys;
  for (int depth = 0; depth < 10; ++depth) {
    for (int trial = 0; trial < 10; ++trial) keys.insert(launch::PasskeyFor(0, 2048, depth, trial));
  }
  EXPECT_GT(keys.size(), 95u);
  EXPECT_EQ(launch::PasskeyFor(1, 2048, 2, 3), launch::PasskeyFor(1, 2048, 2, 3));
  for (const std::string& key : keys) EXPECT_EQ(key.size(), 5u);
}

TEST(Passkey, AnswersAreJudgedByTheirFirstNumber) {
  EXPECT_TRUE(launch::AnswersPasskey("01234", "01234"));
  EXPECT_TRUE(launch::AnswersPasskey(" 01234.\nRem", "01234"));
  EXPECT_FALSE(launch::AnswersPasskey("1234", "01234"));
  EXPECT_FALSE(launch::AnswersPasskey("99 01234", "01234"));
  EXPECT_FALSE(launch::AnswersPasskey("", "01234"));
}

const char kDenseAndQuest[] = "dense,quest:dense_layers=0";
const char kOtherPolicies[] = "hierarchical:dense_layers=0,hybrid:dense_layers=0,sparq:dense_layers=0";

// What the retriever is for: exact accuracy under selection, tested at every commit.
void ExpectAllFound(const std::string& attention, const std::string& lengths, const std::string& depths,
                    const std::string& budgets, size_t rows) {
  const nlohmann::json json =
      RunQuireJson({"eval", "passkey", "--model", DataPath("retriever-2m"), "--lengths", lengths, "--depths", depths,
                    "--attention", attention, "--token-budget", budgets});
  ASSERT_EQ(json["results"].size(), rows);
  for (const nlohmann::json& row : json["results"]) {
    EXPECT_EQ(row["correct"], row["trials"]) << row;
    EXPECT_EQ(row["trials"], std::stoi(depths));
    EXPECT_EQ(row["by_depth"].size(), row["trials"]);
    EXPECT_LE(row["prompt_tokens"], row["context"]);
    EXPECT_GE(row["prompt_tokens"].get<int>(), row["context"].get<int>() - 8);
    if (row["attention"] != "dense") {
      EXPECT_LT(row["pages_read"].get<int64_t>(), row["pages_total"].get<int64_t>() / 2);
    }
  }
}

#ifdef QUIRE_SANITIZED  // the rest would take minutes and goes the same way through the code
TEST(PasskeyOfRetriever, FoundAt2k) { ExpectAllFound(kDenseAndQuest, "2048", "1", "64", 2); }
#else
TEST(PasskeyOfRetriever, FoundAt2kAnd4k) { ExpectAllFound(kDenseAndQuest, "2048,4096", "1", "64,128,256,512", 10); }

TEST(PasskeyOfRetriever, FoundAt8k) { ExpectAllFound(kDenseAndQuest, "8192", "1", "64,128,256,512", 5); }
#endif

TEST(PasskeyOfRetriever, FoundByOtherPoliciesAt2k) { ExpectAllFound(kOtherPolicies, "2048", "1", "64", 3); }

// At the very end of its context the model itself misses a key now and then: there each policy finds those that dense does.
void ExpectFoundAsByDense(const std::string& attention, const std::string& budgets, size_t rows) {
  const nlohmann::json json = RunQuireJson({"eval", "passkey", "--model", DataPath("retriever-2m"), "--lengths", "8192", "--depths",
                                            "8", "--attention", "dense," + attention, "--token-budget", budgets});
  ASSERT_EQ(json["results"].size(), rows);
  const nlohmann::json& dense = json["results"][0];
  ASSERT_EQ(dense["attention"], "dense");
  EXPECT_GE(dense["correct"], 7) << dense;
  for (const nlohmann::json& row : json["results"]) EXPECT_EQ(row["by_depth"], dense["by_depth"]) << row;
}

TEST(SlowPasskeyOfRetriever, FoundAtEightDepths) {
  ExpectAllFound(kDenseAndQuest, "2048,4096", "8", "64,128,256,512", 10);
  ExpectFoundAsByDense("quest:dense_layers=0", "64,128,256,512", 5);
}

TEST(SlowPasskeyOfRetriever, FoundByOtherPoliciesAtEightDepths) {
  ExpectAllFound(kOtherPolicies, "2048,4096", "8", "64,256", 12);
  ExpectFoundAsByDense(kOtherPolicies, "64,256", 7);
}

}  // namespace
}  // namespace quire
