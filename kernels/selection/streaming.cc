// StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens and the latest ones, by tokens, whatever the query.
// Positions count inside that cache: a query stands right behind the window whatever the sequence's length, so for the
// first tokens it is turned back by the tokens left out between (AttentionDecodeSinks); for the window nothing changes,
// as only distances count. K keeps the rotation that it was written with.
//
// Evicting, a sequence has token_budget slots: the sinks', and behind them a ring in which each token takes the place
// of the oldest. The order of slots means nothing to a softmax, so the attention is the same, and as positions count
// inside the cache a sequence may go on for ever.
//
// Reads per step and KV head: token_budget vectors of K and of V, in whole pages at the two borders.
#include <algorithm>
#include <string>

#include "core/base/check.h"
#include "kernels/cuda/sinks.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/evicting.h"
#include "kernels/selection/options.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

struct StreamingOptions {
  int64_t token_budget = 2048;
  int64_t sink_tokens = 4;
  int64_t recent_tokens = 2044;
  int64_t dense_layers = 2;
};

class StreamingPolicy : public AttentionPolicy {
 public:
  explicit StreamingPolicy(const StreamingOptions& options) : options_(options) {}

  std::string_view name() const override { return "streaming"; }
  int64_t token_budget() const override { return options_.token_budget; }
  PageDataNeeds Declare() const override { return {.queries = false}; }
  bool IsDense(int64_t length, int layer, int) const override {
    return options_.token_budget >= length || layer < options_.dense_layers;
  }
  // The window may begin and end within pages.
  int MaxPages(int64_t length, int page_size) const override {
    const int64_t pages = (length + page_size - 1) / page_size;
    const int64_t sinks = (options_.sink_tokens + page_size - 1) / page_size;
    return static_cast<int>(std::min(pages, sinks + (options_.recent_tokens + page_size - 2) / page_size + 1));
  }
  size_t SelectWorkspace(const SelectParams&) const override { return 0; }
  int64_t SelectBytes(const SelectParams&) const override { return 0; }
  SinkWindow WindowAt(int64_t length) const override {
    CHECK_GT(length, options_.token_budget);
    return {static_cast<int>(options_.sink_tokens), static_cast<int>(options_.recent_tokens),
            length - options_.sink_tokens - options_.recent_tokens};
  }

  bool RunsOnGpu() const override { return true; }

  // The pages of the two parts. The kernel is given these by tokens; the lists are for counts and for who looks on.
  void Select(const Context& ctx, const SelectParams& p, SelectionView selection, void*) const override {
    Dispatch(
        ctx, [&] { SelectOnCpu(p, selection); },
        [&](Stream stream) {
          return cuda::SinkPages(stream, {.sinks = static_cast<int>(options_.sink_tokens),
                                          .window = static_cast<int>(options_.recent_tokens),
                                          .rows = p.rows,
                                          .row_seq = p.row_seq,
                                          .row_len = p.row_len,
                                          .table = p.table,
                                          .selection = selection});
        });
  }

  const StreamingOptions& options() const { return options_; }

 private:
  void SelectOnCpu(const SelectParams& p, SelectionView selection) const {
    const PageFormat& f = p.table.format;
    for (int64_t list = 0; list < int64_t{p.rows} * f.kv_heads; ++list) {
      const int row = static_cast<int>(list / f.kv_heads);
      const int64_t length = p.row_len[row];
      const int64_t sinks = (options_.sink_tokens + f.page_size - 1) / f.page_size;
      const int64_t recent = std::max(sinks, (length - options_.recent_tokens) / f.page_size);
      const int64_t pages = (length + f.page_size - 1) / f.page_size;
      const int32_t* ids = p.table.page_ids + p.table.page_begin[p.row_seq[row]];
      int32_t* out = selection.pages + list * selection.max_pages;
      int count = 0;
      CHECK_LE(sinks + pages - recent, selection.max_pages);
      for (int64_t page = 0; page < pages; ++page) {
        if (page == sinks) page = recent;
        if (ids[page] >= 0) out[count++] = static_cast<int32_t>(page);
      }
      selection.counts[list] = count;
    }
  }

  StreamingOptions options_;
};

class EvictingStreamingPolicy : public StreamingPolicy {
 public:
  using StreamingPolicy::StreamingPolicy;

  int64_t capacity() const override { return options().token_budget; }
  bool CountsInside() const override { return true; }
  int32_t Evict(int64_t position, int, SlotMap*) const override {
    const StreamingOptions& o = options();
    return static_cast<int32_t>(o.sink_tokens + (position - o.sink_tokens) % o.recent_tokens);
  }
};

}  // namespace

PolicyInfo StreamingPolicyInfo() {
  return {"streaming", "Xiao et al., arXiv 2309.17453, keeping what it leaves out",
          "sink_tokens + recent_tokens vectors of K and of V",
          "token_budget (1 to 2^30; default 2048), sink_tokens (0 to 2^30; default 4), recent_tokens (1 to 2^30; default "
          "token_budget − sink_tokens), dense_layers (0 to 2^30; default 2), evict (true or false; default false: with true dense_layers is 0)",
          true};
}

Result<std::unique_ptr<AttentionPolicy>> MakeStreamingPolicy(const PolicyOptions& options, int) {
  constexpr int64_t kMost = int64_t{1} << 30;
  OptionReader reader("streaming", options);
  StreamingOptions o;
  bool evict = false;
  RETURN_IF_ERROR(EvictOptions::ReadEvict("streaming", &reader, &evict));
  RETURN_IF_ERROR(reader.Integer("token_budget", 1, kMost, &o.token_budget));
  RETURN_IF_ERROR(reader.Integer("sink_tokens", 0, kMost, &o.sink_tokens));
  o.recent_tokens = std::max<int64_t>(1, o.token_budget - o.sink_tokens);
  RETURN_IF_ERROR(reader.Integer("recent_tokens", 1, kMost, &o.recent_tokens));
  RETURN_IF_ERROR(reader.Integer("dense_layers", 0, kMost, &o.dense_layers));
  RETURN_IF_ERROR(reader.Finish());
  if (o.sink_tokens + o.recent_tokens > o.token_budget) {
    return InvalidArgument("attention policy 'streaming': token_budget " + std::to_string(o.token_budget) +
                           " holds less than " + std::to_string(o.sink_tokens) + " sink and " +
                           std::to_string(o.recent_tokens) + " recent tokens; give at least " +
                           std::to_string(o.sink_tokens + o.recent_tokens) + " or fewer of them");
  }
  if (!evict) return std::unique_ptr<AttentionPolicy>(std::make_unique<StreamingPolicy>(o));
  o.dense_layers = 0;
  if (o.sink_tokens + o.recent_tokens != o.token_budget) {
    return InvalidArgument("attention policy 'streaming' keeps what it reads when it evicts: token_budget " +
                           std::to_string(o.token_budget) + " must be " + std::to_string(o.sink_tokens) + " sink and " +
                           std::to_string(o.recent_tokens) + " recent tokens together; leave out recent_tokens");
  }
  return std::unique_ptr<AttentionPolicy>(std::make_unique<EvictingStreamingPolicy>(o));
}

}  // namespace quire
