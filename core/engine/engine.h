// Engine: one group's model, cache and scheduler. Continuous batching over a paged cache: each Step plans (scheduler →
// StepPlan), executes (decoder), samples, and calls back. The library's front door.
//
//   auto engine = Engine::Create(options);
//   engine->Submit(request, [](const TokenEvent& e) { … });
//   engine->Run();   // until idle
//
// On several ranks (threads of a process, or processes of an MPI job) rank 0 makes the engine, with its communicator in
// the options, and all others follow it:
//
//   if (comm->rank() != 0) return FollowLeader({.comm = comm});   // group.h; returns when the leader releases them
//   options.comm = comm;
//   … as above; the engine is destroyed …
//   ReleaseFollowers(comm);
//
// A program that owns MPI_Init itself asks for MPI_THREAD_MULTIPLE (at least SERIALIZED), makes the communicator by
// MakeMpiCommunicator (parallel/mpi_communicator.h, which neither initialises nor ends an MPI that is up), and destroys
// it before its MPI_Finalize. Options are rank 0's alone; every rank opens the same model path. Engines may follow one
// another on one communicator; between them, and while an engine lives, no one else may use it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/histogram.h"
#include "core/base/progress.h"
#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/io/tokenizer.h"
#include "core/model/decoder.h"
#include "core/model/model_config.h"
#include "parallel/communicator.h"
#include "parallel/counted_communicator.h"

namespace quire {

struct EngineOptions {
  std::string model;                 // folder or .gguf
  std::string load_format = "auto";  // or "dummy"
  std::string dtype = "auto";        // auto | float32 | bfloat16 | float16: of the matrices
  std::string kv_cache_dtype = "auto";  // auto: as dtype; float32 | bfloat16 | float16
  std::string device = "auto";       // auto (GPUs where every rank has one) | cpu | cuda
  double gpu_memory_utilization = 0.9;  // of a GPU's memory that may be in use, (0, 1]
  bool share_gpu = false;            // ranks of a host may share its GPUs; their sums then go through host memory (slow)
  bool enforce_eager = false;        // on a GPU: decode steps launch by launch, not as CUDA graphs
  int threads = 0;                   // of each rank; 0: its share of the processors that it and others may use
  int64_t max_model_len = 0;         // 0: the model's
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;  // rows of one step; ≥ max_num_seqs
  int page_size = 16;
  int64_t kv_cache_bytes = 0;        // of each rank; 0: enough for max_num_seqs × max_model_len or a share of free memory, the smaller
                                     // (on a GPU, all that gpu_memory_utilization leaves)
  // Policies that requests may use, each request with options of its own if it likes; the first is the default.
  std::vector<AttentionSpec> attention = {AttentionSpec{}};
  bool batch_invariant = false;
  // Counts, step by step, how much of the attention may have been left out (AttentionReads::missing_mass_bound); on the CPU as
  // costly as quest's selection for each query head.
  bool missing_mass_bound = false;
  uint64_t seed = 0;                 // of requests without one; also of dummy weights
  bool load_tokenizer = true;        // false: token ids in and out only, no stop strings
  std::function<void(const std::string& phase, double fraction)> progress;  // loading; may be empty
  Communicator* comm = nullptr;           // of the group, rank 0's; not owned; null: alone
  ProgressMark* progress_mark = nullptr;  // what this rank is doing, for a monitor; not owned; may be null
};

struct MemoryBytes {  // of this rank
  size_t weights = 0, kv_cache = 0, kv_metadata = 0, history = 0, scratch = 0;
  size_t total() const { return weights + kv_cache + kv_metadata + history + scratch; }
};

// What a rank of the group has, as told when the engine was made.
struct RankInfo {
  int rank = 0;
  std::string host;
  int threads = 0;
  int64_t weight_bytes_read = 0;  // of the checkpoint
  MemoryBytes memory;             // scratch: before the first step
};

// How sequences have ended since the start, and the times of those that ended by themselves (stop or length).
struct FinishedSequences {
  int64_t stop = 0, length = 0, aborted = 0;  // aborted: cancelled or failed
  DurationHistogram time_to_first_token;      // from Submit
  DurationHistogram time_per_output_token;    // (end − first token) / (tokens − 1), of those with two or more
  DurationHistogram e2e;                      // from Submit to the end
  DurationHistogram queue, prefill, decode;   // the parts of e2e, see RequestTimings
};

struct EngineStats {
  int running = 0, waiting = 0;
  int64_t pages_total = 0, pages_free = 0;  // of the tightest cache group
  int64_t steps = 0, preemptions = 0;
  int64_t prompt_tokens = 0, generation_tokens = 0;
  int64_t requests_finished = 0;
  FinishedSequences sequences;
  AttentionStats attention;  // sums since the start; reads of all ranks, each KV head once; seconds of this rank
  double prefill_seconds = 0, decode_seconds = 0;
  CollectiveStats collectives;         // of rank 0 since the engine was made
  double step_broadcast_seconds = 0;   // telling the other ranks what to do: plans to bytes, and their broadcast
};

class Engine {
 public:
  virtual ~Engine() = default;
  // With a communicator of several ranks: on rank 0, while the others are in FollowLeader. What fails on any rank is
  // returned here (and told to all), with that rank's number and host.
  static Result<std::unique_ptr<Engine>> Create(EngineOptions options);

  // Queues a request; thread safe. INVALID_ARGUMENT (parameters, ids out of range, empty or too long a prompt),
  // RESOURCE_EXHAUSTED (could never fit the cache), ALREADY_EXISTS. Returns the request's id.
  virtual Result<std::string> Submit(GenerationRequest request, EventCallback callback) = 0;
  // Ends a request with one final ABORTED event per unfinished sequence; idempotent, thread safe.
  virtual void Cancel(const std::string& request_id) = 0;
  // One step: admits, runs and samples. Returns false when there was nothing to do. An error means that the group
  // of ranks is lost: every request has had its last event, and later steps return the same.
  virtual Result<bool> Step() = 0;
  // Steps until nothing is queued or running.
  virtual Status Run() = 0;

  virtual EngineStats Stats() const = 0;
  virtual MemoryBytes Memory() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer* tokenizer() const = 0;  // null when not loaded
  virtual const EngineOptions& options() const = 0;  // with every auto resolved
  virtual double load_seconds() const = 0;
  virtual std::vector<RankInfo> Ranks() const = 0;  // one a rank

  // For benches and evaluation: a sequence of `length` tokens whose cache holds seeded random K and V, ready to decode as a
  // request would (greedy, ignoring eos) for `steps` tokens.
  virtual Result<std::string> SubmitRandomCache(int64_t length, int steps, uint64_t seed,
                                                std::optional<AttentionSpec> attention, EventCallback callback) = 0;
  virtual void set_selection_observer(SelectionObserver* observer) = 0;  // not owned; on the CPU only
};

// What Create would need on rank `rank` of `tp`, without loading: for `quire info`. Automatic sizes assume that the ranks
// share this machine.
Result<MemoryBytes> PredictMemory(const EngineOptions& options, int tp = 1, int rank = 0);

}  // namespace quire
