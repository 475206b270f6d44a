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
#include "core/base/status.h"
#include "kernels/attention_decode.h"
#include "kernels/linear.h"
#include "kernels/machine.h"
#include "kernels/page_table.h"
#include "kernels/selection/policy.h"
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

// Each of them `repeats` times in turns, once before to warm up, with a pass of the probe ahead of every timing.
// CANCELLED on Ctrl-C. shown: [from, to] of the progress.
Status TimeInTurns(const Context& ctx, int repeats, std::vector<Timed>* timed, ReadProbe* probe, Progress* progress,
                   double from, double to);

// One layer of cache for `batch` sequences with room for `length` tokens each, its pages and groups in random places.
class BenchCache {
 public:
  static int64_t Bytes(const PageFormat& format, int64_t batch, int64_t length);
  // RESOURCE_EXHAUSTED, with both figures, when so many bytes aren't free.
  static Status CheckRoom(const PageFormat& format, int64_t batch, int64_t length);
  static Result<std::unique_ptr<BenchCache>> Create(const PageFormat& format, int batch, int64_t length,
                                                    uint64_t seed);
  // Fills [0, length) of every sequence by the same kernel that a step appends with: uniform in [−1, 1).
  void Fill(const Context& ctx, int64_t length, uint64_t seed);

  LayerPages pages;
  PageTableView table;

 private:
  BenchCache() = default;
  Buffer k_, v_, meta_, over_;
  std::vector<int32_t> page_ids_, page_begin_, group_ids_, group_begin_;
};

std::vector<float> NormalFloats(size_t count, uint64_t seed);

// Everything that timed closures point to; lives as long as they do.
struct BenchMemory {
  std::vector<std::unique_ptr<BenchCache>> caches;
  std::vector<std::unique_ptr<std::vector<float>>> floats;
  std::vector<std::unique_ptr<std::vector<int32_t>>> ints;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<std::unique_ptr<AttentionPolicy>> policies;
  std::vector<std::unique_ptr<std::vector<PageHistory>>> histories;
  std::vector<std::unique_ptr<SelectionView>> selections;
  std::vector<std::unique_ptr<Weight>> weights;

  float* Floats(std::vector<float> values) {
    return floats.emplace_back(std::make_unique<std::vector<float>>(std::move(values)))->data();
  }
  int32_t* Ints(std::vector<int32_t> values) {
    return ints.emplace_back(std::make_unique<std::vector<int32_t>>(std::move(values)))->data();
  }
  Result<void*> Bytes(size_t bytes) {
    ASSIGN_OR_RETURN(Buffer buffer, Buffer::Create(std::max<size_t>(bytes, 64)));
    return static_cast<void*>(buffers.emplace_back(std::make_unique<Buffer>(std::move(buffer)))->data());
  }
};

// The decode attention of `batch` sequences of `depth` tokens under some policies, over one cache: a policy that
// selects at this depth has a part that selects, one that attends and, if it keeps a history, one that remembers.
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
    double line_bytes = 0;            // counted: the lines that selection reads, and the pages that attention does
    double formula_bytes = -1;        // what the policy table's formula gives; negative: it depends on the data
    double Seconds(const std::vector<Timed>& timed) const;  // the sum of the parts' medians
  };
  const std::vector<Step>& steps() const { return steps_; }

 private:
  PolicyBench(const Context& ctx, const Options& options) : ctx_(ctx), options_(options) {}
  Status Add(const AttentionSpec& spec);
  Status AddSelected(const AttentionPolicy& policy, int layer, Step step);
  void AddHistory(const AttentionPolicy& policy, SelectParams* select);

  Context ctx_;
  Options options_;
  AttentionDecodeParams decode_;
  BenchMemory memory_;
  std::vector<Timed> timed_;
  std::vector<Step> steps_;
};

}  // namespace quire::launch
