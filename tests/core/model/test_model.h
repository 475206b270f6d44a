// A committed checkpoint opened, loaded and given a decoder, and the few ways in which tests run it.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/model/decoder.h"
#include "core/model/families.h"
#include "tests/core/model/test_cache.h"

namespace quire {

inline std::string TestData(const std::string& name) { return QUIRE_SOURCE_DIR "/tests/data/" + name; }

struct TestModelOptions {
  DType dtype = DType::kF32;
  int threads = 1;
  bool batch_invariant = false;
  int max_rows = 128;
  int64_t max_length = 512;
  int rank = 0;
  Communicator* comm = nullptr;  // null: alone
};

// Dies with the status' sentence: tests have no use for half a model.
class TestModel {
 public:
  explicit TestModel(const std::string& path, const TestModelOptions& options = {}) : pool_(options.threads) {
    ctx_.pool = &pool_;
    ctx_.batch_invariant = options.batch_invariant;
    self_ = MakeSelfCommunicator();
    Communicator* comm = options.comm != nullptr ? options.comm : self_.get();
    Checkpoint checkpoint = Value(OpenCheckpoint(path));
    config_ = checkpoint.config;
    plan_ = Value(ShardPlan::Create({config_.q_heads, config_.kv_heads, config_.ffn, config_.vocab, 1}, comm->size(),
                                    options.rank));
    weights_ = Value(LoadWeights(ctx_, checkpoint, plan_, options.dtype));
    decoder_ = std::make_unique<Decoder>(
        Value(Decoder::Create(ctx_, config_, &weights_, plan_, comm,
                              {.max_rows = options.max_rows, .max_logit_rows = options.max_rows,
                               .max_length = options.max_length})));
  }

  const Context& ctx() const { return ctx_; }
  const ModelConfig& config() const { return config_; }
  const ShardPlan& plan() const { return plan_; }
  const ModelWeights& weights() const { return weights_; }
  Decoder& decoder() { return *decoder_; }
  int64_t vocab() const { return plan_.vocab.size(); }  // local

  TestCache Cache(int page_size, int64_t max_tokens, int sequences = 1, DType dtype = DType::kF32) const {
    return TestCache(config_, plan_, dtype, page_size, sequences, max_tokens);
  }

  // Logits [logit_rows][vocab] of one step.
  std::vector<float> Step(const TestCache& cache, const std::vector<int32_t>& tokens,
                          const std::vector<ForwardChunk>& chunks, const std::vector<int32_t>& logit_rows) {
    std::vector<float> logits(logit_rows.size() * vocab());
    const ForwardBatch batch{tokens, chunks, cache.views(), logit_rows};
    const Status status = decoder_->Forward(batch, logits.data());
    if (!status.ok()) internal::DieOnBadResult(status);
    return logits;
  }

  // Logits [ids][vocab] of one sequence from position `start`, prefilled in chunks of `chunk` rows.
  std::vector<float> Prefill(const TestCache& cache, const std::vector<int32_t>& ids, int chunk, int seq = 0,
                             int start = 0) {
    std::vector<float> all;
    const int n = static_cast<int>(ids.size());
    for (int begin = 0; begin < n; begin += chunk) {
      const int rows = std::min(chunk, n - begin);
      std::vector<int32_t> tokens(ids.begin() + begin, ids.begin() + begin + rows), wanted(rows);
      for (int i = 0; i < rows; ++i) wanted[i] = i;
      const std::vector<float> logits = Step(
          cache, tokens, {{.seq = seq, .rows = rows, .start_pos = start + begin, .rope_length = start + n}}, wanted);
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  // Logits [vocab] of one token as a decode row.
  std::vector<float> Decode(const TestCache& cache, int32_t token, int position,
                            const AttentionPolicy* policy = nullptr, int seq = 0, int rope_length = 0) {
    return Step(cache, {token},
                {{.seq = seq, .rows = 1, .start_pos = position, .decode = true, .rope_length = rope_length,
                  .policy = policy}},
                {0});
  }

  // `count` greedy ids by decode rows, the first of them from `token` at `position`.
  std::vector<int32_t> Greedy(const TestCache& cache, int32_t token, int position, int count,
                              const AttentionPolicy* policy = nullptr) {
    std::vector<int32_t> out;
    for (int i = 0; i < count; ++i) {
      const std::vector<float> logits = Decode(cache, token, position++, policy);
      token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      out.push_back(token);
    }
    return out;
  }

  template <typename T>
  static T Value(Result<T> result) {
    if (!result.ok()) internal::DieOnBadResult(result.status());
    return std::move(result).value();
  }

 private:
  ThreadPool pool_;
  Context ctx_;
  std::unique_ptr<Communicator> self_;
  ModelConfig config_;
  ShardPlan plan_;
  ModelWeights weights_;
  std::unique_ptr<Decoder> decoder_;
};

// ‖a − b‖ / ‖b‖; infinite where a isn't finite or the sizes differ.
inline double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

// Lists every page of a row: the selecting path with the dense path's answer.
class AllPagesPolicy final : public AttentionPolicy {
 public:
  std::string_view name() const override { return "all-pages"; }
  int64_t token_budget() const override { return 0; }
  PageDataNeeds Declare() const override { return {}; }
  bool IsDense(int64_t, int, int) const override { return false; }
  int MaxPages(int64_t length, int page_size) const override {
    return static_cast<int>((length + page_size - 1) / page_size);
  }
  size_t SelectWorkspace(const SelectParams&) const override { return 0; }
  int64_t SelectBytes(const SelectParams&) const override { return 0; }
  void Select(const Context&, const SelectParams& p, SelectionView out, void*) const override {
    const int heads = p.table.format.kv_heads;
    for (int row = 0; row < p.rows; ++row) {
      const int pages = (p.row_len[row] + p.table.format.page_size - 1) / p.table.format.page_size;
      for (int head = 0; head < heads; ++head) {
        const int64_t list = int64_t{row} * heads + head;
        out.counts[list] = pages;
        for (int i = 0; i < pages; ++i) out.pages[list * out.max_pages + i] = i;
      }
    }
  }
};

}  // namespace quire
