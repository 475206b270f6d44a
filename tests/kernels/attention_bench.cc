// Times append, prefill and decode attention and quest's selection, against the read bandwidth measured between their
// repetitions in the same run. Built with QUIRE_BENCHMARKS; for tuning (`quire bench kernels` is the user's one).
//
//   attention_bench [--n 32768] [--d 128] [--kv-heads 8] [--group 4] [--page 16] [--budget 2048] [--batch 1]
//                   [--dtype bf16] [--threads 2] [--reps 15] [--prompt 2048] [--cpu 0] [--flush 1]
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/check.h"
#include "core/base/clock.h"
#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"
#include "kernels/kv_append.h"
#include "kernels/selection/policy.h"

namespace quire {
namespace {

// Processor seconds of the whole process: with --threads 1 and --cpu 1 the figures of a machine shared with others.
double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Times {
  std::vector<double> seconds;
  double Best() const { return *std::min_element(seconds.begin(), seconds.end()); }
  double Median() const {
    std::vector<double> s = seconds;
    std::sort(s.begin(), s.end());
    return s[s.size() / 2];
  }
};

// Sums the buffer: a streaming read by all threads.
uint64_t ReadAll(ThreadPool& pool, const Buffer& buffer) {
  constexpr size_t kPart = 1 << 20;
  const auto parts = static_cast<int64_t>(buffer.size() / kPart);
  std::vector<uint64_t> sums(static_cast<size_t>(parts));
  pool.ParallelFor(parts, [&](int64_t i, int) {
    const auto* p = reinterpret_cast<const uint64_t*>(buffer.data() + static_cast<size_t>(i) * kPart);
    uint64_t s[8] = {};
    for (size_t j = 0; j < kPart / 8; j += 8) {
      for (size_t k = 0; k < 8; ++k) s[k] += p[j + k];
    }
    sums[static_cast<size_t>(i)] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
  });
  uint64_t total = 0;
  for (const uint64_t s : sums) total += s;
  return total;
}

Buffer Make(size_t bytes) {
  auto b = Buffer::Create(bytes);
  CHECK(b.ok());
  return std::move(b).value();
}

int Main(int argc, char** argv) {
  std::map<std::string, std::string> args{{"--n", "32768"},    {"--d", "128"},      {"--kv-heads", "8"}, {"--group", "4"},
                                          {"--page", "16"},    {"--budget", "2048"}, {"--batch", "1"},    {"--dtype", "bf16"},
                                          {"--threads", "2"},  {"--reps", "15"},    {"--prompt", "2048"},
                                          {"--cpu", "0"},     {"--flush", "1"}};
  for (int i = 1; i + 1 < argc; i += 2) {
    CHECK(args.contains(argv[i]));
    args[argv[i]] = argv[i + 1];
  }
  const auto number = [&](const char* name) { return std::atoi(args[name].c_str()); };
  const int n = number("--n"), d = number("--d"), kv_heads = number("--kv-heads"), group = number("--group");
  const auto now = number("--cpu") != 0 ? CpuSeconds : NowSeconds;
  const bool flush = number("--flush") != 0;
  const int page = number("--page"), batch = number("--batch"), reps = number("--reps"), prompt = number("--prompt");
  const DType dtype = *ParseFloatDType(args["--dtype"]);
  const int q_heads = kv_heads * group;
  ThreadPool pool(number("--threads"));
  Context ctx;
  ctx.pool = &pool;
  const PageFormat f = *PageFormat::Create(dtype, page, kv_heads, d, d);
  const int size = ElementSize(dtype);

  // `batch` sequences of n tokens, pages shuffled, filled by KvAppend in steps of 1024 tokens.
  const int pages = (n + page - 1) / page, groups = (pages + 15) / 16;
  Buffer k = Make(static_cast<size_t>(batch * pages * f.k_page_stride) * size);
  Buffer v = Make(static_cast<size_t>(batch * pages * f.v_page_stride) * size);
  Buffer meta = Make(static_cast<size_t>(batch * groups * f.meta_group_stride) * size);
  Buffer over = Make(static_cast<size_t>(batch * groups * f.over_group_stride) * size);
  std::vector<int32_t> ids(static_cast<size_t>(batch * pages)), group_ids(static_cast<size_t>(batch * groups));
  std::vector<int32_t> begin, group_begin, row_seq, row_len;
  std::mt19937_64 random(1);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  for (size_t i = 0; i < group_ids.size(); ++i) group_ids[i] = static_cast<int32_t>(i);
  std::shuffle(ids.begin(), ids.end(), random);
  for (int s = 0; s <= batch; ++s) {
    begin.push_back(s * pages);
    group_begin.push_back(s * groups);
    if (s == batch) break;
    row_seq.push_back(s);
    row_len.push_back(n);
  }
  const LayerPages layer{k.data(), v.data(), meta.data(), over.data()};
  const PageTableView table{f, ids.data(), begin.data(), group_ids.data(), group_begin.data(), batch};
  const int chunk = std::min(n, 1024);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<size_t>(chunk * kv_heads * d));
  for (float& x : rows) x = normal(random);
  Times append;
  for (int s = 0; s < batch; ++s) {
    for (int at = 0; at < n; at += chunk) {
      for (size_t i = 0; i < rows.size(); i += 7) rows[i] = rows[(i * 31 + static_cast<size_t>(at)) % rows.size()];
      std::vector<int32_t> seq(static_cast<size_t>(chunk), s), pos;
      for (int i = 0; i < std::min(chunk, n - at); ++i) pos.push_back(at + i);
      KvAppendParams p{layer, table, rows.data(), int64_t{kv_heads} * d, rows.data(), int64_t{kv_heads} * d, seq.data(),
                       pos.data(), static_cast<int64_t>(pos.size())};
      const double start = now();
      KvAppend(ctx, p);
      append.seconds.push_back(now() - start);
    }
  }

  std::vector<float> q(static_cast<size_t>(batch * q_heads * d)), out(q.size()), lse(static_cast<size_t>(batch * q_heads));
  for (float& x : q) x = normal(random);
  const auto policy = MakePolicy(*AttentionSpec::Parse("quest:token_budget=" + args["--budget"]), page);
  CHECK(policy.ok());
  SelectParams select;
  select.q = q.data();
  select.q_stride = q_heads * d;
  select.rows = batch;
  select.q_heads = q_heads;
  select.row_seq = row_seq.data();
  select.row_len = row_len.data();
  select.layer = 9;
  select.pages = layer;
  select.table = table;
  SelectionView selection;
  selection.max_pages = (*policy)->MaxPages(n, page);
  std::vector<int32_t> selected(static_cast<size_t>(batch * kv_heads * selection.max_pages)), counts(static_cast<size_t>(batch * kv_heads));
  selection.pages = selected.data();
  selection.counts = counts.data();
  AttentionDecodeParams decode;
  decode.q = q.data();
  decode.q_stride = q_heads * d;
  decode.out = out.data();
  decode.out_stride = q_heads * d;
  decode.lse = lse.data();
  decode.rows = batch;
  decode.q_heads = q_heads;
  decode.row_seq = row_seq.data();
  decode.row_len = row_len.data();
  decode.pages = layer;
  decode.table = table;
  decode.scale = 1.0f / std::sqrt(static_cast<float>(d));
  Buffer workspace = Make(AttentionDecodeWorkspace(decode));
  Buffer select_workspace = Make((*policy)->SelectWorkspace(select));
  Buffer stream = Make(size_t{256} << 20);  // eight times the last-level cache here
  std::memset(stream.data(), 1, stream.size());

  uint64_t sink = 0;
  Times read, dense, choose, attend;
  const auto time = [&](Times& t, auto&& f) {
    const double start = now();
    f();
    t.seconds.push_back(now() - start);
  };
  for (int i = 0; i < reps; ++i) {
    if (flush || i == 0) time(read, [&] { sink += ReadAll(pool, stream); });
    decode.selection = nullptr;
    time(dense, [&] { AttentionDecode(ctx, decode, workspace.data()); });
    if (flush) sink += ReadAll(pool, stream);
    time(choose, [&] { (*policy)->Select(ctx, select, selection, select_workspace.data()); });
    decode.selection = &selection;
    time(attend, [&] { AttentionDecode(ctx, decode, workspace.data()); });
  }
  const auto line = [&](const char* name, const Times& t, double bytes) {
    const double rate = static_cast<double>(stream.size()) / read.Best() * 1e-9;
    std::printf("%-14s best %9.3f ms  median %9.3f ms", name, t.Best() * 1e3, t.Median() * 1e3);
    if (bytes > 0) std::printf("  %8.2f MB  %6.2f GB/s  %5.1f %% of read", bytes * 1e-6, bytes / t.Best() * 1e-9, bytes / t.Best() * 1e-7 / rate);
    std::printf("\n");
  };
  int64_t pages_read = 0;
  for (const int32_t c : counts) pages_read += c;
  const double token_bytes = 2.0 * d * size;
  line("read", read, static_cast<double>(stream.size()));
  line("dense decode", dense, token_bytes * batch * n * kv_heads);
  line("quest select", choose, token_bytes * batch * pages * kv_heads);
  line("quest attend", attend, token_bytes * static_cast<double>(pages_read) * page);
  std::printf("quest step %.3f ms: dense / step %.2f (medians %.2f), select / attend %.2f\n",
              (choose.Best() + attend.Best()) * 1e3, dense.Best() / (choose.Best() + attend.Best()),
              dense.Median() / (choose.Median() + attend.Median()), choose.Best() / attend.Best());
  line("append chunk", append, 2.0 * chunk * kv_heads * d * (4 + size));

  if (prompt > 0 && prompt <= n) {
    std::vector<float> pq(static_cast<size_t>(prompt) * q_heads * d), po(pq.size());
    for (float& x : pq) x = normal(random);
    AttentionPrefillParams p;
    const PrefillChunk whole{0, 0, prompt, 0};
    p.q = pq.data();
    p.q_stride = p.out_stride = q_heads * d;
    p.out = po.data();
    p.q_heads = q_heads;
    p.chunks = &whole;
    p.num_chunks = 1;
    p.pages = layer;
    p.table = table;
    p.scale = decode.scale;
    Buffer scratch = Make(AttentionPrefillWorkspace(ctx, p));
    Times prefill;
    for (int i = 0; i < std::max(3, reps / 4); ++i) time(prefill, [&] { AttentionPrefill(ctx, p, scratch.data()); });
    const double flops = 4.0 * d * q_heads * (0.5 * prompt * (prompt + 1.0));
    std::printf("prefill %d     best %9.3f ms  median %9.3f ms  %.1f GFLOP/s (causal FLOPs)\n", prompt, prefill.Best() * 1e3,
                prefill.Median() * 1e3, flops / prefill.Best() * 1e-9);
  }
  return sink == 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
