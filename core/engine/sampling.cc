#include "core/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/check.h"
#include "core/engine/philox.h"
#include "kernels/top_candidates.h"

namespace quire {
namespace {

// Candidates asked for at first, and how many more when they don't settle a draw.
constexpr int kFirstCandidates = 64;
constexpr int kMoreCandidates = 16;

}  // namespace

void EditLogits(const SamplerParams& params, const TokenHistory& history, int64_t output_tokens, float* row,
                int64_t vocab, int32_t vocab_begin) {
  const auto at = [&](int32_t id) -> float* {
    const int64_t i = int64_t{id} - vocab_begin;
    return i >= 0 && i < vocab ? row + i : nullptr;
  };
  for (const auto& [id, bias] : params.logit_bias) {
    if (float* logit = at(id)) *logit += bias;
  }
  if (params.has_penalties()) {
    // Each token is changed by itself, so the map's order does not matter.
    for (const auto& [id, seen] : history.seen()) {
      float* logit = at(id);
      if (logit == nullptr) continue;
      *logit = *logit > 0 ? *logit / params.repetition_penalty : *logit * params.repetition_penalty;
      if (seen.output_count > 0) {
        *logit -= params.frequency_penalty * static_cast<float>(seen.output_count) + params.presence_penalty;
      }
    }
  }
  if (output_tokens < params.min_tokens) {
    for (int32_t id : params.masked_ids) {
      if (float* logit = at(id)) *logit = -std::numeric_limits<float>::infinity();
    }
  }
}

std::optional<int> DrawFromCandidates(const Candidates& candidates, const SamplerParams& params, double u) {
  const auto& values = candidates.values;
  const int n = static_cast<int>(values.size());
  CHECK_GT(n, 0);
  const double best = values[0];
  const auto weight = [&](int i) { return std::exp(static_cast<double>(values[i]) - best); };

  // min_p and top_k keep a prefix of fixed length; `kept` < 0 while it goes on beyond the candidates.
  int kept = candidates.complete ? n : -1;
  if (params.min_p > 0) {
    const double least = best + std::log(static_cast<double>(params.min_p));
    int m = 1;
    while (m < n && values[m] >= least) ++m;
    if (m < n) kept = m;
  }
  if (params.top_k > 0 && params.top_k <= n) kept = kept < 0 ? params.top_k : std::min(kept, params.top_k);
  if (kept < 0 && (params.min_p > 0 || params.top_k > 0)) return std::nullopt;

  double total = 0;  // weight of what min_p and top_k keep
  const bool all = kept < 0 || (candidates.complete && kept == n);
  if (all) {
    total = std::exp(static_cast<double>(candidates.lse) - best);
  } else {
    for (int i = 0; i < kept; ++i) total += weight(i);
  }
  const int end = kept < 0 ? n : kept;

  // top_p keeps the shortest prefix that reaches p of that weight, and at least one token.
  int last = end;
  double mass = total;
  if (params.top_p < 1.0f) {
    const double wanted = static_cast<double>(params.top_p) * total;
    double sum = 0;
    last = -1;
    for (int i = 0; i < end; ++i) {
      sum += weight(i);
      if (sum >= wanted) {
        last = i + 1;
        break;
      }
    }
    if (last < 0) {
      if (kept < 0) return std::nullopt;
      last = end;  // the sum fell short of the log-sum-exp by rounding
    }
    mass = sum;
  }

  const double target = u * mass;
  double sum = 0;
  int drawn = 0;
  for (int i = 0; i < last; ++i) {
    const double w = weight(i);
    if (w > 0) drawn = i;  // rounding may leave the target beyond the sum: the last possible token then
    sum += w;
    if (sum > target) return i;
  }
  if (kept < 0 && params.top_p >= 1.0f) return std::nullopt;
  return drawn;
}

size_t Sampler::ScratchBytes(int64_t vocab, int max_rows, int max_jobs) {
  return static_cast<size_t>(max_jobs) * static_cast<size_t>(vocab) * sizeof(float) +
         static_cast<size_t>(max_rows + max_jobs) * kFirstCandidates * 8;
}

Result<Sampler> Sampler::Create(const Context& ctx, int64_t vocab, int max_rows, int max_jobs) {
  Sampler sampler;
  sampler.ctx_ = ctx;
  sampler.vocab_ = vocab;
  sampler.max_rows_ = max_rows;
  sampler.max_jobs_ = max_jobs;
  ASSIGN_OR_RETURN(sampler.work_, Buffer::Create(static_cast<size_t>(max_jobs) * vocab * sizeof(float)));
  return sampler;
}

TokenLogprobs Sampler::LogprobsOf(const float* row, int row_index, int32_t token, int top) const {
  TokenLogprobs out;
  const float lse = raw_lse_[row_index];
  out.chosen = {token, row[token] - lse};
  const size_t begin = static_cast<size_t>(row_index) * raw_k_;
  const int n = std::min(top, raw_k_);
  out.top.reserve(n);
  for (int i = 0; i < n; ++i) out.top.push_back({raw_ids_[begin + i], raw_values_[begin + i] - lse});
  return out;
}

void Sampler::Draw(const SampleJob& job, float* work_row, int index, int k, SampledToken* token) {
  const double u = UniformDraw(job.params->seed, static_cast<uint32_t>(job.sequence),
                               static_cast<uint64_t>(job.position), DrawPurpose::kToken);
  const int32_t* ids = work_ids_.data() + static_cast<size_t>(index) * k;
  const float* values = work_values_.data() + static_cast<size_t>(index) * k;
  float lse = work_lse_[index];
  std::vector<int32_t> more_ids;
  std::vector<float> more_values;
  while (true) {
    token->finite = std::isfinite(values[0]);
    if (!token->finite) return;
    if (job.params->greedy()) {
      token->id = ids[0];
      return;
    }
    const Candidates candidates{{values, static_cast<size_t>(k)}, lse, k == vocab_};
    if (const auto drawn = DrawFromCandidates(candidates, *job.params, u)) {
      token->id = ids[*drawn];
      return;
    }
    k = static_cast<int>(std::min<int64_t>(vocab_, int64_t{k} * kMoreCandidates));
    more_ids.resize(k);
    more_values.resize(k);
    TopCandidates(ctx_, {.logits = work_row,
                         .stride = vocab_,
                         .rows = 1,
                         .vocab = vocab_,
                         .k = k,
                         .ids = more_ids.data(),
                         .values = more_values.data(),
                         .lse = &lse});
    ids = more_ids.data();
    values = more_values.data();
  }
}

void Sampler::Run(const float* logits, int rows, std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs,
                  std::vector<SampledToken>* tokens, std::vector<TokenLogprobs>* scores) {
  CHECK_LE(rows, max_rows_);
  CHECK_LE(jobs.size(), static_cast<size_t>(max_jobs_));
  tokens->assign(jobs.size(), {});
  scores->clear();
  const int max_k = static_cast<int>(std::min<int64_t>(vocab_, std::numeric_limits<int32_t>::max()));

  // The raw rows: what log-probabilities and plain greedy rows need.
  raw_k_ = 1;
  bool raw_wanted = !score_jobs.empty();
  std::vector<int> work_of(jobs.size(), -1);
  int works = 0;
  int work_k = 1;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    const bool plain = job.forced >= 0 || (job.params->greedy() && !job.params->edits(job.output_tokens));
    if (!plain) {
      work_of[i] = works++;
      if (!job.params->greedy()) work_k = std::min(kFirstCandidates, max_k);
    }
    raw_wanted |= plain || job.params->logprobs >= 0;
    raw_k_ = std::max(raw_k_, std::min(job.params->logprobs, max_k));
  }
  for (const ScoreJob& job : score_jobs) raw_k_ = std::max(raw_k_, std::min(job.top, max_k));
  if (raw_wanted) {
    raw_ids_.resize(static_cast<size_t>(rows) * raw_k_);
    raw_values_.resize(raw_ids_.size());
    raw_lse_.resize(rows);
    TopCandidates(ctx_, {.logits = logits,
                         .stride = vocab_,
                         .rows = rows,
                         .vocab = vocab_,
                         .k = raw_k_,
                         .ids = raw_ids_.data(),
                         .values = raw_values_.data(),
                         .lse = raw_lse_.data()});
  }

  // Copies of the rows that are edited or scaled.
  float* work = reinterpret_cast<float*>(work_.data());
  if (works > 0) {
    ctx_.pool->ParallelFor(static_cast<int64_t>(jobs.size()), [&](int64_t i, int) {
      if (work_of[i] < 0) return;
      const SampleJob& job = jobs[i];
      float* row = work + static_cast<size_t>(work_of[i]) * vocab_;
      std::copy_n(logits + static_cast<size_t>(job.logit_row) * vocab_, vocab_, row);
      EditLogits(*job.params, *job.history, job.output_tokens, row, vocab_);
      if (!job.params->greedy() && job.params->temperature != 1.0f) {
        const float scale = 1.0f / job.params->temperature;
        for (int64_t j = 0; j < vocab_; ++j) row[j] *= scale;
      }
    });
    work_ids_.resize(static_cast<size_t>(works) * work_k);
    work_values_.resize(work_ids_.size());
    work_lse_.resize(works);
    TopCandidates(ctx_, {.logits = work,
                         .stride = vocab_,
                         .rows = works,
                         .vocab = vocab_,
                         .k = work_k,
                         .ids = work_ids_.data(),
                         .values = work_values_.data(),
                         .lse = work_lse_.data()});
  }

  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    SampledToken& token = (*tokens)[i];
    if (work_of[i] >= 0) {
      Draw(job, work + static_cast<size_t>(work_of[i]) * vocab_, work_of[i], work_k, &token);
    } else {
      const size_t begin = static_cast<size_t>(job.logit_row) * raw_k_;
      token.finite = std::isfinite(raw_values_[begin]);
      token.id = job.forced >= 0 ? job.forced : raw_ids_[begin];
    }
    if (token.finite && job.params->logprobs >= 0) {
      token.logprobs = LogprobsOf(logits + static_cast<size_t>(job.logit_row) * vocab_, job.logit_row, token.id,
                                  job.params->logprobs);
    }
  }
  for (const ScoreJob& job : score_jobs) {
    scores->push_back(
        LogprobsOf(logits + static_cast<size_t>(job.logit_row) * vocab_, job.logit_row, job.token, job.top));
  }
}

}  // namespace quire
