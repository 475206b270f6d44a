// A slow Llama whose cache is, for each layer and KV head, a plain list of tokens: what evicting engines are held to.
// One token at a time, in double; a token enters the list, attends to all of it, and one leaves. Knows nothing of
// pages, slots, chunks or maps.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/model/families.h"
#include "core/model/model_weights.h"

namespace quire {

class EvictingReference {
 public:
  enum class Kind { kStreaming, kH2o, kTova };
  struct Options {
    Kind kind = Kind::kStreaming;
    int budget = 0, sinks = 0, recent = 0;
  };

  EvictingReference(const std::string& model, const Options& options) : options_(options), pool_(1) {
    Context ctx;
    ctx.pool = &pool_;
    auto checkpoint = OpenCheckpoint(model);
    CHECK(checkpoint.ok());
    config_ = checkpoint->config;
    auto plan = ShardPlan::Create({config_.q_heads, config_.kv_heads, config_.ffn, config_.vocab, 1}, 1, 0);
    auto weights = LoadWeights(ctx, *checkpoint, *plan, DType::kF32);
    CHECK(weights.ok());
    weights_ = std::move(*weights);
    cache_.resize(static_cast<size_t>(config_.layers * config_.kv_heads));
    for (const float f : RopeInverseFrequencies(config_.rope, config_.max_position)) frequencies_.push_back(f);
  }

  // Log-probabilities of what follows the token.
  std::vector<double> Next(int32_t token) {
    const int64_t position = position_++;
    const int d = config_.head_dim;
    std::vector<double> x(static_cast<size_t>(config_.hidden));
    const auto* table = static_cast<const float*>(weights_.embedding.data());
    for (int i = 0; i < config_.hidden; ++i) x[i] = table[int64_t{token} * config_.hidden + i];
    for (int layer = 0; layer < config_.layers; ++layer) {
      const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
      const std::vector<double> qkv = Times(w.qkv, Norm(x, w.attn_norm));
      const int group = config_.q_heads / config_.kv_heads;
      std::vector<double> attended(static_cast<size_t>(config_.q_heads * d));
      for (int h = 0; h < config_.kv_heads; ++h) {
        const auto part = [&](int first) {
          return std::vector<double>(qkv.begin() + first * d, qkv.begin() + (first + 1) * d);
        };
        std::vector<Entry>& kept = cache_[static_cast<size_t>(layer * config_.kv_heads + h)];
        if (static_cast<int>(kept.size()) == options_.budget) kept.erase(kept.begin() + Leaving(kept, position));
        kept.push_back({position, part(config_.q_heads + h), part(config_.q_heads + config_.kv_heads + h), 0});
        std::vector<double> mass(kept.size());
        for (int g = 0; g < group; ++g) {
          const std::vector<double> weights = Weights(kept, part(h * group + g), position);
          for (size_t i = 0; i < kept.size(); ++i) {
            mass[i] += weights[i];
            for (int c = 0; c < d; ++c) attended[(h * group + g) * d + c] += weights[i] * kept[i].v[c];
          }
        }
        for (size_t i = 0; i < kept.size(); ++i) {
          kept[i].weight = options_.kind == Kind::kH2o ? kept[i].weight + mass[i] : mass[i];
        }
      }
      Add(x, Times(w.out, attended));
      const std::vector<double> both = Times(w.gate_up, Norm(x, w.mlp_norm));
      std::vector<double> mlp(static_cast<size_t>(config_.ffn));
      for (int i = 0; i < config_.ffn; ++i) mlp[i] = both[i] / (1 + std::exp(-both[i])) * both[config_.ffn + i];
      Add(x, Times(w.down, mlp));
    }
    std::vector<double> logits = Times(weights_.head_or_embedding(), Norm(x, weights_.final_norm));
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double l : logits) sum += std::exp(l - max);
    for (double& l : logits) l -= max + std::log(sum);
    return logits;
  }

 private:
  struct Entry {
    int64_t position;
    std::vector<double> k, v;  // not rotated
    double weight;
  };

  // Index of who leaves before the token at `position` comes.
  int64_t Leaving(const std::vector<Entry>& kept, int64_t position) const {
    if (options_.kind == Kind::kStreaming) return options_.sinks;  // entries are in the order of their positions
    int64_t best = -1;
    for (size_t i = 0; i < kept.size(); ++i) {
      if (kept[i].position < options_.sinks || kept[i].position >= position - options_.recent) continue;
      if (best < 0 || kept[i].weight < kept[static_cast<size_t>(best)].weight) best = static_cast<int64_t>(i);
    }
    return best;
  }

  std::vector<double> Weights(const std::vector<Entry>& kept, const std::vector<double>& q, int64_t position) const {
    const bool inside = options_.kind == Kind::kStreaming;
    const std::vector<double> turned = Rotate(q, inside ? static_cast<int64_t>(kept.size()) - 1 : position);
    std::vector<double> scores(kept.size());
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < kept.size(); ++i) {
      const std::vector<double> k = Rotate(kept[i].k, inside ? static_cast<int64_t>(i) : kept[i].position);
      for (size_t c = 0; c < k.size(); ++c) scores[i] += turned[c] * k[c];
      scores[i] *= config_.attention_scale();
      max = std::max(max, scores[i]);
    }
    for (double& s : scores) sum += s = std::exp(s - max);
    for (double& s : scores) s /= sum;
    return scores;
  }

  std::vector<double> Rotate(std::vector<double> x, int64_t position) const {
    const size_t half = frequencies_.size();
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[i];
      double& a = config_.rope.interleaved ? x[2 * i] : x[i];
      double& b = config_.rope.interleaved ? x[2 * i + 1] : x[i + half];
      const double was = a;
      a = was * std::cos(angle) - b * std::sin(angle);
      b = was * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }

  std::vector<double> Norm(const std::vector<double>& x, const Tensor& weight) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + config_.norm_eps);
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight.data<float>()[i];
    return out;
  }

  static std::vector<double> Times(const Weight& w, const std::vector<double>& x) {
    std::vector<double> out(static_cast<size_t>(w.rows()));
    const auto* data = static_cast<const float*>(w.data());
    for (int64_t r = 0; r < w.rows(); ++r) {
      for (int64_t c = 0; c < w.cols(); ++c)
        out[static_cast<size_t>(r)] += double{data[r * w.cols() + c]} * x[static_cast<size_t>(c)];
    }
    return out;
  }

  static void Add(std::vector<double>& x, const std::vector<double>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Options options_;
  ThreadPool pool_;
  ModelConfig config_;
  ModelWeights weights_;
  std::vector<double> frequencies_;
  std::vector<std::vector<Entry>> cache_;  // [layers][kv_heads]
  int64_t position_ = 0;
};

}  // namespace quire
