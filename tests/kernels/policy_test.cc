#include "kernels/selection/policy.h"

#include <gtest/gtest.h>

#include "kernels/selection/add_policy.h"
#include "kernels/selection/budget.h"

namespace quire {
namespace {

std::string Refusal(const std::string& spec, int page_size) {
  const auto parsed = AttentionSpec::Parse(spec);
  if (!parsed.ok()) return parsed.status().ToString();
  const auto policy = MakePolicy(*parsed, page_size);
  return policy.ok() ? "" : policy.status().ToString();
}

TEST(AttentionSpec, ParsesAndPrintsNameAndOptions) {
  const auto spec = AttentionSpec::Parse("quest:token_budget=512:dense_layers=0");
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->name, "quest");
  EXPECT_EQ(spec->options, (std::map<std::string, std::string>{{"dense_layers", "0"}, {"token_budget", "512"}}));
  EXPECT_EQ(spec->ToString(), "quest:dense_layers=0:token_budget=512");
  EXPECT_EQ(*AttentionSpec::Parse(spec->ToString()), *spec);
  EXPECT_EQ(*AttentionSpec::Parse("dense"), AttentionSpec{});
  for (const char* bad : {"", ":", "quest:", "quest:budget", "quest:=5", "quest:token_budget=", "quest:a=1:a=2"}) {
    EXPECT_FALSE(AttentionSpec::Parse(bad).ok()) << bad;
  }
}

TEST(MakePolicy, RefusesWhatItCantDoWithASentence) {
  EXPECT_EQ(Refusal("dense", 16), "");
  EXPECT_EQ(Refusal("quest", 16), "");
  EXPECT_NE(Refusal("quests", 16).find("there are dense, quest, hierarchical, hybrid, sparq, swa, streaming, h2o, tova, "
                                       "top-p, auto"),
            std::string::npos);
  EXPECT_NE(Refusal("quest:budget=5", 16).find("has no option 'budget'"), std::string::npos);
  EXPECT_NE(Refusal("dense:token_budget=64", 16).find("it takes none"), std::string::npos);
  EXPECT_NE(Refusal("quest:token_budget=0", 16), "");
  EXPECT_NE(Refusal("quest:token_budget=-5", 16), "");
  EXPECT_NE(Refusal("quest:token_budget=5x", 16), "");
  EXPECT_NE(Refusal("quest:token_budget=99999999999999999999", 16), "");
  EXPECT_NE(Refusal("quest:group_reduce=median", 16).find("max, mean, sum"), std::string::npos);
  for (const char* good :
       {"hierarchical", "hierarchical:keep=1", "hierarchical:keep=0.125", "hybrid", "hybrid:channels=1"}) {
    EXPECT_EQ(Refusal(good, 16), "") << good;
  }
  for (const char* keep : {"0", "-1", "1.5", "nan", "inf", "0.5x", "x", "1e-9"}) {
    EXPECT_NE(Refusal(std::string("hierarchical:keep=") + keep, 16).find("0.001 to 1"), std::string::npos) << keep;
  }
  EXPECT_EQ(Refusal("hierarchical:reuse=1", 16), "");
  EXPECT_EQ(Refusal("hierarchical:reuse=64", 16), "");
  for (const char* reuse : {"0", "65", "-4", "x"}) {
    EXPECT_NE(Refusal(std::string("hierarchical:reuse=") + reuse, 16).find("1 to 64"), std::string::npos) << reuse;
  }
  EXPECT_EQ(Refusal("hierarchical:metadata=int8:reuse=2", 16), "");
  EXPECT_NE(Refusal("hierarchical:metadata=int4", 16).find("cache, int8"), std::string::npos);
  EXPECT_NE(Refusal("quest:metadata=int8", 16).find("has no option 'metadata'"), std::string::npos);
  EXPECT_NE(Refusal("quest:reuse=4", 16).find("has no option 'reuse'"), std::string::npos);
  EXPECT_NE(Refusal("hybrid:channels=0", 16), "");
  EXPECT_EQ(Refusal("sparq:channels=16", 16), "");
  EXPECT_NE(Refusal("sparq:channels=0", 16), "");
  EXPECT_EQ(Refusal("sparq:level=token:v_mean=on:token_budget=12", 16), "");
  EXPECT_NE(Refusal("sparq:level=tokens", 16).find("page, token"), std::string::npos);
  EXPECT_NE(Refusal("sparq:v_mean=yes", 16).find("on, off"), std::string::npos);
  EXPECT_NE(Refusal("sparq:level=token:token_budget=20:sink_tokens=10:recent_tokens=10", 16), "");
  EXPECT_NE(Refusal("top-p:selector=sparq:level=token", 16).find("'top-p'"), std::string::npos);
  EXPECT_NE(Refusal("top-p:selector=sparq:v_mean=on", 16).find("'top-p'"), std::string::npos);
  EXPECT_NE(Refusal("sparq:group_reduce=max", 16).find("has no option 'group_reduce'"), std::string::npos);
  for (const char* rows : {"0", "65", "-1", "2.5", "x"}) {
    EXPECT_NE(Refusal(std::string("swa:rows=") + rows, 16).find("1 to 64"), std::string::npos) << rows;
  }
  EXPECT_EQ(Refusal("swa:rows=64", 16), "");
  EXPECT_NE(Refusal("h2o:rows=4", 16).find("has no option 'rows'"), std::string::npos);
  EXPECT_NE(Refusal("tova:group_reduce=max", 16).find("has no option 'group_reduce'"), std::string::npos);
  for (const char* name : {"swa", "h2o", "tova"}) {
    EXPECT_NE(Refusal(std::string(name) + ":token_budget=31", 16), "") << name;
    EXPECT_EQ(Refusal(std::string(name) + ":token_budget=48", 16), "") << name;
    EXPECT_NE(Refusal(std::string(name) + ":token_budget=64:recent_tokens=64", 16).find("at least"),
              std::string::npos);
  }
  EXPECT_EQ(Refusal("streaming:token_budget=64", 16), "");
  EXPECT_EQ(Refusal("streaming:token_budget=5", 16), "");
  EXPECT_NE(Refusal("streaming:token_budget=4", 16).find("give at least 5"), std::string::npos);
  EXPECT_NE(Refusal("streaming:token_budget=64:sink_tokens=8:recent_tokens=57", 16).find("at least 65"),
            std::string::npos);
  EXPECT_EQ(Refusal("streaming:token_budget=64:sink_tokens=8:recent_tokens=56", 16), "");
  EXPECT_NE(Refusal("streaming:recent_tokens=0", 16), "");
  EXPECT_NE(Refusal("streaming:sink_tokens=-1", 16), "");
  EXPECT_NE(Refusal("streaming:keep=1", 16).find("has no option 'keep'"), std::string::npos);
  for (const char* good : {"top-p", "top-p:p=0", "top-p:p=1:loose=1", "top-p:selector=hybrid:channels=4",
                           "top-p:selector=h2o:token_budget=64", "top-p:selector=tova", "top-p:selector=swa:rows=2",
                           "top-p:selector=sparq:loose=0.01", "quest:budget_share=0.5"}) {
    EXPECT_EQ(Refusal(good, 16), "") << good;
  }
  for (const char* bad : {"p=1.1", "p=-0.1", "p=nan", "loose=0", "loose=1.5", "selector=streaming", "selector=dense",
                          "selector=top-p", "budget_share=0.5", "channels=4", "nonsense=1", "token_budget=47",
                          "selector=hybrid:keep=1"}) {
    EXPECT_NE(Refusal(std::string("top-p:") + bad, 16).find("'top-p'"), std::string::npos) << bad;
  }
  EXPECT_NE(Refusal("quest:budget_share=1.01", 16).find("0 to 1"), std::string::npos);
  EXPECT_NE(Refusal("hybrid:keep=1", 16).find("has no option 'keep'"), std::string::npos);
  EXPECT_NE(Refusal("quest:channels=1", 16).find("has no option 'channels'"), std::string::npos);
  EXPECT_NE(Refusal("hierarchical:token_budget=47", 16).find("'hierarchical': token_budget 47"), std::string::npos);
  EXPECT_NE(Refusal("hybrid:token_budget=47", 16).find("at least 48"), std::string::npos);
  EXPECT_NE(Refusal("quest", 0), "");
  // One sink page, one recent page and the current one: three pages is the least.
  EXPECT_NE(Refusal("quest:token_budget=47", 16).find("at least 48"), std::string::npos);
  EXPECT_EQ(Refusal("quest:token_budget=48", 16), "");
  EXPECT_NE(Refusal("quest:token_budget=64:recent_tokens=33", 16).find("at least 80"), std::string::npos);
  EXPECT_EQ(Refusal("quest:token_budget=16:sink_tokens=0:recent_tokens=0", 16), "");
}

TEST(MakePolicy, DenseOrSparseDependsOnLengthAndLayerAlone) {
  const auto policy = MakePolicy(*AttentionSpec::Parse("quest:token_budget=64"), 16);
  ASSERT_TRUE(policy.ok());
  EXPECT_TRUE((*policy)->IsDense(64, 5, 16));
  EXPECT_FALSE((*policy)->IsDense(65, 5, 16));
  EXPECT_TRUE((*policy)->IsDense(65, 1, 16));
  EXPECT_FALSE((*policy)->IsDense(65, 2, 16));
  EXPECT_EQ((*policy)->token_budget(), 64);
  EXPECT_EQ((*policy)->MaxPages(33, 16), 3);
  EXPECT_EQ((*policy)->MaxPages(100000, 16), 4);
  EXPECT_TRUE((*policy)->Declare().min_max);
  const auto dense = MakePolicy({}, 16);
  ASSERT_TRUE(dense.ok());
  EXPECT_TRUE((*dense)->IsDense(1 << 20, 99, 16));
  EXPECT_EQ((*dense)->MaxPages(33, 16), 3);
}

TEST(MakePolicy, ABudgetMayBeAPartOfTheLength) {
  const auto policy = MakePolicy(*AttentionSpec::Parse("quest:token_budget=64:budget_share=0.25:dense_layers=0"), 16);
  ASSERT_TRUE(policy.ok());
  EXPECT_TRUE((*policy)->IsDense(64, 0, 16));
  EXPECT_FALSE((*policy)->IsDense(65, 0, 16));
  EXPECT_EQ((*policy)->MaxPages(256, 16), 4);
  EXPECT_EQ((*policy)->MaxPages(16000, 16), 250);
  const auto all = MakePolicy(*AttentionSpec::Parse("quest:budget_share=1:dense_layers=0"), 16);
  EXPECT_TRUE((*all)->IsDense(1 << 20, 0, 16));
}

TEST(PolicyTable, EveryRowMakesAPolicyOfItsName) {
  for (const PolicyInfo& info : PolicyTable()) {
    AttentionSpec spec;
    spec.name = info.name;
    const auto policy = MakePolicy(spec, 16);
    ASSERT_TRUE(policy.ok());
    EXPECT_EQ((*policy)->name(), info.name);
    EXPECT_FALSE(info.reads.empty());
    EXPECT_FALSE(info.options.empty());
  }
}

TEST(AddPolicy, ARowOfOnesOwnIsMadeAndListed) {
  const auto make = [](const std::map<std::string, std::string>& options, const PolicyShape& shape)
      -> Result<std::unique_ptr<AttentionPolicy>> {
    if (!options.empty()) return InvalidArgument("own-quest takes no options");
    return MakePolicy(*AttentionSpec::Parse("quest:token_budget=64"), shape);
  };
  const std::vector<PolicyInfo>& before = PolicyTable();
  const size_t rows = before.size();
  {
    std::string name = "own-quest";  // its texts may go
    ASSERT_TRUE(AddPolicy({name, "nobody", "as quest", "none"}, make).ok());
    name = "overwritten";
  }
  EXPECT_EQ(before.size(), rows);
  ASSERT_EQ(PolicyTable().size(), rows + 1);
  EXPECT_EQ(PolicyTable().back().name, "own-quest");
  const auto policy = MakePolicy(*AttentionSpec::Parse("own-quest"), 16);
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ((*policy)->token_budget(), 64);
  EXPECT_EQ(MakePolicy(*AttentionSpec::Parse("own-quest:a=1"), 16).status().message(), "own-quest takes no options");
  EXPECT_EQ(AddPolicy({"own-quest", "", "", ""}, make).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(AddPolicy({"quest", "", "", ""}, make).code(), StatusCode::kAlreadyExists);
  for (const char* name : {"", "a:b", "a,b", "a b"}) {
    EXPECT_EQ(AddPolicy({name, "", "", ""}, make).code(), StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(AddPolicy({"empty", "", "", ""}, {}).code(), StatusCode::kInvalidArgument);
}

TEST(PageHistory, AForkIsACopyAndATruncationForgetsWhatLiesPastIt) {
  const auto policy = MakePolicy({}, 4).value();
  std::vector<float> parent = {1, 2, 3, -1, 4, 5, 6, -1};  // two KV heads, three pages, room for a fourth
  std::vector<float> child(10, 9.0f);
  PageHistory from{parent.data(), 4, 2, 3}, to{child.data(), 5, 2, 0};
  policy->Fork(from, &to);
  EXPECT_EQ(to.pages, 3);
  EXPECT_EQ(child, (std::vector<float>{1, 2, 3, 9, 9, 4, 5, 6, 9, 9}));

  policy->Truncate(5, 4, &to);  // the second page has one token left and keeps its entry
  EXPECT_EQ(to.pages, 2);
  EXPECT_EQ(child, (std::vector<float>{1, 2, 0, 9, 9, 4, 5, 0, 9, 9}));
  EXPECT_EQ(parent[2], 3);  // the parent's own is untouched
  policy->Truncate(12, 4, &to);
  EXPECT_EQ(to.pages, 2);
  policy->Truncate(0, 4, &to);
  EXPECT_EQ(to.pages, 0);
  EXPECT_EQ(child[0], 0);
}

TEST(PageHistory, EntriesOfSeveralFloatsAreCopiedAndForgottenWhole) {
  const auto policy = MakePolicy(*AttentionSpec::Parse("swa:rows=2"), 4).value();
  std::vector<float> parent = {1, 2, 3, 4, 5, 6, -1, 7, 8, 9, 10, 11, 12, -1};  // two KV heads, three pages of two
  std::vector<float> child(16, 0.5f);
  PageHistory from{parent.data(), 7, 2, 3, 2}, to{child.data(), 8, 2, 0, 1};
  policy->Fork(from, &to);
  EXPECT_EQ(to.pages, 3);
  EXPECT_EQ(to.width, 2);
  EXPECT_EQ(child, (std::vector<float>{1, 2, 3, 4, 5, 6, 0.5f, 0.5f, 7, 8, 9, 10, 11, 12, 0.5f, 0.5f}));
  policy->Truncate(7, 4, &to);
  EXPECT_EQ(to.pages, 2);
  EXPECT_EQ(child, (std::vector<float>{1, 2, 3, 4, 0, 0, 0.5f, 0.5f, 7, 8, 9, 10, 0, 0, 0.5f, 0.5f}));
}

TEST(PageHistory, IsKeptOfTheLayersThatThePolicySelectsIn) {
  const auto h2o = MakePolicy(*AttentionSpec::Parse("h2o:dense_layers=3"), 16).value();
  EXPECT_FALSE(RemembersLayer(*h2o, 2, 16));
  EXPECT_TRUE(RemembersLayer(*h2o, 3, 16));
  for (const char* none : {"dense", "quest:dense_layers=0", "sparq:dense_layers=0"}) {
    EXPECT_FALSE(RemembersLayer(*MakePolicy(*AttentionSpec::Parse(none), 16).value(), 9, 16)) << none;
  }
}

TEST(ForcedPages, SinksRecentAndThePartialPageAreInsideTheBudget) {
  for (const int page_size : {1, 3, 16}) {
    for (const int sinks : {0, 1, 2}) {
      for (const int recent : {0, 1, 3}) {
        const int least = sinks + recent + 1;
        const PageBudget budget = PageBudget::Create((least + 2) * page_size, sinks * page_size, recent * page_size, page_size);
        for (int length = (least + 2) * page_size + 1; length < 20 * page_size; ++length) {
          const ForcedPages f = ForcedPages::Create(budget, length, page_size);
          EXPECT_EQ(f.sinks, sinks);
          EXPECT_EQ(f.pages, (length + page_size - 1) / page_size);
          EXPECT_EQ(f.recent, length / page_size - recent);
          EXPECT_EQ(f.sinks + f.free + f.pages - f.recent, least + 2);  // the whole budget is used
        }
      }
    }
  }
}

TEST(ForcedPages, ABudgetThatIsAPartOfTheLengthIsThatManyTokens) {
  for (const double share : {0.1, 0.25, 1.0 / 3, 0.999, 1.0}) {
    const PageBudget with_share = PageBudget::Create(48, 16, 16, 16, share);
    for (int length = 49; length < 3000; length += 7) {
      const auto tokens = std::max<int64_t>(48, static_cast<int64_t>(share * length));
      const ForcedPages got = ForcedPages::Create(with_share, length, 16);
      const ForcedPages want = ForcedPages::Create(PageBudget::Create(tokens, 16, 16, 16), length, 16);
      EXPECT_EQ(got.free, want.free) << share << " of " << length;
      EXPECT_EQ(got.sinks, want.sinks);
      EXPECT_EQ(got.recent, want.recent);
    }
  }
}

}  // namespace
}  // namespace quire
