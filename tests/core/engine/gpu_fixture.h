// Shared by the tests of engines on a GPU: options of small models.
#pragma once

#include <map>
#include <vector>

#include "tests/core/engine/engine_fixture.h"

namespace quire {

inline EngineOptions OnGpu(EngineOptions options) {
  options.device = "cuda";
  return options;
}

// On the CPU, as the fixture says.
inline EngineOptions Small(const char* model) {
  EngineOptions options = ModelOptions(model);
  options.kv_cache_bytes = 2 << 20;
  options.max_num_batched_tokens = 64;
  return options;
}

// Policies that run on a GPU, with budgets for prompts of a few tokens in pages of 4.
inline std::vector<AttentionSpec> SmallGpuPolicies() {
  std::vector<AttentionSpec> specs;
  for (const char* spec : {
           "quest:token_budget=16:dense_layers=1",
           "quest:token_budget=16:dense_layers=1:budget_share=0.8",
           "hierarchical:token_budget=16:dense_layers=1",
           "hierarchical:token_budget=16:dense_layers=1:reuse=3",
           "hybrid:token_budget=16:dense_layers=1:channels=3",
           "top-p:token_budget=16:dense_layers=1:loose=0.7:p=0.8",
           "top-p:selector=hybrid:token_budget=16:dense_layers=1:loose=0.7:p=0.5",
           "sparq:token_budget=16:dense_layers=1:channels=4",
           "sparq:token_budget=16:dense_layers=1:channels=4:v_mean=on",
           "sparq:level=token:token_budget=13:dense_layers=0:channels=4:v_mean=on",
           "streaming:token_budget=18:dense_layers=1",
           "streaming:token_budget=11:sink_tokens=0:dense_layers=0",
           "swa:token_budget=16:dense_layers=1:rows=3",
           "h2o:token_budget=16:dense_layers=0",
           "tova:token_budget=16:dense_layers=1",
           "top-p:selector=h2o:token_budget=16:dense_layers=1:loose=0.7:p=0.8",
       }) {
    specs.push_back(*AttentionSpec::Parse(spec));
  }
  return specs;
}

// A request of stories260K for each of SERVING.md's parameters of sampling, penalties, bias and stopping ids, named by it. The
// values are such that each but the first changes the greedy tokens, and the penalties those of logit_bias.
inline std::vector<GenerationRequest> EverySamplingParameter() {
  std::vector<GenerationRequest> requests;
  const auto add = [&](const char* name, auto&& set) {
    GenerationRequest request = Greedy({1, 403, 407, 261, 378}, 10);
    request.request_id = name;
    request.sampling.seed = 17;
    set(request, request.sampling);
    requests.push_back(request);
  };
  using R = GenerationRequest;
  using S = SamplingParams;
  add("greedy", [](R&, S&) {});
  add("temperature", [](R&, S& s) { s.temperature = 1; });
  add("top_k", [](R&, S& s) { s.temperature = 1.5f, s.top_k = 5; });
  add("top_p", [](R&, S& s) { s.temperature = 1, s.top_p = 0.8f; });
  add("min_p", [](R&, S& s) { s.temperature = 1.5f, s.min_p = 0.05f; });
  add("seed", [](R&, S& s) { s.temperature = 1, s.seed = 18; });
  add("n", [](R&, S& s) { s.temperature = 1.5f, s.n = 3; });
  add("repetition", [](R&, S& s) { s.repetition_penalty = 5; });
  const std::map<int32_t, float> four = {{261, 90.0f}, {300, 90.0f}, {301, 90.0f}, {302, 90.0f}};
  add("logit_bias", [&](R&, S& s) { s.logit_bias = four; });
  add("presence", [&](R&, S& s) { s.logit_bias = four, s.presence_penalty = 2; });
  add("frequency", [&](R&, S& s) { s.logit_bias = four, s.frequency_penalty = 2; });
  add("logprobs", [](R& r, S& s) { s.temperature = 1.5f, s.seed = 19, s.repetition_penalty = 1.2f, r.logprobs = 4; });
  add("forced", [](R& r, S&) { r.forced = {407, 261, 378, 432}, r.logprobs = 2; });
  add("min_tokens", [](R& r, S& s) {  // all but a few ids stop it, and so aren't drawn until then
    r.stopping.min_tokens = 8;
    for (int32_t id = 0; id < 512; ++id) {
      if (id % 9 != 0) r.stopping.stop_token_ids.push_back(id);
    }
    s.temperature = 0;
  });
  add("all", [](R& r, S& s) {
    s = {.temperature = 1.6f, .top_k = 50, .top_p = 0.95f, .min_p = 0.01f, .seed = 5, .n = 2, .repetition_penalty = 1.2f,
         .presence_penalty = 0.3f, .frequency_penalty = 0.2f, .logit_bias = {{432, 2.0f}}};
    r.logprobs = 1;
  });
  return requests;
}

}  // namespace quire
