// See policy_groups.h.
#include "launch/policy_groups.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace quire::launch {

Result<std::vector<PolicyGroup>> GroupPolicies(const Engine& engine, const std::vector<AttentionSpec>& specs) {
  const auto most = static_cast<size_t>(engine.options().max_num_seqs);
  std::vector<std::unique_ptr<AttentionPolicy>> policies;
  std::vector<PolicyGroup> groups;
  for (size_t i = 0; i < specs.size(); ++i) {
    ASSIGN_OR_RETURN(auto policy, MakePolicy(specs[i], engine.options().page_size));
    policies.push_back(std::move(policy));
    const auto takes = [&](const PolicyGroup& group) {
      const size_t first = group.front();
      return group.size() < most && policies[first]->capacity() == 0 && policies[i]->capacity() == 0 &&
             RememberAlike({specs[first], *policies[first]}, {specs[i], *policies[i]});
    };
    const auto group = std::find_if(groups.begin(), groups.end(), takes);
    if (group == groups.end()) {
      groups.push_back({i});
    } else {
      group->push_back(i);
    }
  }
  return groups;
}

std::string Named(const std::vector<AttentionSpec>& specs, const PolicyGroup& group) {
  const std::string first = specs[group.front()].ToString();
  return group.size() == 1 ? first : first + " and " + std::to_string(group.size() - 1) + " more";
}

void GoOnWith(const std::vector<AttentionSpec>& specs, const PolicyGroup& group, GenerationRequest* request) {
  request->attention = specs[group.front()];
  if (group.size() == 1) return;
  request->sampling.n = static_cast<int>(group.size());
  for (const size_t index : group) request->branches.push_back(specs[index]);
}

int SequencesFor(const std::vector<AttentionSpec>& specs) {
  constexpr size_t kLeast = 4, kMost = 32;
  return static_cast<int>(std::clamp(specs.size(), kLeast, kMost));
}

}  // namespace quire::launch
