// See eval_windows.h.
#include "launch/eval_windows.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/base/clock.h"
#include "launch/policy_groups.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

// opening: what begins every window. scored: of WindowFlags.
std::vector<Window> CutWindows(const std::vector<int32_t>& ids, const std::vector<int32_t>& opening, int64_t context,
                               int64_t scored) {
  std::vector<Window> windows;
  const int64_t body = context - static_cast<int64_t>(opening.size());
  const int64_t half = context / 2;
  for (int64_t begin = 0; begin < static_cast<int64_t>(ids.size()); begin += body) {
    std::vector<int32_t> all = opening;
    const int64_t end = std::min<int64_t>(begin + body, ids.size());
    all.insert(all.end(), ids.begin() + begin, ids.begin() + end);
    if (static_cast<int64_t>(all.size()) <= half) break;  // nothing of its second half is left
    Window window;
    window.prompt.assign(all.begin(), all.begin() + half - 1);
    window.forced.assign(all.begin() + half - 1, all.end());
    if (scored > 0 && static_cast<int64_t>(window.forced.size()) > scored + 1) window.forced.resize(scored + 1);
    windows.push_back(std::move(window));
  }
  return windows;
}

}  // namespace

void AddWindowFlags(CLI::App& app, WindowFlags* flags) {
  app.add_option("--text-file", flags->text_file, "UTF-8 text; - is stdin")->required();
  app.add_option("--context", flags->context, "tokens in a window")->capture_default_str();
  app.add_option("--max-tokens", flags->max_tokens, "tokens of the text that are used; 0: all")->capture_default_str();
}

void AddScoredFlag(CLI::App& app, WindowFlags* flags) {
  app.add_option("--tokens", flags->scored, "tokens scored of each window, from its middle on; 0: all of its second half")
      ->capture_default_str();
}

Status CheckWindowFlags(const WindowFlags& flags) {
  if (flags.context < 4) {
    return InvalidArgument("--context is " + std::to_string(flags.context) + "; it must be at least 4");
  }
  if (flags.scored < 0) return InvalidArgument("--tokens is negative; 0 scores the second half of each window");
  if (flags.max_tokens < 0) return InvalidArgument("--max-tokens is negative; 0 takes the whole text");
  return OkStatus();
}

Result<std::vector<Window>> ReadWindows(const Engine& engine, const WindowFlags& flags, const std::string& text) {
  EncodeOptions with, without;
  without.add_special_tokens = false;
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, engine.tokenizer()->Encode(text, without));
  if (flags.max_tokens > 0 && static_cast<int64_t>(ids.size()) > flags.max_tokens) ids.resize(flags.max_tokens);
  // What stands before a text: the ids of "a" with special tokens, up to those of "a" without.
  ASSIGN_OR_RETURN(const std::vector<int32_t> bare, engine.tokenizer()->Encode("a", without));
  ASSIGN_OR_RETURN(std::vector<int32_t> opening, engine.tokenizer()->Encode("a", with));
  opening.resize(std::search(opening.begin(), opening.end(), bare.begin(), bare.end()) - opening.begin());
  if (static_cast<int64_t>(opening.size()) >= flags.context / 2)
    return InvalidArgument("--context is too short for this tokenizer");
  std::vector<Window> windows = CutWindows(ids, opening, flags.context, flags.scored);
  if (windows.empty()) {
    return InvalidArgument(flags.text_file + " has " + std::to_string(ids.size()) +
                           " tokens; more than half of --context " + std::to_string(flags.context) + " are needed");
  }
  return windows;
}

Result<std::vector<WindowSums>> RunWindows(Engine& engine, const std::vector<AttentionSpec>& specs,
                                           const std::vector<Window>& windows, Progress& progress) {
  std::vector<WindowSums> scores(specs.size());
  ASSIGN_OR_RETURN(const std::vector<PolicyGroup> groups, GroupPolicies(engine, specs));
  int64_t of_a_policy = 0, seen = 0;
  for (const Window& window : windows) of_a_policy += static_cast<int64_t>(window.forced.size());
  const int64_t wanted = of_a_policy * static_cast<int64_t>(specs.size());
  for (const PolicyGroup& group : groups) {
    Status failure;
    std::vector<std::string> ids;
    const double start = NowSeconds();
    for (const Window& window : windows) {
      GenerationRequest request;
      request.prompt = window.prompt;
      request.forced = window.forced;
      request.sampling.temperature = 0;
      request.stopping.max_tokens = static_cast<int>(window.forced.size());
      request.stopping.ignore_eos = true;
      request.logprobs = 0;
      GoOnWith(specs, group, &request);
      ASSIGN_OR_RETURN(ids.emplace_back(), engine.Submit(std::move(request), [&](const TokenEvent& event) {
        if (!event.status.ok()) failure = event.status;
        WindowSums& score = scores[group[static_cast<size_t>(event.sequence)]];
        for (size_t i = 0; i < event.logprobs.size(); ++i) {
          ++seen;
          if (event.index + i == 0) continue;
          score.nll -= event.logprobs[i].chosen.logprob;
          ++score.tokens;
        }
        if (event.finished) score.reads += event.attention;
      }));
    }
    RETURN_IF_ERROR(RunToEnd(engine, ids, [&] {
      progress.Update(static_cast<double>(seen) / wanted,
                      std::to_string(seen) + " of " + std::to_string(wanted) + " tokens");
    }));
    RETURN_IF_ERROR(failure);
    for (const size_t index : group) scores[index].seconds = NowSeconds() - start;
  }
  if (seen != wanted) {
    return Internal("scored " + std::to_string(seen) + " of " + std::to_string(wanted) + " tokens");
  }
  return scores;
}

Result<bool> Selects(const Engine& engine, const AttentionSpec& spec, int64_t context) {
  const int page_size = engine.options().page_size;
  ASSIGN_OR_RETURN(const PolicyShape shape, ShapeOf(engine.options(), engine.config()));
  ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, shape));
  for (int layer = 0; layer < engine.config().layers; ++layer) {
    if (!policy->IsDense(context / 2, layer, page_size)) return true;
  }
  return false;
}

}  // namespace quire::launch
