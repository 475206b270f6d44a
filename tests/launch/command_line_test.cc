// The command line as such: help, versions, config files, the environment, and how lists are crossed.
#include <gtest/gtest.h>

#include "launch/flags.h"
#include "tests/launch/program.h"

namespace quire {
namespace {

using launch::AttentionFlags;
using launch::CrossAttention;

std::vector<std::string> Names(const Result<std::vector<AttentionSpec>>& specs) {
  std::vector<std::string> names;
  if (!specs.ok()) return {specs.status().message()};
  for (const AttentionSpec& spec : *specs) names.push_back(spec.ToString());
  return names;
}

using Strings = std::vector<std::string>;

TEST(CrossAttention, BudgetsMeetEverySparsePolicyThatSetsNone) {
  AttentionFlags flags;
  flags.attention = "dense,quest,quest:token_budget=64:dense_layers=0";
  flags.token_budget = "256,512";
  EXPECT_EQ(Names(CrossAttention(flags, 16)), (Strings{"dense", "quest:token_budget=256", "quest:token_budget=512",
                                                       "quest:dense_layers=0:token_budget=64"}));
}

TEST(CrossAttention, SharedOptionsReachSparsePoliciesOnly) {
  AttentionFlags flags;
  flags.attention = "dense,quest:dense_layers=1";
  flags.dense_layers = "0";
  flags.sink_tokens = "32";
  EXPECT_EQ(Names(CrossAttention(flags, 16)), (Strings{"dense", "quest:dense_layers=1:sink_tokens=32"}));
}

TEST(CrossAttention, WhatNoPolicyTakesIsRefused) {
  AttentionFlags flags;
  flags.attention = "quest";
  flags.token_budget = "0";
  EXPECT_FALSE(CrossAttention(flags, 16).ok());
  flags.token_budget = "12x";
  EXPECT_FALSE(CrossAttention(flags, 16).ok());
  flags.token_budget = "";
  EXPECT_FALSE(CrossAttention(flags, 0).ok());
  flags.attention = "quest:no_such_option=1";
  EXPECT_FALSE(CrossAttention(flags, 16).ok());
  flags.attention = "quest,";
  EXPECT_FALSE(CrossAttention(flags, 16).ok());
}

TEST(ParseIntList, NamesTheFlagAndTheEntry) {
  EXPECT_EQ(*launch::ParseIntList("--batch", "1, 8", 1), (std::vector<int64_t>{1, 8}));
  const auto bad = launch::ParseIntList("--batch", "1,eight", 1);
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.status().message().find("--batch"), std::string::npos);
  EXPECT_NE(bad.status().message().find("eight"), std::string::npos);
  EXPECT_FALSE(launch::ParseIntList("--batch", "", 1).ok());
  EXPECT_FALSE(launch::ParseIntList("--batch", "99999999999999999999", 1).ok());
}

TEST(CommandLine, HelpOfEveryCommandHasAnExample) {
  for (const Strings& command : {Strings{"generate"},
                                 {"tokenize"},
                                 {"score"},
                                 {"eval", "perplexity"},
                                 {"eval", "passkey"},
                                 {"eval", "recall"},
                                 {"eval", "agreement"},
                                 {"eval", "tasks"},
                                 {"eval", "report"},
                                 {"bench", "prefill"},
                                 {"bench", "decode"},
                                 {"bench", "kernels"},
                                 {"bench", "crossover"},
                                 {"bench", "serve"},
                                 {"info"},
                                 {}}) {
    Strings arguments = command;
    arguments.push_back("--help");
    const ProgramResult result = RunQuire(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("Example"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("quire " + (command.empty() ? "generate" : command[0])), std::string::npos);
  }
}

// With a range or its choices for every option.
TEST(CommandLine, InfoListsThePolicies) {
  const nlohmann::json json = RunQuireJson({"info", "--policies"});
  ASSERT_EQ(json["policies"].size(), PolicyTable().size());
  for (const nlohmann::json& policy : json["policies"]) {
    const std::string options = policy["options"];
    EXPECT_FALSE(policy["reads"].get<std::string>().empty());
    if (policy["name"] == "dense" || policy["name"] == "top-p") continue;  // none, and its selector's
    for (const char* about : {"token_budget (1 to 2^30", "dense_layers (0 to 2^30", "default 2048"}) {
      EXPECT_NE(options.find(about), std::string::npos) << policy["name"] << ": " << options;
    }
  }
  EXPECT_EQ(RunQuire({"info"}).exit_code, 2);  // a model or the list
  const ProgramResult text = RunQuire({"info", "--policies"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_NE(text.out.find("sparq: Ribar et al., arXiv 2312.04985"), std::string::npos) << text.out;
}

TEST(CommandLine, UnknownFlagsAndCommandsAreUsageErrors) {
  for (const Strings& arguments : {Strings{},
                                   {"generat"},
                                   {"generate", "--model", "x", "--no-such-flag"},
                                   {"bench"},
                                   {"generate"},
                                   {"generate", "--model", "x", "--threads", "two"},
                                   {"info", "--model"}}) {
    const ProgramResult result = RunQuire(arguments);
    EXPECT_EQ(result.exit_code, 2) << result.out << result.err;
    EXPECT_EQ(result.err.rfind("quire: error: ", 0), 0u) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

TEST(CommandLine, ConfigFileEnvironmentAndFlagsWinInTurn) {
  const ScratchFolder scratch;
  const std::string config =
      scratch.Write("quire.toml", "page-size = 3\nformat = \"json\"\n[generate]\nmax-tokens = 2\n");
  const std::string ids = scratch.Write("ids.json", "[1]");
  const Strings base = {"generate", "--model", DataPath("stories260K"), "--token-ids-file", ids};
  auto page_size = [&](Strings arguments, const std::map<std::string, std::string>& environment) {
    const ProgramResult result = RunQuire(arguments, environment);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(result.out, nullptr, false);
    return json.is_object() ? json["attention"]["page_size"].get<int>() : -1;
  };
  Strings arguments = base;
  arguments.insert(arguments.end(), {"--format", "json", "--max-tokens", "2"});
  EXPECT_EQ(page_size(arguments, {}), 16);
  EXPECT_EQ(page_size(arguments, {{"QUIRE_PAGE_SIZE", "5"}}), 5);
  arguments = base;
  arguments.insert(arguments.end(), {"--config", config});
  EXPECT_EQ(page_size(arguments, {{"QUIRE_PAGE_SIZE", "5"}}), 3);
  arguments.insert(arguments.end(), {"--page-size", "7"});
  EXPECT_EQ(page_size(arguments, {{"QUIRE_PAGE_SIZE", "5"}}), 7);
}

TEST(CommandLine, AConfigFileWithAnUnknownFlagIsAnError) {
  const ScratchFolder scratch;
  const std::string config = scratch.Write("quire.toml", "page-sise = 3\n");
  EXPECT_EQ(RunQuire({"info", "--model", DataPath("stories260K"), "--config", config}).exit_code, 2);
  EXPECT_EQ(RunQuire({"info", "--model", DataPath("stories260K"), "--config", scratch.Path("absent")}).exit_code, 2);
}

// A text that would take many seconds to its end.
const Strings kLongGeneration = {"generate", "--model",      DataPath("retriever-2m"), "--prompt",
                                 "Once",     "--ignore-eos", "--max-tokens",           "8000"};

TEST(CommandLine, CtrlCEndsTheRequestAndKeepsWhatThereIs) {
  const ProgramResult result = DisturbQuire(kLongGeneration, Disturbance::kInterrupt);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.exit_code, 130) << result.err;
  EXPECT_GT(result.out.size(), 1u);
  EXPECT_EQ(result.out.back(), '\n');
  EXPECT_NE(result.err.find("pages read"), std::string::npos) << result.err;
}

TEST(CommandLine, AReaderThatGoesAwayEndsItQuietly) {
  const ProgramResult result = DisturbQuire(kLongGeneration, Disturbance::kCloseOutput);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.exit_code, 141) << result.err;
  EXPECT_EQ(result.err.find("error"), std::string::npos) << result.err;
}

TEST(CommandLine, WhatThisVersionLacksIsRefusedWithAWayOut) {
  const Strings base = {"generate", "--model", DataPath("stories260K"), "--prompt", "Once"};
  Strings arguments = base;
  arguments.insert(arguments.end(), {"--device", "cuda"});
  ProgramResult result = RunQuire(arguments);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("--device cpu"), std::string::npos) << result.err;
  arguments = base;
  arguments.insert(arguments.end(), {"-tp", "0"});
  result = RunQuire(arguments);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("--tensor-parallel-size is 0"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace quire
