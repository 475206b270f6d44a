#include "core/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "core/engine/philox.h"
#include "kernels/top_candidates.h"

namespace quire {
namespace {

// Candidates asked for at first, and how many more when they don't settle a draw.
constexpr int kFirstCandidates = 64;
constexpr int kMoreCandidates = 16;
// What stands where a slice has fewer tokens than asked for: behind every token there is.
constexpr int32_t kNoToken = std::numeric_limits<int32_t>::max();
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr size_t kHistoryWords = 2;

int Clamp(int64_t k) { return static_cast<int>(std::min<int64_t>(k, std::numeric_limits<int32_t>::max())); }

// log Σ exp of the ranks' log-sum-exps, in rank order. One rank's own stays as it is.
float Combine(std::span<const float> lse) {
  if (lse.size() == 1) return lse[0];
  float best = kMinusInf;
  for (const float x : lse) {
    if (std::isnan(x)) return x;
    best = std::max(best, x);
  }
  if (std::isinf(best)) return best;
  double sum = 0;
  for (const float x : lse) sum += std::exp(static_cast<double>(x) - best);
  return static_cast<float>(best + std::log(sum));
}

}  // namespace

size_t Sampler::ScratchBytes(int64_t local_vocab, int max_rows, int max_jobs) {
  return static_cast<size_t>(max_jobs) * static_cast<size_t>(local_vocab) * sizeof(float) +
         static_cast<size_t>(max_rows + max_jobs) * kFirstCandidates * 8;
}

Result<Sampler> Sampler::Create(const Context& ctx, SamplerOptions options) {
  Sampler sampler;
  sampler.ctx_ = sampler.host_ctx_ = ctx;
  sampler.host_ctx_.device = {};
  sampler.host_ctx_.stream = {};
  sampler.host_ctx_.session = nullptr;
  if (options.slices.empty()) options.slices = {Range{0, options.vocab}};
  if (options.comm != nullptr) {
    CHECK_EQ(options.comm->size(), static_cast<int>(options.slices.size()));
    sampler.rank_ = options.comm->rank();
  }
  CHECK_EQ(options.slices.back().end, options.vocab);
  for (const Range& slice : options.slices) sampler.widest_ = std::max(sampler.widest_, slice.size());
  sampler.options_ = std::move(options);
  sampler.read_.resize(sampler.options_.slices.size());
  ASSIGN_OR_RETURN(sampler.work_, Buffer::Create(static_cast<size_t>(sampler.options_.max_jobs) *
                                                 static_cast<size_t>(sampler.mine().size()) * sizeof(float)));
  return sampler;
}

Sampler::Plan Sampler::Decide(std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs) const {
  const int all = Clamp(options_.vocab);
  Plan plan;
  plan.raw_wanted = !score_jobs.empty();
  plan.work_of.assign(jobs.size(), -1);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    const bool plain = job.forced >= 0 || (job.params->greedy() && !job.params->edits(job.output_tokens));
    if (!plain) {
      plan.work_of[i] = plan.works++;
      plan.work_raw |= job.params->logprobs >= 0;
      if (!job.params->greedy()) plan.work_k = std::min(kFirstCandidates, all);
    }
    plan.raw_wanted |= plain || job.params->logprobs >= 0;
    plan.raw_k = std::max(plan.raw_k, std::min(job.params->logprobs, all));
  }
  for (const ScoreJob& job : score_jobs) plan.raw_k = std::max(plan.raw_k, std::min(job.top, all));
  return plan;
}

void Sampler::MakeWorkRows(const float* logits, std::span<const SampleJob> jobs, const Plan& plan) {
  const int64_t vocab = mine().size();
  ctx_.pool->ParallelFor(static_cast<int64_t>(jobs.size()), [&](int64_t i, int) {
    if (plan.work_of[i] < 0) return;
    const SampleJob& job = jobs[i];
    float* row = WorkRow(plan.work_of[i]);
    std::copy_n(logits + job.logit_row * vocab, vocab, row);
    EditLogits(*job.params, *job.history, job.output_tokens, row, vocab, static_cast<int32_t>(mine().begin));
    if (!job.params->greedy() && job.params->temperature != 1.0f) {
      const float scale = 1.0f / job.params->temperature;
      for (int64_t j = 0; j < vocab; ++j) row[j] *= scale;
    }
  });
}

void Sampler::Lists::Resize(int new_rows, int new_k, bool raw_too) {
  rows = new_rows;
  k = new_k;
  with_raw = raw_too;
  const size_t all = static_cast<size_t>(rows) * static_cast<size_t>(k);
  lse.resize(static_cast<size_t>(rows));
  values.resize(all);
  ids.resize(all);
  raw.resize(raw_too ? all : 0);
}

void Sampler::FindLocal(const float* x, int rows, int k) {
  const int sent = static_cast<int>(std::min<int64_t>(k, widest_));
  const int own = static_cast<int>(std::min<int64_t>(sent, mine().size()));
  local_.Resize(rows, sent, false);
  if (own == 0) {
    std::fill(local_.lse.begin(), local_.lse.end(), kMinusInf);
  } else {
    TopCandidates(host_ctx_, {.logits = x,
                              .stride = mine().size(),
                              .rows = rows,
                              .vocab = mine().size(),
                              .vocab_begin = static_cast<int32_t>(mine().begin),
                              .k = own,
                              .ids = local_.ids.data(),
                              .values = local_.values.data(),
                              .lse = local_.lse.data()});
  }
  PadLocal(own);
}

// local_ from [rows][own] to [rows][sent].
void Sampler::PadLocal(int own) {
  const int sent = local_.k;
  if (own == sent) return;
  for (int row = local_.rows - 1; row >= 0; --row) {  // the last row first
    const size_t from = static_cast<size_t>(row) * own, to = local_.at(row);
    for (int i = sent - 1; i >= 0; --i) {
      local_.values[to + i] = i < own ? local_.values[from + i] : kMinusInf;
      local_.ids[to + i] = i < own ? local_.ids[from + i] : kNoToken;
    }
  }
}

Status Sampler::Fetch(const float* logits, int rows, std::span<const SampleJob> jobs,
                      std::span<const ScoreJob> score_jobs) {
  if (ctx_.device.kind == DeviceKind::kCpu) return OkStatus();
  const Plan plan = Decide(jobs, score_jobs);
  const int64_t vocab = mine().size();
  const int k = static_cast<int>(std::min<int64_t>(plan.raw_k, vocab));
  const bool by_token =
      !score_jobs.empty() || std::any_of(jobs.begin(), jobs.end(), [](const SampleJob& job) { return job.forced >= 0; });
  fetched_.rows = plan.works > 0 || by_token || k > MostCandidates(ctx_);
  const size_t all = static_cast<size_t>(rows) * static_cast<size_t>(fetched_.rows ? vocab : 2 * int64_t{k} + 1);
  const size_t bytes = all * sizeof(float);
  if (bytes == 0 || vocab == 0) return OkStatus();
  if (fetched_.host.size() < bytes) {
    ASSIGN_OR_RETURN(fetched_.host, HostBuffer::Create(ctx_.device, bytes));
  }
  if (fetched_.rows) return CopyFromDevice(ctx_.device, fetched_.host.data(), logits, bytes, ctx_.stream);
  if (fetched_.candidates.size() < bytes) {
    ASSIGN_OR_RETURN(fetched_.candidates, Buffer::Create(bytes, ctx_.device));
  }
  auto* lse = reinterpret_cast<float*>(fetched_.candidates.data());
  float* values = lse + rows;
  TopCandidates(ctx_, {.logits = logits,
                       .stride = vocab,
                       .rows = rows,
                       .vocab = vocab,
                       .vocab_begin = static_cast<int32_t>(mine().begin),
                       .k = k,
                       .ids = reinterpret_cast<int32_t*>(values + int64_t{rows} * k),
                       .values = values,
                       .lse = lse});
  return CopyFromDevice(ctx_.device, fetched_.host.data(), fetched_.candidates.data(), bytes, ctx_.stream);
}

void Sampler::TakeFetched(int rows, int k) {
  const int sent = static_cast<int>(std::min<int64_t>(k, widest_));
  const int own = static_cast<int>(std::min<int64_t>(sent, mine().size()));
  local_.Resize(rows, sent, false);
  const auto* lse = reinterpret_cast<const float*>(fetched_.host.data());
  const size_t all = static_cast<size_t>(rows) * static_cast<size_t>(own);
  if (own == 0) {
    std::fill(local_.lse.begin(), local_.lse.end(), kMinusInf);
  } else {
    std::copy_n(lse, rows, local_.lse.begin());
    std::copy_n(lse + rows, all, local_.values.begin());
    std::memcpy(local_.ids.data(), lse + rows + all, all * sizeof(int32_t));
  }
  PadLocal(own);
}

void Sampler::AppendList(int local_row, const float* raw_row, bool with_raw) {
  const size_t begin = local_.at(local_row), k = static_cast<size_t>(local_.k);
  const auto put = [&](const auto* words, size_t count) {
    const size_t at = send_.size();
    send_.resize(at + count);
    std::memcpy(send_.data() + at, words, count * sizeof(uint32_t));
  };
  put(&local_.lse[local_row], 1);
  put(local_.values.data() + begin, k);
  put(local_.ids.data() + begin, k);
  if (!with_raw) return;
  for (size_t i = 0; i < k; ++i) {
    const int32_t id = local_.ids[begin + i];
    send_.push_back(std::bit_cast<uint32_t>(id == kNoToken ? kMinusInf : raw_row[id - mine().begin]));
  }
}

void Sampler::MergeList(int k, bool with_raw, Lists* lists, int row) {
  const size_t sent = static_cast<size_t>(std::min<int64_t>(k, widest_));
  struct Source {
    const float* values;
    const int32_t* ids;
    const float* raw;
    size_t next;
  };
  std::vector<Source> sources;
  std::vector<float> lse;
  for (size_t& at : read_) {
    const auto* words = reinterpret_cast<const float*>(recv_.data() + at);
    lse.push_back(words[0]);
    sources.push_back({words + 1, reinterpret_cast<const int32_t*>(words + 1 + sent), words + 1 + 2 * sent, 0});
    at += 1 + sent * (with_raw ? 3 : 2);
  }
  lists->lse[row] = Combine(lse);
  const size_t begin = lists->at(row);
  for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
    Source* best = nullptr;
    for (Source& source : sources) {
      if (source.next == sent) continue;
      if (best == nullptr || source.values[source.next] > best->values[best->next] ||
          (source.values[source.next] == best->values[best->next] && source.ids[source.next] < best->ids[best->next])) {
        best = &source;
      }
    }
    CHECK(best != nullptr);  // k ≤ vocabulary
    lists->values[begin + i] = best->values[best->next];
    lists->ids[begin + i] = best->ids[best->next];
    if (with_raw) lists->raw[begin + i] = best->raw[best->next];
    ++best->next;
  }
}

// The raw logit of a token that is known beforehand, from the rank that has it.
void Sampler::AppendKnown(const float* logits, int32_t row, int32_t token) {
  const bool own = token >= mine().begin && token < mine().end;
  send_.push_back(std::bit_cast<uint32_t>(own ? logits[row * mine().size() + token - mine().begin] : 0.0f));
}

float Sampler::TakeKnown(int32_t token) {
  float value = 0;
  for (size_t r = 0; r < read_.size(); ++r) {
    const uint32_t word = recv_[read_[r]++];
    const Range& slice = options_.slices[r];
    if (token >= slice.begin && token < slice.end) value = std::bit_cast<float>(word);
  }
  return value;
}

// send_ of all ranks → recv_, with read_ at the first word of each.
Status Sampler::Exchange() {
  const size_t words = send_.size();
  for (size_t r = 0; r < read_.size(); ++r) read_[r] = r * words;
  if (ranks() == 1) {
    recv_.swap(send_);
    return OkStatus();
  }
  recv_.resize(words * read_.size());
  const auto size = static_cast<int64_t>(words);
  return options_.comm->AllGather({send_.data(), DType::kI32, {size}, {}},
                                  {recv_.data(), DType::kI32, {size * ranks()}, {}});
}

TokenLogprobs Sampler::LogprobsOf(int row, int32_t token, float raw, int top) const {
  TokenLogprobs out;
  const float lse = raw_.lse[row];
  out.chosen = {token, raw - lse};
  const size_t begin = raw_.at(row);
  const int n = std::min(top, raw_.k);
  out.top.reserve(n);
  for (int i = 0; i < n; ++i) out.top.push_back({raw_.ids[begin + i], raw_.values[begin + i] - lse});
  return out;
}

// The draws of edited rows, whose first candidates are in drawn_. Those that need more ask for them together.
Status Sampler::DrawAll(const float* logits, std::span<const SampleJob> jobs, const Plan& plan,
                        std::vector<SampledToken>* tokens, std::vector<float>* chosen_raw) {
  std::vector<size_t> open;  // jobs not settled
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (plan.work_of[i] >= 0) open.push_back(i);
  }
  int k = plan.work_k;
  bool first = true;
  while (!open.empty()) {
    std::vector<size_t> left;
    for (size_t n = 0; n < open.size(); ++n) {
      const size_t i = open[n];
      const SampleJob& job = jobs[i];
      SampledToken& token = (*tokens)[i];
      const size_t begin = drawn_.at(first ? plan.work_of[i] : static_cast<int>(n));
      const float* values = drawn_.values.data() + begin;
      token.finite = std::isfinite(values[0]);
      if (!token.finite) continue;
      std::optional<int> drawn = 0;
      if (!job.params->greedy()) {
        const double u = UniformDraw(job.params->seed, static_cast<uint32_t>(job.sequence),
                                     static_cast<uint64_t>(job.position), DrawPurpose::kToken);
        const float lse = drawn_.lse[first ? plan.work_of[i] : static_cast<int>(n)];
        drawn = DrawFromCandidates({{values, static_cast<size_t>(k)}, lse, k == options_.vocab}, *job.params, u);
      }
      if (!drawn.has_value()) {
        left.push_back(i);
        continue;
      }
      token.id = drawn_.ids[begin + *drawn];
      if (drawn_.with_raw) (*chosen_raw)[i] = drawn_.raw[begin + *drawn];
    }
    open = std::move(left);
    if (open.empty()) break;
    first = false;
    k = Clamp(std::min<int64_t>(options_.vocab, int64_t{k} * kMoreCandidates));
    send_.clear();
    for (const size_t i : open) {
      FindLocal(WorkRow(plan.work_of[i]), 1, k);
      AppendList(0, logits + jobs[i].logit_row * mine().size(), plan.work_raw);
    }
    RETURN_IF_ERROR(Exchange());
    drawn_.Resize(static_cast<int>(open.size()), k, plan.work_raw);
    for (int n = 0; n < drawn_.rows; ++n) MergeList(k, plan.work_raw, &drawn_, n);
  }
  return OkStatus();
}

Status Sampler::Run(const float* logits, int rows, std::span<const SampleJob> jobs,
                    std::span<const ScoreJob> score_jobs, std::vector<SampledToken>* tokens,
                    std::vector<TokenLogprobs>* scores, std::span<int64_t> sums) {
  CHECK_LE(rows, options_.max_rows);
  CHECK_LE(jobs.size(), static_cast<size_t>(options_.max_jobs));
  tokens->assign(jobs.size(), {});
  scores->clear();
  const Plan plan = Decide(jobs, score_jobs);
  const int64_t vocab = mine().size();
  const bool on_gpu = ctx_.device.kind != DeviceKind::kCpu;
  if (on_gpu) logits = fetched_.rows ? reinterpret_cast<const float*>(fetched_.host.data()) : nullptr;

  send_.assign(kHistoryWords + 2 * sums.size(), 0);
  std::memcpy(send_.data(), &history_, sizeof(history_));
  if (!sums.empty()) std::memcpy(send_.data() + kHistoryWords, sums.data(), sums.size_bytes());
  if (plan.raw_wanted) {
    if (on_gpu && !fetched_.rows) {
      TakeFetched(rows, plan.raw_k);
    } else {
      FindLocal(logits, rows, plan.raw_k);
    }
    for (int row = 0; row < rows; ++row) AppendList(row, nullptr, false);
  }
  if (plan.works > 0) {
    MakeWorkRows(logits, jobs, plan);
    FindLocal(WorkRow(0), plan.works, plan.work_k);
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (plan.work_of[i] >= 0) AppendList(plan.work_of[i], logits + jobs[i].logit_row * vocab, plan.work_raw);
    }
  }
  for (const SampleJob& job : jobs) {
    if (job.forced >= 0) AppendKnown(logits, job.logit_row, job.forced);
  }
  for (const ScoreJob& job : score_jobs) AppendKnown(logits, job.logit_row, job.token);
  RETURN_IF_ERROR(Exchange());

  std::fill(sums.begin(), sums.end(), 0);
  for (int r = 0; r < ranks(); ++r) {
    uint64_t history = 0;
    std::memcpy(&history, recv_.data() + read_[r], sizeof(history));
    if (history != history_) {
      return Internal("rank " + std::to_string(r) + " drew other tokens than rank " + std::to_string(rank_) +
                      " in an earlier step; the ranks' machines or builds compute differently");
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      int64_t value = 0;
      std::memcpy(&value, recv_.data() + read_[r] + kHistoryWords + 2 * i, sizeof(value));
      sums[i] += value;
    }
    read_[r] += kHistoryWords + 2 * sums.size();
  }
  raw_.Resize(plan.raw_wanted ? rows : 0, plan.raw_k, false);
  drawn_.Resize(plan.works, plan.work_k, plan.work_raw);
  for (int row = 0; row < raw_.rows; ++row) MergeList(plan.raw_k, false, &raw_, row);
  for (int work = 0; work < plan.works; ++work) MergeList(plan.work_k, plan.work_raw, &drawn_, work);
  std::vector<float> chosen_raw(jobs.size()), score_raw;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].forced >= 0) chosen_raw[i] = TakeKnown(jobs[i].forced);
  }
  for (const ScoreJob& job : score_jobs) score_raw.push_back(TakeKnown(job.token));

  RETURN_IF_ERROR(DrawAll(logits, jobs, plan, tokens, &chosen_raw));
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    SampledToken& token = (*tokens)[i];
    if (plan.work_of[i] < 0) {
      const size_t begin = raw_.at(job.logit_row);
      token.finite = std::isfinite(raw_.values[begin]);
      token.id = job.forced >= 0 ? job.forced : raw_.ids[begin];
      if (job.forced < 0) chosen_raw[i] = raw_.values[begin];
    }
    if (token.finite && job.params->logprobs >= 0) {
      token.logprobs = LogprobsOf(job.logit_row, token.id, chosen_raw[i], job.params->logprobs);
    }
    history_ = (history_ ^ static_cast<uint32_t>(token.id)) * 0x100000001b3u;
  }
  for (size_t i = 0; i < score_jobs.size(); ++i) {
    scores->push_back(LogprobsOf(score_jobs[i].logit_row, score_jobs[i].token, score_raw[i], score_jobs[i].top));
  }
  return OkStatus();
}

}  // namespace quire
