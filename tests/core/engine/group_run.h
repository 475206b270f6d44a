// One run whose tokens, distribution and pages are compared between one rank and several: what threads
// (group_pages_test) and processes (mpi_group_main) share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "tests/core/engine/group_pages.h"

namespace quire {

struct GroupRun {
  EngineOptions options;
  std::vector<int32_t> prompt;
  int tokens = 0;
  int page_size = 4;
};

// The model in the cache folder; "" when it is not there.
inline std::string SmolLM2Path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string root = cache != nullptr && *cache ? cache : std::string(home != nullptr ? home : "") + "/.cache";
  const std::string path = root + "/quire/models/SmolLM2-135M-Instruct.gguf";
  return std::ifstream(path).good() ? path : "";
}

// name: stories260K, gqa (random weights, 8 query heads on 2 KV heads), gemma (random weights of Gemma-2's kind, 4 on 2)
// or smollm2.
inline GroupRun MakeGroupRun(const std::string& name) {
  GroupRun run;
  EngineOptions& o = run.options;
  o.threads = 1;
  o.dtype = "float32";
  o.max_num_seqs = 1;
  o.load_tokenizer = false;
  const auto quest = [&](int budget, int dense_layers) {
    o.attention = {{"quest",
                    {{"token_budget", std::to_string(budget)},
                     {"dense_layers", std::to_string(dense_layers)},
                     {"sink_tokens", "4"},
                     {"recent_tokens", "8"}}}};
  };
  int vocab = 0, length = 0;
  if (name == "smollm2") {
    o.model = SmolLM2Path();
    o.page_size = 16;
    o.max_model_len = 512;
    quest(160, 2);
    vocab = 49152, length = 400, run.tokens = 24;
  } else {
    const bool dummy = name != "stories260K";
    o.model = std::string(QUIRE_SOURCE_DIR) + "/tests/data/" + name + (dummy ? "-dummy" : "");
    o.load_format = dummy ? "dummy" : "auto";
    o.page_size = 4;
    quest(64, 0);
    vocab = dummy ? 701 : 512, length = 200, run.tokens = 100;
  }
  uint32_t seed = 12345;
  for (int i = 0; i < length; ++i) {
    seed = seed * 1664525u + 1013904223u;
    run.prompt.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(vocab)));
  }
  return run;
}

struct GroupOutput {
  std::vector<int32_t> ids;
  std::vector<TokenLogprobs> logprobs;  // of the whole vocabulary, or its best 512
  AttentionReads attention;
  Status status;
};

inline GroupOutput Generate(Engine& engine, const GroupRun& run) {
  GenerationRequest request;
  request.prompt = run.prompt;
  request.sampling.temperature = 0;
  request.stopping.max_tokens = run.tokens;
  request.stopping.ignore_eos = true;
  request.logprobs = std::min(512, engine.config().vocab);
  GroupOutput out;
  const auto id = engine.Submit(std::move(request), [&](const TokenEvent& event) {
    out.ids.insert(out.ids.end(), event.token_ids.begin(), event.token_ids.end());
    out.logprobs.insert(out.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (!event.status.ok()) out.status = event.status;
    if (event.finished) out.attention = event.attention;
  });
  if (!id.ok()) {
    out.status = id.status();
  } else if (const Status ran = engine.Run(); !ran.ok()) {
    out.status = ran;
  }
  return out;
}

// The most that a token's log-probability differs between the runs; infinite when their best tokens are others. Tokens
// whose logits are equal to within rounding may change places.
inline double LargestDifference(const GroupOutput& a, const GroupOutput& b) {
  if (a.logprobs.size() != b.logprobs.size() || a.ids != b.ids) return INFINITY;
  double largest = 0;
  for (size_t t = 0; t < a.logprobs.size(); ++t) {
    std::map<int32_t, float> values;
    for (const TokenLogprob& token : a.logprobs[t].top) values[token.id] = token.logprob;
    size_t absent = 0;
    for (const TokenLogprob& token : b.logprobs[t].top) {
      const auto found = values.find(token.id);
      if (found == values.end()) {
        ++absent;  // at the end of the best ones
        largest = std::max(largest, std::abs(double{token.logprob} - a.logprobs[t].top.back().logprob));
      } else {
        largest = std::max(largest, std::abs(double{token.logprob} - found->second));
      }
    }
    if (absent > 4) return INFINITY;
  }
  return largest;
}

// What is wrong with `many` ranks' run beside that of one; "" when nothing is. Prints the pages' comparison.
inline std::string CompareGroupRuns(const std::string& name, int ranks, const GroupOutput& one,
                                    const PageChoices& one_pages, const GroupOutput& many,
                                    const PageChoices& many_pages, int k_dim) {
  if (!one.status.ok()) return one.status.ToString();
  if (!many.status.ok()) return many.status.ToString();
  const double difference = LargestDifference(many, one);
  const PageComparison pages = ComparePages(one_pages, many_pages, k_dim);
  std::printf("%s on %d ranks: logits within %.1e; %s\n", name.c_str(), ranks, difference, pages.ToString().c_str());
  if (many.ids != one.ids) return "the tokens differ";
  if (!(difference <= 1e-4)) return "log-probabilities differ by " + std::to_string(difference);
  if (!pages.same_keys || pages.lists == 0) return "layers, lengths or heads that chose pages differ";
  if (pages.unexplained > 0) return std::to_string(pages.unexplained) + " pages differ by more than rounding explains";
  if (!(pages.moved <= 1e-4)) return "scores moved by more than rounding moves them";
  if (many.attention.pages_read != one.attention.pages_read ||
      many.attention.pages_total != one.attention.pages_total) {
    return "the counts of pages differ";
  }
  return "";
}

}  // namespace quire
