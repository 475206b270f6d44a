// quire eval passkey: does a policy still find what stands at some depth of a long prompt? Prefill is dense; the answer
// is decoded greedily with the policy.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/passkey.h"
#include "launch/policy_groups.h"
#include "launch/progress.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

constexpr int kAnswerTokens = 8;  // a space and five digits, with room

struct PasskeyFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string format = "text", lengths = "2048,4096", form = "text", filler_file;
  int depths = 5, trials = 1;
};

struct Trial {
  int depth_index = 0;
  std::string key;
  std::vector<int32_t> prompt;
};

struct DepthScore {
  int trials = 0, correct = 0;
};

struct PasskeyScore {
  std::vector<DepthScore> by_depth;
  AttentionReads reads;
  double seconds = 0;  // of all policies that shared the prompts
};

double DepthAt(int index, int depths) { return depths == 1 ? 0.5 : static_cast<double>(index) / (depths - 1); }

Status Evaluate(Engine& engine, const std::vector<AttentionSpec>& specs, const PolicyGroup& group,
                const std::vector<Trial>& trials, Progress& progress, std::vector<PasskeyScore>* scores) {
  const double start = NowSeconds();
  std::vector<std::vector<std::string>> answers(trials.size(), std::vector<std::string>(group.size()));
  std::vector<std::string> ids;
  Status failure;
  size_t finished = 0;
  const size_t wanted = trials.size() * group.size();
  for (size_t i = 0; i < trials.size(); ++i) {
    GenerationRequest request;
    request.prompt = trials[i].prompt;
    request.sampling.temperature = 0;
    request.stopping.max_tokens = kAnswerTokens;
    GoOnWith(specs, group, &request);
    ASSIGN_OR_RETURN(ids.emplace_back(), engine.Submit(std::move(request), [&, i](const TokenEvent& event) {
      if (!event.status.ok()) failure = event.status;
      const auto member = static_cast<size_t>(event.sequence);
      answers[i][member] += event.text;
      if (!event.finished) return;
      ++finished;
      (*scores)[group[member]].reads += event.attention;
    }));
  }
  RETURN_IF_ERROR(RunToEnd(engine, ids, [&] {
    progress.Update(static_cast<double>(finished) / wanted,
                    std::to_string(finished) + " of " + std::to_string(wanted) + " trials");
  }));
  RETURN_IF_ERROR(failure);
  for (size_t member = 0; member < group.size(); ++member) {
    PasskeyScore& score = (*scores)[group[member]];
    for (size_t i = 0; i < trials.size(); ++i) {
      DepthScore& depth = score.by_depth[static_cast<size_t>(trials[i].depth_index)];
      ++depth.trials;
      depth.correct += AnswersPasskey(answers[i][member], trials[i].key);
    }
    score.seconds = NowSeconds() - start;
  }
  return OkStatus();
}

Status RunPasskey(const PasskeyFlags& flags, const Seat& seat) {
  if (flags.depths < 1 || flags.trials < 1) return InvalidArgument("--depths and --trials must be at least 1");
  ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ParseIntList("--lengths", flags.lengths, 1));
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  std::string filler;
  if (!flags.filler_file.empty()) {
    ASSIGN_OR_RETURN(filler, ReadText(flags.filler_file));
  }
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, SequencesFor(specs)));
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  const int64_t limit = engine->options().max_model_len;
  if (longest > limit) {
    return InvalidArgument("--lengths asks for " + std::to_string(longest) + " tokens; the model takes " +
                           std::to_string(limit));
  }
  const PasskeyForm form = flags.form == "chat" ? PasskeyForm::kChat : PasskeyForm::kText;
  const PasskeyTask task(engine->tokenizer(), form, filler);

  Json results = Json::array();
  std::vector<std::vector<std::string>> table = {
      {"attention", "budget", "context", "trials", "correct", "by depth", "pages read", "of", "seconds"}};
  ASSIGN_OR_RETURN(const std::vector<PolicyGroup> groups, GroupPolicies(*engine, specs));
  Progress progress("pass keys");
  for (int64_t length : lengths) {
    std::vector<Trial> trials;
    // Prompt and answer fit the context together, so the longest prompts are a few tokens shorter.
    const int64_t prompt_tokens = std::min<int64_t>(length, limit - kAnswerTokens);
    for (int depth = 0; depth < flags.depths; ++depth) {
      for (int trial = 0; trial < flags.trials; ++trial) {
        Trial one{depth, PasskeyFor(flags.engine.seed, length, depth, trial), {}};
        ASSIGN_OR_RETURN(one.prompt, task.MakePrompt(prompt_tokens, DepthAt(depth, flags.depths), one.key));
        trials.push_back(std::move(one));
      }
    }
    std::vector<PasskeyScore> scores(specs.size());
    for (PasskeyScore& score : scores) score.by_depth.resize(static_cast<size_t>(flags.depths));
    for (const PolicyGroup& group : groups) {
      progress.SetWhat("pass keys, " + Named(specs, group) + ", " + std::to_string(length) + " tokens:");
      RETURN_IF_ERROR(Evaluate(*engine, specs, group, trials, progress, &scores));
    }
    for (size_t i = 0; i < specs.size(); ++i) {
      const AttentionSpec& spec = specs[i];
      const PasskeyScore& score = scores[i];
      Json row;
      RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
      int total = 0, correct = 0;
      Json by_depth = Json::array();
      std::string depths_text;
      for (int depth = 0; depth < flags.depths; ++depth) {
        const DepthScore& d = score.by_depth[depth];
        total += d.trials;
        correct += d.correct;
        by_depth.push_back({{"depth", DepthAt(depth, flags.depths)}, {"trials", d.trials}, {"correct", d.correct}});
        depths_text += (depth ? " " : "") + std::to_string(d.correct);
      }
      row["context"] = length;
      row["trials"] = total;
      row["correct"] = correct;
      row["by_depth"] = std::move(by_depth);
      row["prompt_tokens"] = trials.front().prompt.size();
      AddReads(score.reads, &row);
      row["seconds"] = score.seconds;
      const Json budget = row["token_budget"];
      table.push_back({spec.ToString(), budget.is_null() ? "-" : budget.dump(), std::to_string(length),
                       std::to_string(total), std::to_string(correct), depths_text,
                       std::to_string(score.reads.pages_read), std::to_string(score.reads.pages_total),
                       Fixed(score.seconds, 1)});
      results.push_back(std::move(row));
    }
  }
  progress.Finish();
  WriteResults(flags.format, std::move(results), table);
  return OkStatus();
}

}  // namespace

Command AddEvalPasskey(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand(
      "passkey", "Retrieval of a key hidden in a long prompt, per length, depth, policy and budget");
  auto flags = std::make_shared<PasskeyFlags>();
  app->footer(R"(
Example
  quire eval passkey --model tests/data/retriever-2m --lengths 2048,4096,8192 --depths 8 \
    --attention dense,quest:dense_layers=0 --token-budget 64,128,256)");
  AddListFlag(*app, "--lengths", &flags->lengths, "prompt lengths in tokens");
  app->add_option("--depths", flags->depths, "places of the key, evenly from beginning to end")->capture_default_str();
  app->add_option("--trials", flags->trials, "keys per length and depth")->capture_default_str();
  app->add_option("--form", flags->form, "text: the model goes on with the bare text; chat: asked in its chat template")
      ->check(CLI::IsMember({"text", "chat"}))
      ->capture_default_str();
  app->add_option("--filler-file", flags->filler_file, "a text to hide the key in, instead of the usual sentences");
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine),
                            [&](const Seat& seat) { return RunPasskey(*flags, seat); });
          }};
}

}  // namespace quire::launch
