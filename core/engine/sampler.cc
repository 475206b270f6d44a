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

namespace quire {
namespace {

// How many times more candidates are asked for when they don't settle a draw.
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

Result<Sampler> Sampler::Create(const Context& ctx, SamplerOptions options) {
  if (options.slices.empty()) options.slices = {Range{0, options.vocab}};
  int rank = 0;
  if (options.comm != nullptr) {
    CHECK_EQ(options.comm->size(), static_cast<int>(options.slices.size()));
    rank = options.comm->rank();
  }
  CHECK_EQ(options.slices.back().end, options.vocab);
  ASSIGN_OR_RETURN(LocalCandidates local, LocalCandidates::Create(ctx, options.slices[static_cast<size_t>(rank)],
                                                                  options.max_rows, options.max_jobs));
  Sampler sampler(std::move(local));
  sampler.on_gpu_ = ctx.device.kind != DeviceKind::kCpu;
  sampler.rank_ = rank;
  for (const Range& slice : options.slices) sampler.widest_ = std::max(sampler.widest_, slice.size());
  sampler.options_ = std::move(options);
  sampler.read_.resize(sampler.options_.slices.size());
  return sampler;
}

void Sampler::Decide(int rows, std::span<const SampleJob> jobs, std::span<const ScoreJob> score_jobs) {
  const int all = Clamp(options_.vocab);
  CandidateWants& w = wants_;
  w.Clear();
  work_of_.assign(jobs.size(), -1);
  bool raw = !score_jobs.empty();
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    const SamplerParams& p = *job.params;
    raw |= p.logprobs >= 0;
    w.k = std::max(w.k, std::min(p.logprobs, all));
    if (job.forced >= 0) {
      w.known_rows.push_back({.row = job.logit_row});
      w.known_ids.push_back(job.forced);
    }
    const bool edits = p.edits(job.output_tokens);
    if (job.forced >= 0 || (p.greedy() && !edits)) {
      raw = true;
      continue;
    }
    work_of_[i] = static_cast<int>(w.works.size());
    CandidateRow work{.row = job.logit_row, .edits_begin = static_cast<int32_t>(w.edits.size())};
    if (edits) AppendEdits(p, *job.history, job.output_tokens, mine(), &w.edits);
    work.edits_end = static_cast<int32_t>(w.edits.size());
    if (!p.greedy()) {
      work.scale = 1.0f / p.temperature;
      w.work_k = std::min(kFirstCandidates, all);
    }
    w.work_raw |= p.logprobs >= 0;
    w.works.push_back(work);
  }
  for (const ScoreJob& job : score_jobs) {
    w.k = std::max(w.k, std::min(job.top, all));
    w.known_rows.push_back({.row = job.logit_row});
    w.known_ids.push_back(job.token);
  }
  w.rows = raw ? rows : 0;
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

Status Sampler::Fetch(const float* logits, int rows, std::span<const SampleJob> jobs,
                      std::span<const ScoreJob> score_jobs) {
  if (!on_gpu_) return OkStatus();
  Decide(rows, jobs, score_jobs);
  return local_.Find(logits, rows, wants_);
}

void Sampler::AppendList(const LocalCandidates::List& list, int k, bool with_raw) {
  const auto sent = static_cast<size_t>(std::min<int64_t>(k, widest_)), own = static_cast<size_t>(list.k);
  CHECK_LE(own, sent);
  const auto put = [&](const auto* words, auto filling) {
    const size_t at = send_.size();
    send_.resize(at + sent, std::bit_cast<uint32_t>(filling));
    if (own > 0) std::memcpy(send_.data() + at, words, own * sizeof(uint32_t));
  };
  send_.push_back(std::bit_cast<uint32_t>(list.lse));
  put(list.values, kMinusInf);
  put(list.ids, kNoToken);
  if (with_raw) put(list.raw, kMinusInf);
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
Status Sampler::DrawAll(std::span<const SampleJob> jobs, std::vector<SampledToken>* tokens, std::vector<float>* chosen_raw) {
  std::vector<size_t> open;  // jobs not settled
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (work_of_[i] >= 0) open.push_back(i);
  }
  const bool with_raw = wants_.work_raw;
  int k = wants_.work_k;
  bool first = true;
  while (!open.empty()) {
    std::vector<size_t> left;
    for (size_t n = 0; n < open.size(); ++n) {
      const size_t i = open[n];
      const SampleJob& job = jobs[i];
      SampledToken& token = (*tokens)[i];
      const size_t begin = drawn_.at(first ? work_of_[i] : static_cast<int>(n));
      const float* values = drawn_.values.data() + begin;
      token.finite = std::isfinite(values[0]);
      if (!token.finite) continue;
      std::optional<int> drawn = 0;
      if (!job.params->greedy()) {
        const double u = UniformDraw(job.params->seed, static_cast<uint32_t>(job.sequence),
                                     static_cast<uint64_t>(job.position), DrawPurpose::kToken);
        const float lse = drawn_.lse[first ? work_of_[i] : static_cast<int>(n)];
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
    std::vector<int> works;
    for (const size_t i : open) works.push_back(work_of_[i]);
    RETURN_IF_ERROR(local_.FindMore(works, k));
    drawn_.Resize(static_cast<int>(open.size()), k, with_raw);
    for (int n = 0; n < drawn_.rows; ++n) AppendList(local_.Work(n), k, with_raw);
    RETURN_IF_ERROR(Exchange());
    for (int n = 0; n < drawn_.rows; ++n) MergeList(k, with_raw, &drawn_, n);
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
  if (on_gpu_) {
    CHECK_EQ(work_of_.size(), jobs.size());  // as they were fetched
    RETURN_IF_ERROR(local_.Finish());
  } else {
    Decide(rows, jobs, score_jobs);
    RETURN_IF_ERROR(local_.Find(logits, rows, wants_));
  }
  const CandidateWants& w = wants_;
  const int works = static_cast<int>(w.works.size());

  send_.assign(kHistoryWords + 2 * sums.size(), 0);
  std::memcpy(send_.data(), &history_, sizeof(history_));
  if (!sums.empty()) std::memcpy(send_.data() + kHistoryWords, sums.data(), sums.size_bytes());
  for (int row = 0; row < w.rows; ++row) AppendList(local_.Row(row), w.k, false);
  for (int work = 0; work < works; ++work) AppendList(local_.Work(work), w.work_k, w.work_raw);
  for (size_t i = 0; i < w.known_ids.size(); ++i) {
    send_.push_back(std::bit_cast<uint32_t>(local_.Known(static_cast<int>(i))));
  }
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
  raw_.Resize(w.rows, w.k, false);
  drawn_.Resize(works, w.work_k, w.work_raw);
  for (int row = 0; row < w.rows; ++row) MergeList(w.k, false, &raw_, row);
  for (int work = 0; work < works; ++work) MergeList(w.work_k, w.work_raw, &drawn_, work);
  std::vector<float> chosen_raw(jobs.size()), score_raw;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].forced >= 0) chosen_raw[i] = TakeKnown(jobs[i].forced);
  }
  for (const ScoreJob& job : score_jobs) score_raw.push_back(TakeKnown(job.token));

  RETURN_IF_ERROR(DrawAll(jobs, tokens, &chosen_raw));
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    SampledToken& token = (*tokens)[i];
    if (work_of_[i] < 0) {
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
