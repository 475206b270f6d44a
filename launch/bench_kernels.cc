// quire bench kernels: the kernels of a step one by one, at a shape given by flags or by a model's config: decode
// attention dense and by policies (selection, attention and remembering apart, and their sum beside dense), prefill
// attention, append, and matrix products for 1, 8 and 512 rows. Kernels take turns, those of one depth and batch
// together, a streaming read of more than the last-level cache goes between any two timings, and medians are printed,
// of the kernels and of that read.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/tensor.h"
#include "core/model/families.h"
#include "kernels/attention_prefill.h"
#include "kernels/kv_append.h"
#include "kernels/linear.h"
#include "launch/bench.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/kernel_bench.h"
#include "launch/output.h"
#include "launch/progress.h"

namespace quire::launch {
namespace {

struct KernelFlags {
  AttentionFlags attention;
  std::string model, format = "text", kv_cache_dtype = "bfloat16", dtype = "bfloat16", device = "auto";
  std::string depth = "32768", batch = "1", prefill = "2048", rows = "1,8,512";
  int threads = 0, page_size = 16, q_heads = 16, kv_heads = 4, head_dim = 64, hidden = 1024, ffn = 2816;
  int repeats = 9, chunk = 512;
  double machine_seconds = kMachineSeconds;
  uint64_t seed = 0;
};

// The figure of a step whose parts were timed apart: its sum, and how many times faster than dense it is.
Json StepRow(const PolicyBench::Step& step, const std::vector<Timed>& timed, const Json& dense_seconds,
             const MachineRates& rates) {
  Json row = step.row;
  row["name"] = "step";
  const double seconds = step.Seconds(timed);
  row["seconds"] = seconds;
  for (const auto& [field, part] : {std::pair<const char*, int>{"selection_seconds", step.select},
                                    {"attention_seconds", step.attend},
                                    {"remembering_seconds", step.remember}}) {
    row[field] = part < 0 ? 0.0 : Median(timed[static_cast<size_t>(part)].seconds);
  }
  AddBytes(step.line_bytes, seconds, rates, &row);
  row["formula_bytes"] = step.formula_bytes < 0 ? Json(nullptr) : Json(static_cast<int64_t>(step.formula_bytes));
  row["speedup"] = dense_seconds.is_null() ? Json(nullptr) : Json(dense_seconds.get<double>() / seconds);
  return row;
}

class KernelBench {
 public:
  KernelBench(const KernelFlags& flags, const Context& ctx) : flags_(flags), ctx_(ctx), memory_(ctx) {}

  std::vector<Timed> timed;

  Status AddPrefill(const PageFormat& format, int64_t length) {
    ASSIGN_OR_RETURN(const BenchCache* owned, AddCache(format, length));
    const BenchCache& cache = *owned;
    RETURN_IF_ERROR(caches_.back()->Fill(length, flags_.seed + 3));
    // As the engine does it: the prompt in chunks, each against all before it.
    const int64_t chunk = flags_.chunk;
    const int64_t width = int64_t{flags_.q_heads} * format.k_dim;
    ASSIGN_OR_RETURN(float* q, memory_.Copy(NormalFloats(std::min(length, chunk) * width, flags_.seed + 4)));
    ASSIGN_OR_RETURN(float* out, memory_.Zeros<float>(std::min(length, chunk) * flags_.q_heads * format.v_dim));
    auto params_of = [&, q, out] {
      AttentionPrefillParams params;
      params.q = q;
      params.q_stride = width;
      params.out = out;
      params.out_stride = int64_t{flags_.q_heads} * format.v_dim;
      params.q_heads = flags_.q_heads;
      params.num_chunks = 1;
      params.pages = cache.pages;
      params.table = cache.table;
      params.scale = 1.0f / std::sqrt(static_cast<float>(format.k_dim));
      return params;
    };
    auto parts = std::make_shared<std::vector<AttentionPrefillParams>>();
    size_t scratch = 0;
    std::vector<PrefillChunk> chunks;
    for (int64_t begin = 0; begin < length; begin += chunk) {
      chunks.push_back({0, 0, static_cast<int32_t>(std::min(chunk, length - begin)), static_cast<int32_t>(begin)});
    }
    ASSIGN_OR_RETURN(const PrefillChunk* there, memory_.Copy(chunks));
    for (size_t i = 0; i < chunks.size(); ++i) {
      AttentionPrefillParams& params = parts->emplace_back(params_of());
      params.chunks = there + i;
      params.rows = chunks[i].rows;
      scratch = std::max(scratch, AttentionPrefillWorkspace(ctx_, params));
    }
    ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(scratch));
    Timed& one = timed.emplace_back();
    one.row = {{"name", "prefill_attention"}, {"attention", "dense"}, {"length", length}, {"chunk", chunk}};
    one.flops = 2.0 * (format.k_dim + format.v_dim) * flags_.q_heads * length * (length + 1.0) / 2;
    one.run = [this, parts, workspace] {
      for (const AttentionPrefillParams& part : *parts) AttentionPrefill(ctx_, part, workspace);
    };
    return OkStatus();
  }

  Status AddAppend(const PageFormat& format, int64_t rows) {
    const int64_t length = (rows / format.page_size + 2) * format.page_size;
    ASSIGN_OR_RETURN(const BenchCache* cache, AddCache(format, length));
    KvAppendParams params;
    params.pages = cache->pages;
    params.table = cache->table;
    params.k_stride = int64_t{format.kv_heads} * format.k_dim;
    params.v_stride = int64_t{format.kv_heads} * format.v_dim;
    ASSIGN_OR_RETURN(params.k, memory_.Copy(NormalFloats(rows * params.k_stride, flags_.seed + 5)));
    ASSIGN_OR_RETURN(params.v, memory_.Copy(NormalFloats(rows * params.v_stride, flags_.seed + 6)));
    std::vector<int32_t> positions(rows);
    std::iota(positions.begin(), positions.end(), 0);
    ASSIGN_OR_RETURN(params.row_seq, memory_.Zeros<int32_t>(rows));
    ASSIGN_OR_RETURN(params.row_pos, memory_.Copy(positions));
    params.rows = rows;
    Timed& one = timed.emplace_back();
    one.row = {{"name", "append"}, {"attention", nullptr}, {"rows", rows}};
    // Floats read, cache elements written.
    one.bytes =
        static_cast<double>(rows) * format.kv_heads * (format.k_dim + format.v_dim) * (4 + ElementSize(format.dtype));
    one.run = [this, params] { KvAppend(ctx_, params); };
    return OkStatus();
  }

  Status AddLinear(const std::string& what, DType dtype, int64_t out_features, int64_t in_features,
                   const std::vector<int64_t>& rows) {
    ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(dtype, {out_features, in_features}));
    std::mt19937_64 random(flags_.seed + 7);
    std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
    VisitFloatDType(dtype, [&](auto zero) {
      using T = decltype(zero);
      T* data = tensor.data<T>();
      for (int64_t i = 0; i < out_features * in_features; ++i) data[i] = FromFloat<T>(uniform(random));
    });
    if (ctx_.session != nullptr) {
      ASSIGN_OR_RETURN(Tensor there, Tensor::Create(dtype, {out_features, in_features}, ctx_.device));
      RETURN_IF_ERROR(CopyToDevice(ctx_.device, there.data<std::byte>(), tensor.data<std::byte>(), tensor.bytes(), ctx_.stream));
      tensor = std::move(there);
    }
    ASSIGN_OR_RETURN(Weight made, Weight::Own(std::move(tensor)));
    Weight* weight = weights_.emplace_back(std::make_unique<Weight>(std::move(made))).get();
    RETURN_IF_ERROR(PrepareWeight(ctx_, *weight));
    for (int64_t m : rows) {
      ASSIGN_OR_RETURN(const float* x, memory_.Copy(NormalFloats(m * in_features, flags_.seed + 8)));
      ASSIGN_OR_RETURN(float* y, memory_.Zeros<float>(m * out_features));
      Timed& one = timed.emplace_back();
      one.row = {
          {"name", "linear_" + what}, {"attention", nullptr}, {"rows", m}, {"out", out_features}, {"in", in_features}};
      one.bytes =
          static_cast<double>(out_features) * in_features * ElementSize(dtype) + 4.0 * m * (in_features + out_features);
      one.flops = 2.0 * m * out_features * in_features;
      one.run = [this, x, y, m, weight, in_features, out_features] {
        Linear(ctx_, x, in_features, m, *weight, nullptr, y, out_features);
      };
    }
    return OkStatus();
  }

 private:
  Result<const BenchCache*> AddCache(const PageFormat& format, int64_t length) {
    ASSIGN_OR_RETURN(auto cache, BenchCache::Create(ctx_, format, 1, length, flags_.seed));
    return caches_.emplace_back(std::move(cache)).get();
  }

  const KernelFlags& flags_;
  Context ctx_;
  BenchMemory memory_;
  std::vector<std::unique_ptr<BenchCache>> caches_;
  std::vector<std::unique_ptr<Weight>> weights_;
};

Status RunBenchKernels(KernelFlags flags) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> depths, ParseIntList("--depth", flags.depth, 1));
  ASSIGN_OR_RETURN(const std::vector<int64_t> batches, ParseIntList("--batch", flags.batch, 1));
  ASSIGN_OR_RETURN(const std::vector<int64_t> prefills, ParseIntList("--prefill", flags.prefill, 1));
  ASSIGN_OR_RETURN(const std::vector<int64_t> rows, ParseIntList("--rows", flags.rows, 1));
  ASSIGN_OR_RETURN(const auto specs, CrossAttention(flags.attention, flags.page_size));
  ASSIGN_OR_RETURN(const DType cache_dtype, ParseFloatDType(flags.kv_cache_dtype));
  ASSIGN_OR_RETURN(const DType dtype, ParseFloatDType(flags.dtype));
  if (!flags.model.empty()) {
    ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(flags.model, "dummy", 0));
    const ModelConfig& c = checkpoint.config;
    flags.q_heads = c.q_heads, flags.kv_heads = c.kv_heads, flags.head_dim = c.head_dim;
    flags.hidden = c.hidden, flags.ffn = c.ffn;
  }
  RETURN_IF_ERROR(
      CheckAtLeastOne({{"--repeats", flags.repeats}, {"--chunk", flags.chunk}, {"--hidden", flags.hidden}, {"--ffn", flags.ffn}}));
  ASSIGN_OR_RETURN(const PageFormat format,
                   CheckLayerFlags({flags.q_heads, flags.kv_heads, flags.head_dim, flags.page_size, flags.threads,
                                    cache_dtype, flags.machine_seconds}));
  ASSIGN_OR_RETURN(const auto device, BenchDevice::Create(flags.device, flags.threads));
  ASSIGN_OR_RETURN(const size_t free_bytes, device->FreeBytes());
  for (int64_t depth : depths) {
    for (int64_t batch : batches) {
      RETURN_IF_ERROR(BenchCache::CheckRoom(format, batch, depth, free_bytes));
    }
  }
  KernelBench bench(flags, device->ctx());
  for (int64_t length : prefills) RETURN_IF_ERROR(bench.AddPrefill(format, length));
  RETURN_IF_ERROR(bench.AddAppend(format, 1));
  RETURN_IF_ERROR(bench.AddAppend(format, 512));
  RETURN_IF_ERROR(bench.AddLinear("gate_up", dtype, 2 * int64_t{flags.ffn}, flags.hidden, rows));
  RETURN_IF_ERROR(bench.AddLinear("down", dtype, flags.hidden, flags.ffn, rows));
  ASSIGN_OR_RETURN(MachineRates rates, device->Measure(flags.machine_seconds));
  ASSIGN_OR_RETURN(BenchClock clock, BenchClock::Create(device->ctx()));

  Progress progress("bench kernels");
  Json results = Json::array();
  const auto take = [&](std::vector<Timed>& timed) {
    clock.TakeBandwidth(&rates);
    for (Timed& one : timed) {
      if (one.row.is_null()) continue;  // shown as part of a step's row
      Json row = one.row;
      row["threads"] = device->threads();
      const double seconds = Median(one.seconds);
      row["seconds"] = seconds;
      if (one.bytes > 0) AddBytes(one.bytes, seconds, rates, &row);
      if (one.flops > 0) AddFlops(one.flops, seconds, rates, &row);
      results.push_back(std::move(row));
    }
  };
  // One depth and batch at a time, for their caches take the most memory: what is compared is timed in turns.
  const double parts = static_cast<double>(depths.size() * batches.size()) + 1;
  double done = 0;
  for (int64_t depth : depths) {
    for (int64_t batch : batches) {
      ASSIGN_OR_RETURN(auto policies, PolicyBench::Create(device->ctx(),
                                                          {.format = format,
                                                           .q_heads = flags.q_heads,
                                                           .batch = static_cast<int>(batch),
                                                           .depth = depth,
                                                           .seed = flags.seed},
                                                          specs));
      RETURN_IF_ERROR(TimeInTurns(flags.repeats, &policies->timed(), &clock, &progress, done / parts,
                                  (done + 1) / parts));
      take(policies->timed());
      Json dense;
      for (const auto& step : policies->steps()) {
        if (step.row["attention"] == "dense") dense = step.Seconds(policies->timed());
      }
      for (const auto& step : policies->steps()) {
        results.push_back(StepRow(step, policies->timed(), dense, rates));
        results.back()["threads"] = device->threads();
      }
      ++done;
    }
  }
  RETURN_IF_ERROR(
      TimeInTurns(flags.repeats, &bench.timed, &clock, &progress, done / parts, (done + 1) / parts));
  take(bench.timed);
  progress.Finish();
  WriteBench(flags.format, results, rates, device->threads(),
             {"name", "attention", "token_budget", "depth", "batch", "length", "rows", "seconds", "speedup", "bytes",
              "formula_bytes", "gb_s", "share_of_read_bandwidth", "gflop_s", "share_of_matmul_rate"});
  return OkStatus();
}

}  // namespace

Command AddBenchKernels(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("kernels", "The kernels of a step one by one, at any shape");
  auto flags = std::make_shared<KernelFlags>();
  flags->attention.attention = "dense,quest";
  flags->attention.token_budget = "2048";
  app->footer(
      "\nExample\n  quire bench kernels --depth 4096,32768 --q-heads 16 --kv-heads 4 --head-dim 64 --threads 2");
  AddFlag(*app, "--model,-m", &flags->model, "take the shape from this model's config");
  AddListFlag(*app, "--depth", &flags->depth, "tokens in the cache, for decode attention");
  AddListFlag(*app, "--batch", &flags->batch, "sequences that decode together");
  AddListFlag(*app, "--prefill", &flags->prefill, "prompt lengths, for prefill attention");
  app->add_option("--chunk", flags->chunk, "rows of a prompt that one step takes in")->capture_default_str();
  AddListFlag(*app, "--rows", &flags->rows, "rows of the matrix products");
  app->add_option("--q-heads", flags->q_heads, "query heads")->capture_default_str();
  app->add_option("--kv-heads", flags->kv_heads, "KV heads")->capture_default_str();
  app->add_option("--head-dim", flags->head_dim, "channels of a head")->capture_default_str();
  app->add_option("--hidden", flags->hidden, "width of the model")->capture_default_str();
  app->add_option("--ffn", flags->ffn, "width of its feed-forward layer")->capture_default_str();
  app->add_option("--repeats", flags->repeats, "timings of each kernel, in turns")->capture_default_str();
  AddMachineFlag(*app, &flags->machine_seconds);
  AddFlag(*app, "--dtype", &flags->dtype, "of the weights: float32, bfloat16, float16");
  AddFlag(*app, "--kv-cache-dtype", &flags->kv_cache_dtype, "of the cache: float32, bfloat16, float16");
  AddFlag(*app, "--page-size", &flags->page_size, "tokens in a page");
  AddFlag(*app, "--device", &flags->device, "auto, cpu or cuda");
  AddFlag(*app, "--threads,-t", &flags->threads, "0: the processors this process may use");
  AddFlag(*app, "--seed", &flags->seed, "of everything random");
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunBenchKernels(*flags); }); }};
}

}  // namespace quire::launch
