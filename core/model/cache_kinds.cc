#include <algorithm>

#include "core/model/decoder.h"

namespace quire {

std::vector<CacheKind> CacheKinds(const ModelConfig& config, const ShardPlan& plan) {
  std::vector<CacheKind> kinds;
  for (int layer = 0; layer < config.layers; ++layer) {
    const int window = layer < static_cast<int>(config.window.size()) ? config.window[layer] : 0;
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const CacheKind& k) { return k.window == window; });
    if (kind == kinds.end()) {
      kinds.push_back({.layers = {},
                       .kv_heads = static_cast<int>(plan.kv_heads.size()),
                       .k_dim = config.head_dim,
                       .v_dim = config.head_dim,
                       .window = window});
      kind = kinds.end() - 1;
    }
    kind->layers.push_back(layer);
  }
  return kinds;
}

}  // namespace quire
