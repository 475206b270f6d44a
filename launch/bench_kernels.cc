// quire bench kernels: the kernels of a step one by one, at a shape given by flags or by a model's config: decode
// attention dense and by a policy (selection and attention apart), prefill attention, append, and matrix products for
// 1, 8 and 512 rows. Kernels take turns, a streaming read of more than the last-level cache goes between any two
// timings, and medians are printed, of the kernels and of that read.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/tensor.h"
#include "core/model/families.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_prefill.h"
#include "kernels/kv_append.h"
#include "kernels/linear.h"
#include "launch/bench.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/signals.h"

namespace quire::launch {
namespace {

struct KernelFlags {
  AttentionFlags attention;
  std::string model, format = "text", kv_cache_dtype = "bfloat16", dtype = "bfloat16";
  std::string depth = "32768", prefill = "2048", rows = "1,8,512";
  int threads = 0, page_size = 16, batch = 1, q_heads = 16, kv_heads = 4, head_dim = 64, hidden = 1024, ffn = 2816;
  int repeats = 9;
  double machine_seconds = kMachineSeconds;
  uint64_t seed = 0;
};

// Something timed: `run` does it once; bytes and flops are what it must move and compute.
struct Timed {
  Json row;  // name, attention, sizes
  double bytes = 0, flops = 0;
  std::function<void()> run;
  std::vector<double> seconds;
};

// One layer of cache for `batch` sequences with room for `length` tokens each, its pages and groups in random places.
class BenchCache {
 public:
  static Result<std::unique_ptr<BenchCache>> Create(const PageFormat& format, int batch, int64_t length,
                                                    uint64_t seed) {
    auto cache = std::unique_ptr<BenchCache>(new BenchCache);
    const int64_t pages = (length + format.page_size - 1) / format.page_size;
    const int64_t groups = (pages + kPagesPerGroup - 1) / kPagesPerGroup;
    const int element = ElementSize(format.dtype);
    ASSIGN_OR_RETURN(cache->k_, Buffer::Create(pages * batch * format.k_page_stride * element));
    ASSIGN_OR_RETURN(cache->v_, Buffer::Create(pages * batch * format.v_page_stride * element));
    ASSIGN_OR_RETURN(cache->meta_, Buffer::Create(groups * batch * format.meta_group_stride * element));
    ASSIGN_OR_RETURN(cache->over_, Buffer::Create(groups * batch * format.over_group_stride * element));
    std::mt19937_64 random(seed);
    for (int s = 0; s <= batch; ++s) {
      cache->page_begin_.push_back(static_cast<int32_t>(s * pages));
      cache->group_begin_.push_back(static_cast<int32_t>(s * groups));
    }
    cache->page_ids_.resize(pages * batch);
    cache->group_ids_.resize(groups * batch);
    std::iota(cache->page_ids_.begin(), cache->page_ids_.end(), 0);
    std::iota(cache->group_ids_.begin(), cache->group_ids_.end(), 0);
    std::shuffle(cache->page_ids_.begin(), cache->page_ids_.end(), random);
    std::shuffle(cache->group_ids_.begin(), cache->group_ids_.end(), random);
    cache->pages = {cache->k_.data(), cache->v_.data(), cache->meta_.data(), cache->over_.data()};
    cache->table.format = format;
    cache->table.page_ids = cache->page_ids_.data();
    cache->table.page_begin = cache->page_begin_.data();
    cache->table.group_ids = cache->group_ids_.data();
    cache->table.group_begin = cache->group_begin_.data();
    cache->table.num_seqs = batch;
    return cache;
  }

  LayerPages pages;
  PageTableView table;

 private:
  BenchCache() = default;
  Buffer k_, v_, meta_, over_;
  std::vector<int32_t> page_ids_, page_begin_, group_ids_, group_begin_;
};

std::vector<float> RandomFloats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Fills [0, length) of every sequence by the same kernel that a step appends with.
void FillCache(const Context& ctx, BenchCache& cache, int64_t length, uint64_t seed) {
  constexpr int64_t kChunk = 256;
  const PageFormat& f = cache.table.format;
  std::vector<int32_t> seqs(kChunk), positions(kChunk);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> k(kChunk * f.kv_heads * f.k_dim), v(kChunk * f.kv_heads * f.v_dim);
  for (int s = 0; s < cache.table.num_seqs; ++s) {
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t rows = std::min(kChunk, length - begin);
      for (float& x : k) x = uniform(random);
      for (float& x : v) x = uniform(random);
      for (int64_t r = 0; r < rows; ++r) seqs[r] = s, positions[r] = static_cast<int32_t>(begin + r);
      KvAppendParams params;
      params.pages = cache.pages;
      params.table = cache.table;
      params.k = k.data();
      params.k_stride = f.kv_heads * f.k_dim;
      params.v = v.data();
      params.v_stride = f.kv_heads * f.v_dim;
      params.row_seq = seqs.data();
      params.row_pos = positions.data();
      params.rows = rows;
      KvAppend(ctx, params);
    }
  }
}

// Everything that the timed closures point to; lives as long as they do.
struct Arena {
  std::vector<std::unique_ptr<BenchCache>> caches;
  std::vector<std::unique_ptr<std::vector<float>>> floats;
  std::vector<std::unique_ptr<std::vector<int32_t>>> ints;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<std::unique_ptr<AttentionPolicy>> policies;
  std::vector<std::unique_ptr<std::vector<PageHistory>>> histories;
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

class KernelBench {
 public:
  KernelBench(const KernelFlags& flags, ThreadPool* pool) : flags_(flags) { ctx_.pool = pool; }

  std::vector<Timed> timed;
  Context& ctx() { return ctx_; }

  // Rows whose page list and lengths are those of `batch` decode steps at `depth`.
  Status AddDecode(const PageFormat& format, int64_t depth, const std::vector<AttentionSpec>& specs) {
    ASSIGN_OR_RETURN(auto owned, BenchCache::Create(format, flags_.batch, depth, flags_.seed));
    BenchCache& cache = *arena_.caches.emplace_back(std::move(owned));
    FillCache(ctx_, cache, depth, flags_.seed + 1);
    const int rows = flags_.batch;
    const int64_t width = int64_t{flags_.q_heads} * format.k_dim;
    AttentionDecodeParams decode;
    decode.q = arena_.Floats(RandomFloats(rows * width, flags_.seed + 2));
    decode.q_stride = width;
    decode.out = arena_.Floats(std::vector<float>(int64_t{rows} * flags_.q_heads * format.v_dim));
    decode.out_stride = int64_t{flags_.q_heads} * format.v_dim;
    decode.rows = rows;
    decode.q_heads = flags_.q_heads;
    std::vector<int32_t> seqs(rows);
    std::iota(seqs.begin(), seqs.end(), 0);
    decode.row_seq = arena_.Ints(std::move(seqs));
    decode.row_len = arena_.Ints(std::vector<int32_t>(rows, static_cast<int32_t>(depth)));
    decode.pages = cache.pages;
    decode.table = cache.table;
    decode.scale = 1.0f / std::sqrt(static_cast<float>(format.k_dim));
    const double token_bytes = static_cast<double>(format.k_dim + format.v_dim) * ElementSize(format.dtype);
    for (const AttentionSpec& spec : specs) {
      ASSIGN_OR_RETURN(auto policy_owned, MakePolicy(spec, format.page_size));
      if (policy_owned->capacity() > 0) {
        return InvalidArgument(spec.ToString() +
                               " evicts: its kernel is dense attention over token_budget tokens; measure "
                               "that at --depth " +
                               std::to_string(policy_owned->capacity()));
      }
      AttentionPolicy* policy = arena_.policies.emplace_back(std::move(policy_owned)).get();
      // Layers that the policy keeps dense are not what is measured here: the first that it selects in is taken.
      int layer = 0;
      while (layer < 64 && policy->IsDense(depth, layer, format.page_size)) ++layer;
      Json row = {{"name", "attend"}};
      RETURN_IF_ERROR(AddAttentionFields(spec, format.page_size, &row));
      row["depth"] = depth;
      row["batch"] = rows;
      if (layer == 64) {
        ASSIGN_OR_RETURN(void* workspace, arena_.Bytes(AttentionDecodeWorkspace(decode)));
        Timed& one = timed.emplace_back();
        one.row = std::move(row);
        one.bytes = rows * static_cast<double>(depth) * format.kv_heads * token_bytes;
        one.run = [this, decode, workspace] { AttentionDecode(ctx_, decode, workspace); };
        continue;
      }
      RETURN_IF_ERROR(AddSelected(decode, *policy, layer, depth, token_bytes, std::move(row)));
    }
    return OkStatus();
  }

  Status AddPrefill(const PageFormat& format, int64_t length) {
    ASSIGN_OR_RETURN(auto owned, BenchCache::Create(format, 1, length, flags_.seed));
    BenchCache& cache = *arena_.caches.emplace_back(std::move(owned));
    FillCache(ctx_, cache, length, flags_.seed + 3);
    // As the engine does it: the prompt in chunks of 512 rows, each against all before it.
    constexpr int64_t kChunk = 512;
    const int64_t width = int64_t{flags_.q_heads} * format.k_dim;
    float* q = arena_.Floats(RandomFloats(std::min(length, kChunk) * width, flags_.seed + 4));
    float* out = arena_.Floats(std::vector<float>(std::min(length, kChunk) * flags_.q_heads * format.v_dim));
    auto params_of = [&, q, out](int64_t begin) {
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
    struct Part {
      PrefillChunk chunk;
      AttentionPrefillParams params;
    };
    auto parts = std::make_shared<std::vector<Part>>();
    size_t scratch = 0;
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      Part& part = parts->emplace_back();
      part.chunk = {0, 0, static_cast<int32_t>(std::min(kChunk, length - begin)), static_cast<int32_t>(begin)};
      part.params = params_of(begin);
    }
    for (Part& part : *parts) {
      part.params.chunks = &part.chunk;
      scratch = std::max(scratch, AttentionPrefillWorkspace(ctx_, part.params));
    }
    ASSIGN_OR_RETURN(void* workspace, arena_.Bytes(scratch));
    Timed& one = timed.emplace_back();
    one.row = {{"name", "prefill_attention"}, {"attention", "dense"}, {"length", length}};
    one.flops = 2.0 * (format.k_dim + format.v_dim) * flags_.q_heads * length * (length + 1.0) / 2;
    one.run = [this, parts, workspace] {
      for (Part& part : *parts) AttentionPrefill(ctx_, part.params, workspace);
    };
    return OkStatus();
  }

  Status AddAppend(const PageFormat& format, int64_t rows) {
    const int64_t length = (rows / format.page_size + 2) * format.page_size;
    ASSIGN_OR_RETURN(auto owned, BenchCache::Create(format, 1, length, flags_.seed));
    BenchCache& cache = *arena_.caches.emplace_back(std::move(owned));
    KvAppendParams params;
    params.pages = cache.pages;
    params.table = cache.table;
    params.k_stride = int64_t{format.kv_heads} * format.k_dim;
    params.v_stride = int64_t{format.kv_heads} * format.v_dim;
    params.k = arena_.Floats(RandomFloats(rows * params.k_stride, flags_.seed + 5));
    params.v = arena_.Floats(RandomFloats(rows * params.v_stride, flags_.seed + 6));
    std::vector<int32_t> positions(rows);
    std::iota(positions.begin(), positions.end(), 0);
    params.row_seq = arena_.Ints(std::vector<int32_t>(rows, 0));
    params.row_pos = arena_.Ints(std::move(positions));
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
    ASSIGN_OR_RETURN(Weight made, Weight::Own(std::move(tensor)));
    Weight* weight = arena_.weights.emplace_back(std::make_unique<Weight>(std::move(made))).get();
    RETURN_IF_ERROR(PrepareWeight(ctx_, *weight));
    for (int64_t m : rows) {
      const float* x = arena_.Floats(RandomFloats(m * in_features, flags_.seed + 8));
      float* y = arena_.Floats(std::vector<float>(m * out_features));
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
  // What the policy remembers of each row, as earlier steps might have left it.
  void AddHistory(const AttentionPolicy& policy, SelectParams* select) {
    const int width = policy.Declare().history;
    if (width == 0) return;
    const PageFormat& f = select->table.format;
    auto& histories = arena_.histories.emplace_back(std::make_unique<std::vector<PageHistory>>());
    for (int row = 0; row < select->rows; ++row) {
      const int64_t pages = (int64_t{select->row_len[row]} + f.page_size - 1) / f.page_size;
      std::vector<float> values = RandomFloats(f.kv_heads * pages * width, flags_.seed + 9 + row);
      for (float& value : values) value = std::exp(value);
      histories->push_back({arena_.Floats(std::move(values)), pages * width, f.kv_heads, pages, width});
    }
    select->history = histories->data();
  }

  // A policy's two halves: what selection reads and costs, and attention over the pages that it chose.
  Status AddSelected(AttentionDecodeParams decode, const AttentionPolicy& policy, int layer, int64_t depth,
                     double token_bytes, Json row) {
    const PageFormat& format = decode.table.format;
    SelectParams select;
    select.q = decode.q;
    select.q_stride = decode.q_stride;
    select.rows = decode.rows;
    select.q_heads = decode.q_heads;
    select.row_seq = decode.row_seq;
    select.row_len = decode.row_len;
    select.layer = layer;
    select.pages = decode.pages;
    select.table = decode.table;
    AddHistory(policy, &select);
    SelectionView view;
    view.max_pages = policy.MaxPages(depth, format.page_size);
    const int64_t lists = int64_t{decode.rows} * format.kv_heads;
    view.pages = arena_.Ints(std::vector<int32_t>(lists * view.max_pages));
    view.counts = arena_.Ints(std::vector<int32_t>(lists));
    ASSIGN_OR_RETURN(void* select_scratch, arena_.Bytes(policy.SelectWorkspace(select)));
    policy.Select(ctx_, select, view, select_scratch);
    int64_t pages_read = 0;
    for (int64_t i = 0; i < lists; ++i) pages_read += view.counts[i];
    const int64_t pages = (depth + format.page_size - 1) / format.page_size;

    Timed& selection = timed.emplace_back();
    selection.row = row;
    selection.row["name"] = "select";
    selection.bytes = static_cast<double>(policy.SelectBytes(select));
    selection.row["line_bytes"] = policy.SelectLineBytes(select);
    selection.run = [this, &policy, select, view, select_scratch] {
      policy.Select(ctx_, select, view, select_scratch);
    };

    Timed& attention = timed.emplace_back();
    attention.row = std::move(row);
    attention.row["pages_read"] = pages_read;
    attention.row["pages_total"] = pages * lists;
    attention.bytes = static_cast<double>(pages_read) * format.page_size * token_bytes;
    if (const SinkWindow window = policy.WindowAt(depth); window.window > 0) {
      AttentionSinksParams sinks{decode, decode.q, decode.q_stride, 0, window.sinks};  // turning queries is left out
      sinks.decode.window = window.window;
      ASSIGN_OR_RETURN(void* workspace, arena_.Bytes(AttentionSinksWorkspace(sinks)));
      attention.run = [this, sinks, workspace] { AttentionDecodeSinks(ctx_, sinks, workspace); };
      return OkStatus();
    }
    selections_.push_back(std::make_unique<SelectionView>(view));
    decode.selection = selections_.back().get();
    ASSIGN_OR_RETURN(void* workspace, arena_.Bytes(AttentionDecodeWorkspace(decode)));
    attention.run = [this, decode, workspace] { AttentionDecode(ctx_, decode, workspace); };
    return OkStatus();
  }

  const KernelFlags& flags_;
  Context ctx_;
  Arena arena_;
  std::vector<std::unique_ptr<SelectionView>> selections_;
};

Status RunBenchKernels(KernelFlags flags) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> depths, ParseIntList("--depth", flags.depth, 1));
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
  for (const auto& [flag, value] : {std::pair<const char*, int>{"--batch", flags.batch},
                                    {"--repeats", flags.repeats},
                                    {"--hidden", flags.hidden},
                                    {"--ffn", flags.ffn},
                                    {"--q-heads", flags.q_heads}}) {
    if (value < 1)
      return InvalidArgument(std::string(flag) + " is " + std::to_string(value) + "; it must be at least 1");
  }
  if (flags.threads < 0) return InvalidArgument("--threads is negative; 0 takes all");
  RETURN_IF_ERROR(CheckMachineSeconds(flags.machine_seconds));
  ASSIGN_OR_RETURN(const PageFormat format,
                   PageFormat::Create(cache_dtype, flags.page_size, flags.kv_heads, flags.head_dim, flags.head_dim));
  if (flags.q_heads % flags.kv_heads != 0) {
    return InvalidArgument("--q-heads is " + std::to_string(flags.q_heads) + ", which is no multiple of --kv-heads " +
                           std::to_string(flags.kv_heads));
  }
  ThreadPool pool(flags.threads);
  KernelBench bench(flags, &pool);
  for (int64_t depth : depths) RETURN_IF_ERROR(bench.AddDecode(format, depth, specs));
  for (int64_t length : prefills) RETURN_IF_ERROR(bench.AddPrefill(format, length));
  RETURN_IF_ERROR(bench.AddAppend(format, 1));
  RETURN_IF_ERROR(bench.AddAppend(format, 512));
  RETURN_IF_ERROR(bench.AddLinear("gate_up", dtype, 2 * int64_t{flags.ffn}, flags.hidden, rows));
  RETURN_IF_ERROR(bench.AddLinear("down", dtype, flags.hidden, flags.ffn, rows));
  MachineRates rates = MeasureRates(bench.ctx(), flags.machine_seconds);
  ASSIGN_OR_RETURN(ReadProbe probe, ReadProbe::Create(bench.ctx()));

  Progress progress("bench kernels");
  for (int repeat = -1; repeat < flags.repeats; ++repeat) {  // the first round warms up
    for (Timed& one : bench.timed) {
      if (Interrupted()) return Cancelled("interrupted");
      probe.Run(bench.ctx());
      const double start = NowSeconds();
      one.run();
      if (repeat >= 0) one.seconds.push_back(NowSeconds() - start);
    }
    progress.Update((repeat + 2.0) / (flags.repeats + 1.0));
  }
  progress.Finish();
  rates.read_gb_s = probe.MedianGbS();
  Json results = Json::array();
  for (Timed& one : bench.timed) {
    Json row = std::move(one.row);
    row["threads"] = pool.threads();
    const double seconds = Median(one.seconds);
    row["seconds"] = seconds;
    if (one.bytes > 0) AddBytes(one.bytes, seconds, rates, &row);
    if (one.flops > 0) AddFlops(one.flops, seconds, rates, &row);
    results.push_back(std::move(row));
  }
  WriteBench(flags.format, results, rates, pool.threads(),
             {"name", "attention", "token_budget", "depth", "length", "rows", "seconds", "gb_s",
              "share_of_read_bandwidth", "gflop_s", "share_of_matmul_rate"});
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
  AddListFlag(*app, "--prefill", &flags->prefill, "prompt lengths, for prefill attention");
  AddListFlag(*app, "--rows", &flags->rows, "rows of the matrix products");
  app->add_option("--batch", flags->batch, "sequences that decode together")->capture_default_str();
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
  AddFlag(*app, "--threads,-t", &flags->threads, "0: the processors this process may use");
  AddFlag(*app, "--seed", &flags->seed, "of everything random");
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunBenchKernels(*flags); }); }};
}

}  // namespace quire::launch
