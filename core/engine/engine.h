// Engine: one group's model, cache and scheduler. Continuous batching over a paged cache: each Step plans (scheduler →
// StepPlan), executes (decoder), samples, and calls back. The library's front door.
//
//   auto engine = Engine::Create(options);
//   engine->Submit(request, [](const TokenEvent& e) { … });
//   engine->Run();   // until idle
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/io/tokenizer.h"
#include "core/model/decoder.h"
#include "core/model/model_config.h"

namespace quire {

struct EngineOptions {
  std::string model;                 // folder or .gguf
  std::string load_format = "auto";  // or "dummy"
  std::string dtype = "auto";        // auto | float32 | bfloat16 | float16: of the matrices
  std::string kv_cache_dtype = "auto";  // auto: as dtype; float32 | bfloat16 | float16
  int threads = 0;                   // 0: the processors this process may use
  int64_t max_model_len = 0;         // 0: the model's
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;  // rows of one step; ≥ max_num_seqs
  int page_size = 16;
  int64_t kv_cache_bytes = 0;        // 0: enough for max_num_seqs × max_model_len or a share of free memory, the smaller
  std::vector<AttentionSpec> attention = {AttentionSpec{}};  // policies requests may use; the first is the default
  bool batch_invariant = false;
  uint64_t seed = 0;                 // of requests without one; also of dummy weights
  bool load_tokenizer = true;        // false: token ids in and out only, no stop strings
  std::function<void(const std::string& phase, double fraction)> progress;  // loading; may be empty
};

struct MemoryBytes {  // of this rank
  size_t weights = 0, kv_cache = 0, kv_metadata = 0, scratch = 0;
  size_t total() const { return weights + kv_cache + kv_metadata + scratch; }
};

struct EngineStats {
  int running = 0, waiting = 0;
  int64_t pages_total = 0, pages_free = 0;  // of the tightest cache group
  int64_t steps = 0, preemptions = 0;
  int64_t prompt_tokens = 0, generation_tokens = 0;
  int64_t requests_finished = 0;
  AttentionStats attention;  // sums since the start
  double prefill_seconds = 0, decode_seconds = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  static Result<std::unique_ptr<Engine>> Create(EngineOptions options);

  // Queues a request; thread safe. INVALID_ARGUMENT (parameters, ids out of range, empty or too long a prompt),
  // RESOURCE_EXHAUSTED (could never fit the cache), ALREADY_EXISTS. Returns the request's id.
  virtual Result<std::string> Submit(GenerationRequest request, EventCallback callback) = 0;
  // Ends a request with one final ABORTED event per unfinished sequence; idempotent, thread safe.
  virtual void Cancel(const std::string& request_id) = 0;
  // One step: admits, runs and samples. Returns false when there was nothing to do.
  virtual Result<bool> Step() = 0;
  // Steps until nothing is queued or running.
  virtual Status Run() = 0;

  virtual EngineStats Stats() const = 0;
  virtual MemoryBytes Memory() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer* tokenizer() const = 0;  // null when not loaded
  virtual const EngineOptions& options() const = 0;  // with every auto resolved
  virtual double load_seconds() const = 0;

  // For benches and evaluation: a sequence of `length` tokens whose cache holds seeded random K and V, ready to decode as a
  // request would (greedy, ignoring eos) for `steps` tokens.
  virtual Result<std::string> SubmitRandomCache(int64_t length, int steps, uint64_t seed,
                                                std::optional<AttentionSpec> attention, EventCallback callback) = 0;
  virtual void set_selection_observer(SelectionObserver* observer) = 0;  // not owned
};

// What Create would need, without loading: for `quire info`.
Result<MemoryBytes> PredictMemory(const EngineOptions& options);

}  // namespace quire
