#include "core/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/check.h"

namespace quire {

void AppendEdits(const SamplerParams& params, const TokenHistory& history, int64_t output_tokens, Range slice,
                 std::vector<LogitEdit>* edits) {
  const auto own = [&](int32_t id) { return id >= slice.begin && id < slice.end; };
  // The ids that the request names come first, few as a rule and ascending, so that those seen can be looked up among them.
  const auto begin = static_cast<std::ptrdiff_t>(edits->size());
  std::ptrdiff_t named = begin;  // their end
  const auto find = [&](int32_t id) {
    return std::lower_bound(edits->begin() + begin, edits->begin() + named, id,
                            [](const LogitEdit& edit, int32_t other) { return edit.id < other; });
  };
  const auto name = [&](int32_t id, float bias) {
    if (!own(id)) return;
    const auto at = find(id);
    if (at != edits->begin() + named && at->id == id) {
      at->bias = bias;
    } else {
      edits->insert(at, LogitEdit{id, bias});
      ++named;
    }
  };
  for (const auto& [id, bias] : params.logit_bias) name(id, bias);
  if (output_tokens < params.min_tokens) {
    for (const int32_t id : params.masked_ids) name(id, -std::numeric_limits<float>::infinity());
  }
  if (!params.has_penalties()) return;
  for (const auto& [id, output_count] : history.seen()) {
    if (!own(id)) continue;
    auto at = find(id);
    if (at == edits->begin() + named || at->id != id) at = edits->insert(edits->end(), LogitEdit{id});
    at->repetition = params.repetition_penalty;
    if (output_count > 0) {
      at->subtract = params.frequency_penalty * static_cast<float>(output_count) + params.presence_penalty;
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

}  // namespace quire
