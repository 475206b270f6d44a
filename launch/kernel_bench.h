// What the benches of single kernels share: something timed, one layer of cache of any size, and the memory that timed
// kernels point to; and the rows of decode attention under a policy, its parts apart.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "kernels/attention_decode.h"
#include "kernels/linear.h"
#include "kernels/page_table.h"
#include "kernels/selection/policy.h"
#include "launch/bench_clock.h"
#include "launch/output.h"
#include "launch/progress.h"

namespace quire::launch {

// What a bench of one layer takes, and what is wrong with it.
struct LayerFlags {
  int q_heads, kv_heads, head_dim, page_size, threads;
  DType dtype;
  double machine_seconds;
};
Result<PageFormat> CheckLayerFlags(const LayerFlags& flags);
// INVALID_ARGUMENT for the first flag below 1.
Status CheckAtLeastOne(std::initializer_list<std::pair<const char*, int>> flags);

// Something timed: `run` does it once; bytes and flops are what it must move and compute.
struct Timed {
  Json row;  // name, attention, sizes
  double bytes = 0, flops = 0;
  std::function<void()> run;
  std::vector<double> seconds;
};

// Each of them `repeats` times in turns, once before to warm up. CANCELLED on Ctrl-C. shown: [from, to] of the progress.
Status TimeInTurns(int repeats, std::vector<Timed>* timed, BenchClock* clock, Progress* progress, double from, double to);

std::vector<float> NormalFloats(size_t count, uint64_t seed);

// Everything that timed closures point to, in the device's memory; lives as long as they do.
struct BenchMemory {
  explicit BenchMemory(const Context& context) : ctx(context) {}

  Context ctx;
  std::vector<Buffer> buffers;
  std::vector<std::unique_ptr<AttentionPolicy>> policies;
  std::vector<std::unique_ptr<SelectionView>> selections;
  std::vector<std::unique_ptr<Weight>> weights;

  // Memory of zeros; at least a few bytes.
  Result<void*> Bytes(size_t bytes);
  // A copy of the host's values.
  template <typename T>
  Result<T*> Copy(const std::vector<T>& values) {
    ASSIGN_OR_RETURN(void* to, Bytes(values.size() * sizeof(T)));
    RETURN_IF_ERROR(CopyToDevice(ctx.device, to, values.data(), values.size() * sizeof(T), ctx.stream));
    return static_cast<T*>(to);
  }
  template <typename T>
  Result<T*> Zeros(size_t count) {
    ASSIGN_OR_RETURN(void* to, Bytes(count * sizeof(T)));
    return static_cast<T*>(to);
  }
};

// One layer of cache for `batch` sequences with room for `length` tokens each, its pages and groups in random places.
class BenchCache {
 public:
  static int64_t Bytes(const PageFormat& format, int64_t batch, int64_t length);
  // RESOURCE_EXHAUSTED, with both figures, when so many bytes aren't free.
  static Status CheckRoom(const PageFormat& format, int64_t batch, int64_t length, size_t free_bytes);
  // codes: of metadata in 8 bits, too.
  static Result<std::unique_ptr<BenchCache>> Create(const Context& ctx, const PageFormat& format, int batch,
                                                    int64_t length, uint64_t seed, bool codes = false);
  // Fills [0, length) of every sequence by the same kernel that a step appends with: uniform in [−1, 1).
  Status Fill(int64_t length, uint64_t seed);

  LayerPages pages;
  PageTableView table;
  PageTableView host_table;  // the same in arrays that the host may look into

 private:
  explicit BenchCache(const Context& ctx) : memory_(ctx) {}
  BenchMemory memory_;
  std::vector<int32_t> page_ids_, page_begin_, group_ids_, group_begin_;
};

// The decode attention of `batch` sequences of `depth` tokens under some policies, over one cache: a policy that
// selects at this depth has a part that selects, one that attends and, if it keeps a history, one that remembers. One
// that evicts selects who leaves, and attends to as many of the cache's first tokens as it keeps.
class PolicyBench {
 public:
  struct Options {
    PageFormat format;
    int q_heads = 0, batch = 1;
    int64_t depth = 0;
    uint64_t seed = 0;
  };
  static Result<std::unique_ptr<PolicyBench>> Create(const Context& ctx, const Options& options,
                                                     const std::vector<AttentionSpec>& specs);
  std::vector<Timed>& timed() { return timed_; }

  // The whole step of one policy: the indices of its parts in timed(); −1 where it has none.
  struct Step {
    Json row;
    int select = -1, attend = -1, remember = -1;
    int whole = -1;  // on a GPU: the parts one behind the other, as a step runs them
    double line_bytes = 0;            // counted: the lines that selection reads, and the pages that attention does
    double formula_bytes = -1;        // what the policy table's formula gives; negative: it depends on the data
    double Seconds(const std::vector<Timed>& timed) const;  // of the whole where it was timed, else the sum of the parts' medians
  };
  const std::vector<Step>& steps() const { return steps_; }

 private:
  PolicyBench(const Context& ctx, const Options& options) : ctx_(ctx), options_(options), memory_(ctx) {}
  PolicyShape Shape() const;
  Status Add(const AttentionSpec& spec);
  Status AddSelected(const AttentionPolicy& policy, int layer, Step step);
  Status AddEvicting(const AttentionPolicy& policy, Step step);
  // On a GPU the parts as one, behind them.
  void AddWhole(Step* step);
  // Maps of all rows, [batch] in the device's memory, of so many slots.
  Result<const SlotMap*> AddSlotMaps(int64_t kept);
  // Who leaves, by such maps.
  Status AddLeaving(const AttentionPolicy& policy, const SlotMap* maps, int64_t kept, Timed* leave);
  // What the policy weighs of each row in the end.
  Status AddRememberedSlots(const AttentionPolicy& policy, const AttentionDecodeParams& decode, const SlotMap* maps,
                            Step* step);
  // Attention over sinks and a window; turning queries is left out.
  Status AddSinks(const AttentionDecodeParams& decode, const SinkWindow& window, Timed* attention);
  Status AddHistory(const AttentionPolicy& policy, SelectParams* select);
  // The same rows with arrays that the host may look into, for counting bytes.
  SelectParams OnHost(SelectParams select) const;

  Context ctx_;
  Options options_;
  AttentionDecodeParams decode_;
  BenchMemory memory_;
  std::unique_ptr<BenchCache> cache_;
  std::vector<float> host_q_;  // [batch][q_heads][k_dim]
  std::vector<int32_t> host_seqs_, host_lengths_;
  std::vector<Timed> timed_;
  std::vector<Step> steps_;
};

}  // namespace quire::launch
