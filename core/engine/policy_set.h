// PolicySet: the attention policies in use on one rank, one object for each that is spelled alike, so that the rows of
// requests with the same policy are served by one call. Which policies requests may use is the engine's business; every
// rank makes them from the plans' text alone.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "core/base/status.h"
#include "core/model/model_config.h"
#include "kernels/selection/policy.h"

namespace quire {

// What policies are made for: the model's own numbers, not those of a rank.
inline PolicyShape PolicyShapeOf(const ModelConfig& config, DType cache_dtype, int page_size, DeviceKind device) {
  return {page_size, config.head_dim, config.head_dim, cache_dtype, config.q_heads / config.kv_heads, device};
}

class PolicySet {
 public:
  explicit PolicySet(const PolicyShape& shape) : shape_(shape) {}

  // The policy of this spec (AttentionSpec's syntax), shared with whoever else has it. INVALID_ARGUMENT as MakePolicy.
  Result<std::shared_ptr<const AttentionPolicy>> Get(const std::string& spec) {
    std::weak_ptr<const AttentionPolicy>& known = policies_[spec];
    if (auto policy = known.lock()) return policy;
    std::erase_if(policies_, [](const auto& entry) { return entry.second.expired(); });  // nobody's any more
    ASSIGN_OR_RETURN(const AttentionSpec parsed, AttentionSpec::Parse(spec));
    ASSIGN_OR_RETURN(auto made, MakePolicy(parsed, shape_));
    std::shared_ptr<const AttentionPolicy> policy = std::move(made);
    policies_[spec] = policy;
    return policy;
  }
  size_t size() const { return policies_.size(); }

 private:
  PolicyShape shape_;
  std::map<std::string, std::weak_ptr<const AttentionPolicy>> policies_;
};

}  // namespace quire
