#include "launch/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "kernels/attention_decode_sinks.h"
#include "kernels/attention_mass.h"
#include "kernels/kv_append.h"
#include "kernels/selection/evicting.h"
#include "launch/bench.h"
#include "launch/signals.h"

namespace quire::launch {
namespace {

int64_t PagesOf(const PageFormat& f, int64_t length) { return (length + f.page_size - 1) / f.page_size; }
int64_t GroupsOf(const PageFormat& f, int64_t length) {
  return (PagesOf(f, length) + kPagesPerGroup - 1) / kPagesPerGroup;
}

// A splitmix step: gigabytes of cache are filled by it.
float NextUniform(uint64_t* state) {
  uint64_t x = *state += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x ^= x >> 29;
  return static_cast<float>(static_cast<int32_t>(x >> 32)) * 0x1p-31f;
}

}  // namespace

Result<PageFormat> CheckLayerFlags(const LayerFlags& flags) {
  RETURN_IF_ERROR(CheckAtLeastOne({{"--q-heads", flags.q_heads}}));
  if (flags.threads < 0) return InvalidArgument("--threads is negative; 0 takes all");
  RETURN_IF_ERROR(CheckMachineSeconds(flags.machine_seconds));
  ASSIGN_OR_RETURN(PageFormat format, PageFormat::Create(flags.dtype, flags.page_size, flags.kv_heads, flags.head_dim,
                                                         flags.head_dim));
  if (flags.q_heads % flags.kv_heads != 0) {
    return InvalidArgument("--q-heads is " + std::to_string(flags.q_heads) + ", which is no multiple of --kv-heads " +
                           std::to_string(flags.kv_heads));
  }
  return format;
}

Status CheckAtLeastOne(std::initializer_list<std::pair<const char*, int>> flags) {
  for (const auto& [flag, value] : flags) {
    if (value < 1) {
      return InvalidArgument(std::string(flag) + " is " + std::to_string(value) + "; it must be at least 1");
    }
  }
  return OkStatus();
}

Status TimeInTurns(int repeats, std::vector<Timed>* timed, BenchClock* clock, Progress* progress, double from, double to) {
  for (int repeat = -1; repeat < repeats; ++repeat) {  // the first round warms up
    for (Timed& one : *timed) {
      if (Interrupted()) return Cancelled("interrupted");
      ASSIGN_OR_RETURN(const double seconds, clock->Time(one.run));
      if (repeat >= 0) one.seconds.push_back(seconds);
    }
    progress->Update(from + (to - from) * (repeat + 2.0) / (repeats + 1.0));
  }
  return OkStatus();
}

Result<void*> BenchMemory::Bytes(size_t bytes) {
  ASSIGN_OR_RETURN(Buffer buffer, Buffer::Create(std::max<size_t>(bytes, Buffer::kAlignment), ctx.device));
  return static_cast<void*>(buffers.emplace_back(std::move(buffer)).data());
}

int64_t BenchCache::Bytes(const PageFormat& f, int64_t batch, int64_t length) {
  return batch * ElementSize(f.dtype) *
             (PagesOf(f, length) * (f.k_page_stride + f.v_page_stride) +
              GroupsOf(f, length) * (f.meta_group_stride + f.over_group_stride)) +
         batch * GroupsOf(f, length) * f.meta_group_stride;
}

Status BenchCache::CheckRoom(const PageFormat& format, int64_t batch, int64_t length, size_t free_bytes) {
  constexpr double kMostTokens = 0x1p31;  // page ids and lengths are 32-bit numbers
  const double tokens = static_cast<double>(batch) * static_cast<double>(length);
  const double needed = tokens < kMostTokens ? static_cast<double>(Bytes(format, batch, length))
                                             : tokens * static_cast<double>(format.k_page_stride);
  const auto available = static_cast<double>(free_bytes);
  if (tokens < kMostTokens && (available == 0 || needed < 0.95 * available)) return OkStatus();
  return ResourceExhausted("a cache of " + std::to_string(batch) + " × " + std::to_string(length) + " tokens takes " +
                           HumanBytes(needed) + " for one layer, and " + HumanBytes(available) +
                           " of memory are free; give a smaller --depth or --batch");
}

Result<std::unique_ptr<BenchCache>> BenchCache::Create(const Context& ctx, const PageFormat& format, int batch,
                                                       int64_t length, uint64_t seed, bool codes) {
  auto cache = std::unique_ptr<BenchCache>(new BenchCache(ctx));
  BenchMemory& memory = cache->memory_;
  const int64_t pages = PagesOf(format, length), groups = GroupsOf(format, length);
  const int element = ElementSize(format.dtype);
  ASSIGN_OR_RETURN(cache->pages.k, memory.Bytes(pages * batch * format.k_page_stride * element));
  ASSIGN_OR_RETURN(cache->pages.v, memory.Bytes(pages * batch * format.v_page_stride * element));
  ASSIGN_OR_RETURN(cache->pages.meta, memory.Bytes(groups * batch * format.meta_group_stride * element));
  ASSIGN_OR_RETURN(cache->pages.over, memory.Bytes(groups * batch * format.over_group_stride * element));
  if (codes) {
    ASSIGN_OR_RETURN(void* memory_of_codes, memory.Bytes(groups * batch * format.meta_group_stride));
    cache->pages.codes = static_cast<uint8_t*>(memory_of_codes);
  }
  std::mt19937_64 random(seed);
  std::vector<int32_t>&page_begin = cache->page_begin_, &group_begin = cache->group_begin_;
  std::vector<int32_t>&page_ids = cache->page_ids_, &group_ids = cache->group_ids_;
  page_ids.resize(pages * batch);
  group_ids.resize(groups * batch);
  for (int s = 0; s <= batch; ++s) {
    page_begin.push_back(static_cast<int32_t>(s * pages));
    group_begin.push_back(static_cast<int32_t>(s * groups));
  }
  std::iota(page_ids.begin(), page_ids.end(), 0);
  std::iota(group_ids.begin(), group_ids.end(), 0);
  std::shuffle(page_ids.begin(), page_ids.end(), random);
  std::shuffle(group_ids.begin(), group_ids.end(), random);
  cache->table.format = format;
  ASSIGN_OR_RETURN(cache->table.page_ids, memory.Copy(page_ids));
  ASSIGN_OR_RETURN(cache->table.page_begin, memory.Copy(page_begin));
  ASSIGN_OR_RETURN(cache->table.group_ids, memory.Copy(group_ids));
  ASSIGN_OR_RETURN(cache->table.group_begin, memory.Copy(group_begin));
  cache->table.num_seqs = batch;
  cache->host_table = {format, page_ids.data(), page_begin.data(), group_ids.data(), group_begin.data(), batch};
  return cache;
}

// The CPU is given new numbers for every chunk. A GPU gets one chunk of numbers, brought there once: of a length that no page
// size divides, so that its repetitions make other pages.
Status BenchCache::Fill(int64_t length, uint64_t seed) {
  const Context& ctx = memory_.ctx;
  const bool gpu = ctx.session != nullptr;
  const int64_t chunk = gpu ? 8191 : 256;
  const PageFormat& f = table.format;
  uint64_t state = seed;
  std::vector<float> k(chunk * f.kv_heads * f.k_dim), v(chunk * f.kv_heads * f.v_dim);
  const auto draw = [&] {
    for (float& x : k) x = NextUniform(&state);
    for (float& x : v) x = NextUniform(&state);
  };
  BenchMemory memory(ctx);
  const float *k_there = k.data(), *v_there = v.data();
  if (gpu) {
    draw();
    ASSIGN_OR_RETURN(k_there, memory.Copy(k));
    ASSIGN_OR_RETURN(v_there, memory.Copy(v));
  }
  ASSIGN_OR_RETURN(int32_t* seqs, memory.Zeros<int32_t>(chunk));
  ASSIGN_OR_RETURN(int32_t* positions, memory.Zeros<int32_t>(chunk));
  std::vector<int32_t> numbers(chunk);
  const auto bring = [&](int32_t* to) {
    return CopyToDevice(ctx.device, to, numbers.data(), numbers.size() * sizeof(int32_t), ctx.stream);
  };
  for (int s = 0; s < table.num_seqs; ++s) {
    std::fill(numbers.begin(), numbers.end(), s);
    RETURN_IF_ERROR(bring(seqs));
    for (int64_t begin = 0; begin < length; begin += chunk) {
      if (!gpu) draw();
      std::iota(numbers.begin(), numbers.end(), static_cast<int32_t>(begin));
      RETURN_IF_ERROR(bring(positions));
      KvAppendParams params;
      params.pages = pages;
      params.table = table;
      params.k = k_there;
      params.k_stride = int64_t{f.kv_heads} * f.k_dim;
      params.v = v_there;
      params.v_stride = int64_t{f.kv_heads} * f.v_dim;
      params.row_seq = seqs;
      params.row_pos = positions;
      params.rows = std::min(chunk, length - begin);
      KvAppend(ctx, params);
    }
  }
  return gpu ? ctx.session->Synchronize() : OkStatus();
}

std::vector<float> NormalFloats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

double PolicyBench::Step::Seconds(const std::vector<Timed>& timed) const {
  double sum = 0;
  if (whole >= 0) return Median(timed[static_cast<size_t>(whole)].seconds);
  for (const int part : {select, attend, remember}) {
    if (part >= 0) sum += Median(timed[static_cast<size_t>(part)].seconds);
  }
  return sum;
}

Result<std::unique_ptr<PolicyBench>> PolicyBench::Create(const Context& ctx, const Options& options,
                                                         const std::vector<AttentionSpec>& specs) {
  std::unique_ptr<PolicyBench> bench(new PolicyBench(ctx, options));
  BenchMemory& memory = bench->memory_;
  const PageFormat& f = options.format;
  bool codes = false;
  for (const AttentionSpec& spec : specs) {
    ASSIGN_OR_RETURN(const auto policy, MakePolicy(spec, bench->Shape()));
    codes |= policy->Declare().codes;
  }
  ASSIGN_OR_RETURN(bench->cache_, BenchCache::Create(ctx, f, options.batch, options.depth, options.seed, codes));
  BenchCache& cache = *bench->cache_;
  RETURN_IF_ERROR(cache.Fill(options.depth, options.seed + 1));
  const int64_t width = int64_t{options.q_heads} * f.k_dim;
  AttentionDecodeParams& decode = bench->decode_;
  bench->host_q_ = NormalFloats(options.batch * width, options.seed + 2);
  ASSIGN_OR_RETURN(decode.q, memory.Copy(bench->host_q_));
  decode.q_stride = width;
  decode.out_stride = int64_t{options.q_heads} * f.v_dim;
  ASSIGN_OR_RETURN(decode.out, memory.Zeros<float>(options.batch * decode.out_stride));
  decode.rows = options.batch;
  decode.q_heads = options.q_heads;
  bench->host_seqs_.resize(options.batch);
  std::iota(bench->host_seqs_.begin(), bench->host_seqs_.end(), 0);
  bench->host_lengths_.assign(options.batch, static_cast<int32_t>(options.depth));
  ASSIGN_OR_RETURN(decode.row_seq, memory.Copy(bench->host_seqs_));
  ASSIGN_OR_RETURN(decode.row_len, memory.Copy(bench->host_lengths_));
  decode.longest = static_cast<int32_t>(options.depth);
  decode.pages = cache.pages;
  decode.table = cache.table;
  decode.scale = 1.0f / std::sqrt(static_cast<float>(f.k_dim));
  for (const AttentionSpec& spec : specs) RETURN_IF_ERROR(bench->Add(spec));
  return bench;
}

PolicyShape PolicyBench::Shape() const {
  const PageFormat& f = options_.format;
  return {f.page_size, f.k_dim, f.v_dim, f.dtype, options_.q_heads / f.kv_heads, ctx_.device.kind};
}

Status PolicyBench::Add(const AttentionSpec& spec) {
  const PageFormat& f = options_.format;
  ASSIGN_OR_RETURN(auto owned, MakePolicy(spec, Shape()));
  if (ctx_.session != nullptr && owned->token_budget() > 0 && !owned->RunsOnGpu()) {
    return Unimplemented(spec.ToString() + " has no kernels for a GPU yet; measure it with --device cpu");
  }
  AttentionPolicy* policy = memory_.policies.emplace_back(std::move(owned)).get();
  // Layers that the policy keeps dense are not what is measured here: the first that it selects in is taken.
  int layer = 0;
  while (layer < 64 && policy->IsDense(options_.depth, layer, f.page_size)) ++layer;
  Step step;
  RETURN_IF_ERROR(AddAttentionFields(spec, f.page_size, &step.row));
  step.row["depth"] = options_.depth;
  step.row["batch"] = options_.batch;
  if (policy->capacity() > 0) return AddEvicting(*policy, std::move(step));
  if (layer < 64) return AddSelected(*policy, layer, std::move(step));
  ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(AttentionDecodeWorkspace(ctx_, decode_)));
  step.attend = static_cast<int>(timed_.size());
  Timed& one = timed_.emplace_back();
  one.row = step.row;
  one.row["name"] = "attend";
  one.bytes = static_cast<double>(options_.batch * options_.depth * f.kv_heads * Shape().TokenBytes());
  one.run = [this, workspace] { AttentionDecode(ctx_, decode_, workspace); };
  step.line_bytes = step.formula_bytes = one.bytes;
  steps_.push_back(std::move(step));
  return OkStatus();
}

// What the policy remembers of each row, as earlier steps might have left it.
Status PolicyBench::AddHistory(const AttentionPolicy& policy, SelectParams* select) {
  const int width = policy.Declare().history;
  if (width == 0) return OkStatus();
  const PageFormat& f = options_.format;
  std::vector<PageHistory> histories;
  for (int row = 0; row < select->rows; ++row) {
    const int64_t pages = PagesOf(f, host_lengths_[row]);
    std::vector<float> values = NormalFloats(f.kv_heads * pages * width, options_.seed + 9 + row);
    for (float& value : values) value = std::exp(value);
    ASSIGN_OR_RETURN(float* there, memory_.Copy(values));
    histories.push_back({there, pages * width, f.kv_heads, pages, width});
  }
  ASSIGN_OR_RETURN(select->history, memory_.Copy(histories));
  return OkStatus();
}

SelectParams PolicyBench::OnHost(SelectParams select) const {
  select.q = host_q_.data();
  select.row_seq = host_seqs_.data();
  select.row_len = host_lengths_.data();
  select.table = cache_->host_table;
  return select;
}

// A policy's parts: what selection reads and costs, attention over the pages that it chose, and what it remembers.
Status PolicyBench::AddSelected(const AttentionPolicy& policy, int layer, Step step) {
  const PageFormat& f = options_.format;
  const int64_t depth = options_.depth, lists = int64_t{options_.batch} * f.kv_heads;
  const double token_bytes = static_cast<double>(f.k_dim + f.v_dim) * ElementSize(f.dtype);
  AttentionDecodeParams decode = decode_;
  SelectParams select;
  select.q = decode.q;
  select.q_stride = decode.q_stride;
  select.rows = decode.rows;
  select.q_heads = decode.q_heads;
  select.row_seq = decode.row_seq;
  select.row_len = decode.row_len;
  select.longest = decode.longest;
  select.layer = layer;
  select.pages = decode.pages;
  select.table = decode.table;
  RETURN_IF_ERROR(AddHistory(policy, &select));
  SelectionView& view = *memory_.selections.emplace_back(std::make_unique<SelectionView>());
  view.max_pages = policy.MaxPages(depth, f.page_size);
  ASSIGN_OR_RETURN(view.pages, memory_.Zeros<int32_t>(lists * view.max_pages));
  ASSIGN_OR_RETURN(view.counts, memory_.Zeros<int32_t>(lists));
  const PageDataNeeds needs = policy.Declare();
  if (needs.slots) {
    view.mask_words = (f.page_size + 63) / 64;
    ASSIGN_OR_RETURN(view.slot_mask, memory_.Zeros<uint64_t>(lists * view.max_pages * view.mask_words));
  }
  if (needs.correction) {
    ASSIGN_OR_RETURN(view.alpha, memory_.Zeros<float>(int64_t{options_.batch} * options_.q_heads));
    ASSIGN_OR_RETURN(view.v_mean, memory_.Zeros<float>(lists * f.v_dim));
  }
  ASSIGN_OR_RETURN(void* select_scratch, memory_.Bytes(policy.SelectWorkspace(select)));
  policy.Select(ctx_, select, view, select_scratch);
  std::vector<int32_t> counts(lists);
  RETURN_IF_ERROR(CopyFromDevice(ctx_.device, counts.data(), view.counts, counts.size() * sizeof(int32_t), ctx_.stream));
  if (ctx_.session != nullptr) RETURN_IF_ERROR(ctx_.session->Synchronize());
  const int64_t pages_read = std::accumulate(counts.begin(), counts.end(), int64_t{0});

  step.select = static_cast<int>(timed_.size());
  Timed selection;
  selection.row = step.row;
  selection.row["name"] = "select";
  selection.bytes = static_cast<double>(policy.SelectBytes(OnHost(select)));
  const int64_t line_bytes = policy.SelectLineBytes(OnHost(select));
  selection.row["line_bytes"] = line_bytes;
  selection.run = [this, &policy, select, &view, select_scratch] { policy.Select(ctx_, select, view, select_scratch); };
  const double selection_bytes = selection.bytes;
  step.line_bytes = static_cast<double>(line_bytes);
  timed_.push_back(std::move(selection));

  step.attend = static_cast<int>(timed_.size());
  Timed attention;
  attention.row = step.row;
  attention.row["name"] = "attend";
  attention.row["pages_read"] = step.row["pages_read"] = pages_read;
  attention.row["pages_total"] = step.row["pages_total"] = PagesOf(f, depth) * lists;
  attention.bytes = static_cast<double>(pages_read) * f.page_size * token_bytes;
  step.line_bytes += attention.bytes;
  const SinkWindow window = policy.WindowAt(depth);
  // Of tokens of their own the formula has as many as the budget, of which each may lie on a page of its own.
  const int64_t tokens = window.window > 0 ? int64_t{window.sinks} + window.window
                         : needs.slots     ? int64_t{policy.token_budget()}
                                           : int64_t{view.max_pages} * f.page_size;
  if (policy.name() != "top-p") {  // whose budget follows the data
    step.formula_bytes = selection_bytes + static_cast<double>(lists * std::min(depth, tokens)) * token_bytes;
  }
  if (window.window > 0) {
    RETURN_IF_ERROR(AddSinks(decode, window, &attention));
  } else {
    decode.selection = &view;
    if (needs.history > 0 && needs.mass) {
      decode.mass_pages = static_cast<int>(PagesOf(f, depth));
      ASSIGN_OR_RETURN(decode.mass, memory_.Zeros<float>(lists * decode.mass_pages));
    }
    ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(AttentionDecodeWorkspace(ctx_, decode)));
    attention.run = [this, decode, workspace] { AttentionDecode(ctx_, decode, workspace); };
  }
  timed_.push_back(std::move(attention));
  if (decode.mass != nullptr) {
    step.remember = static_cast<int>(timed_.size());
    Timed remember;
    remember.row = step.row;
    remember.row["name"] = "remember";
    RememberParams params;
    params.mass = decode.mass;
    params.mass_pages = decode.mass_pages;
    params.rows = decode.rows;
    params.kv_heads = f.kv_heads;
    params.page_size = f.page_size;
    ASSIGN_OR_RETURN(params.row_pos, memory_.Copy(std::vector<int32_t>(decode.rows, static_cast<int32_t>(depth - 1))));
    params.selection = &view;
    params.history = select.history;
    remember.run = [this, &policy, params] { policy.RememberRows(ctx_, params); };
    timed_.push_back(std::move(remember));
  }
  AddWhole(&step);
  steps_.push_back(std::move(step));
  return OkStatus();
}

// A GPU begins the next kernel while one ends; and every timing has a start and an end that it pays for.
void PolicyBench::AddWhole(Step* step) {
  if (ctx_.session == nullptr) return;
  const int first = step->select >= 0 ? step->select : step->attend;
  step->whole = static_cast<int>(timed_.size());
  Timed whole;
  whole.run = [runs = std::vector<Timed>(timed_.begin() + first, timed_.end())] {
    for (const Timed& part : runs) part.run();
  };
  timed_.push_back(std::move(whole));
}

Status PolicyBench::AddSinks(const AttentionDecodeParams& decode, const SinkWindow& window, Timed* attention) {
  AttentionSinksParams sinks{decode, decode.q, decode.q_stride, 0, window.sinks};
  sinks.window = window.window;
  ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(AttentionSinksWorkspace(ctx_, sinks)));
  attention->run = [this, sinks, workspace] { AttentionDecodeSinks(ctx_, sinks, workspace); };
  return OkStatus();
}

// An evicting policy's parts: who leaves (where the sequence is long enough), attention to all that is kept, and the
// weights of that. Writing K and V over what leaves is left out, as every append is.
Status PolicyBench::AddEvicting(const AttentionPolicy& policy, Step step) {
  const PageFormat& f = options_.format;
  const bool overwrites = options_.depth > policy.capacity(), weighs = policy.Declare().slot_map;
  const int64_t kept = std::min(options_.depth, policy.capacity()), lists = int64_t{options_.batch} * f.kv_heads;
  const SlotMap* maps = nullptr;  // [batch]
  if (weighs) {
    ASSIGN_OR_RETURN(maps, AddSlotMaps(kept));
  }
  const double map_bytes = weighs ? static_cast<double>(lists * kept * kSlotMapEntryBytes) : 0;
  if (overwrites && (weighs || ctx_.session == nullptr)) {  // the others know it from positions alone, on a GPU before the step
    step.select = static_cast<int>(timed_.size());
    Timed& leave = timed_.emplace_back();
    leave.row = step.row;
    leave.row["name"] = "select";
    leave.bytes = map_bytes;
    leave.row["line_bytes"] = static_cast<int64_t>(map_bytes);
    leave.run = [&policy, position = options_.depth]() mutable { policy.Evict(position++, 0, nullptr); };
    if (weighs) RETURN_IF_ERROR(AddLeaving(policy, maps, kept, &leave));
  }

  AttentionDecodeParams decode = decode_;
  ASSIGN_OR_RETURN(decode.row_len, memory_.Copy(std::vector<int32_t>(decode.rows, static_cast<int32_t>(kept))));
  decode.longest = static_cast<int32_t>(kept);
  if (weighs) {
    ASSIGN_OR_RETURN(decode.lse, memory_.Zeros<float>(int64_t{decode.rows} * decode.q_heads));
  }
  step.attend = static_cast<int>(timed_.size());
  Timed attention;
  attention.row = step.row;
  attention.row["name"] = "attend";
  attention.row["pages_read"] = step.row["pages_read"] = PagesOf(f, kept) * lists;
  attention.row["pages_total"] = step.row["pages_total"] = PagesOf(f, options_.depth) * lists;
  attention.bytes = static_cast<double>(lists * kept * Shape().TokenBytes());
  step.formula_bytes = step.line_bytes = attention.bytes + map_bytes;
  const SinkWindow window = overwrites ? policy.WindowAt(options_.depth) : SinkWindow{};
  if (window.window > 0) {
    RETURN_IF_ERROR(AddSinks(decode, window, &attention));
  } else {
    ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(AttentionDecodeWorkspace(ctx_, decode)));
    attention.run = [this, decode, workspace] { AttentionDecode(ctx_, decode, workspace); };
  }
  timed_.push_back(std::move(attention));
  if (weighs) RETURN_IF_ERROR(AddRememberedSlots(policy, decode, maps, &step));
  AddWhole(&step);
  steps_.push_back(std::move(step));
  return OkStatus();
}

Result<const SlotMap*> PolicyBench::AddSlotMaps(int64_t kept) {
  const int heads = options_.format.kv_heads;
  std::vector<SlotMap> maps;
  for (int row = 0; row < options_.batch; ++row) {
    std::vector<float> weights = NormalFloats(heads * kept, options_.seed + 9 + row);
    for (float& weight : weights) weight = std::exp(weight);
    ASSIGN_OR_RETURN(float* there, memory_.Copy(weights));
    ASSIGN_OR_RETURN(int32_t * positions, memory_.Zeros<int32_t>(heads * kept));
    maps.push_back({positions, there, heads, kept});
  }
  ASSIGN_OR_RETURN(const SlotMap* there, memory_.Copy(maps));
  return there;
}

// Positions are ready for so many runs; then the maps' begin again, for none may be behind what they hold.
Status PolicyBench::AddLeaving(const AttentionPolicy& policy, const SlotMap* maps, int64_t kept, Timed* leave) {
  constexpr int kRuns = 4096;
  const int rows = options_.batch, heads = options_.format.kv_heads;
  std::vector<int32_t> positions;  // [runs][rows]
  for (int run = 0; run < kRuns; ++run) positions.insert(positions.end(), rows, static_cast<int32_t>(options_.depth + run));
  ASSIGN_OR_RETURN(const int32_t* there, memory_.Copy(positions));
  EvictParams evict{rows, heads, nullptr, maps, nullptr};
  ASSIGN_OR_RETURN(evict.taken, memory_.Zeros<int32_t>(int64_t{heads} * rows));
  std::vector<SlotMap> begin(rows);
  RETURN_IF_ERROR(CopyFromDevice(ctx_.device, begin.data(), maps, begin.size() * sizeof(SlotMap), ctx_.stream));
  if (ctx_.session != nullptr) RETURN_IF_ERROR(ctx_.session->Synchronize());
  std::vector<int32_t> held(heads * kept);
  KeepFirstAndLatest(options_.depth, {held.data(), nullptr, heads, kept});
  leave->run = [this, &policy, evict, there, begin, held, run = std::make_shared<int>(0)]() mutable {  // of all copies
    for (size_t row = 0; *run == 0 && row < begin.size(); ++row) {
      CHECK(CopyToDevice(ctx_.device, begin[row].positions, held.data(), held.size() * sizeof(int32_t), ctx_.stream).ok());
    }
    evict.row_pos = there + int64_t{*run} * evict.rows;
    policy.EvictRows(ctx_, evict);
    *run = (*run + 1) % kRuns;
  };
  return OkStatus();
}

Status PolicyBench::AddRememberedSlots(const AttentionPolicy& policy, const AttentionDecodeParams& decode,
                                       const SlotMap* maps, Step* step) {
  const PageFormat& f = options_.format;
  SlotMassParams mass;
  mass.q = decode.q;
  mass.q_stride = decode.q_stride;
  mass.lse = decode.lse;
  mass.rows = decode.rows;
  mass.q_heads = decode.q_heads;
  mass.row_seq = decode.row_seq;
  mass.row_len = decode.row_len;
  mass.pages = decode.pages;
  mass.table = decode.table;
  mass.scale = decode.scale;
  mass.mass_slots = decode.longest;
  const int64_t numbers = int64_t{mass.rows} * f.kv_heads * mass.mass_slots;
  ASSIGN_OR_RETURN(mass.mass, memory_.Zeros<float>(numbers));
  ASSIGN_OR_RETURN(void* workspace, memory_.Bytes(SlotMassWorkspace(ctx_, mass)));
  step->remember = static_cast<int>(timed_.size());
  Timed& remember = timed_.emplace_back();
  remember.row = step->row;
  remember.row["name"] = "remember";
  remember.bytes = static_cast<double>(numbers * f.k_dim * ElementSize(f.dtype));
  step->line_bytes += remember.bytes;
  step->formula_bytes += remember.bytes;
  const RememberSlotsParams slots{mass.mass, mass.mass_slots, mass.rows, f.kv_heads, mass.row_len, maps};
  remember.run = [this, &policy, mass, workspace, slots] {
    SlotMass(ctx_, mass, workspace);
    policy.RememberSlotRows(ctx_, slots);
  };
  return OkStatus();
}

}  // namespace quire::launch
