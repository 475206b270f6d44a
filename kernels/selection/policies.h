// The makers behind the policy table: one per file of this folder.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/selection/policy.h"

namespace quire {

// Makers that need no more of the shape take the page size.
using PolicyOptions = std::map<std::string, std::string>;

PolicyInfo AutoPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeAutoPolicy(const PolicyOptions& options, const PolicyShape& shape);

PolicyInfo DensePolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeDensePolicy(const PolicyOptions& options, int page_size);

PolicyInfo QuestPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeQuestPolicy(const PolicyOptions& options, int page_size);

PolicyInfo HierarchicalPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeHierarchicalPolicy(const PolicyOptions& options, int page_size);

PolicyInfo HybridPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeHybridPolicy(const PolicyOptions& options, int page_size);

PolicyInfo SparqPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeSparqPolicy(const PolicyOptions& options, const PolicyShape& shape);

PolicyInfo SwaPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeSwaPolicy(const PolicyOptions& options, int page_size);

PolicyInfo StreamingPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeStreamingPolicy(const PolicyOptions& options, int page_size);

PolicyInfo H2oPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeH2oPolicy(const PolicyOptions& options, int page_size);

PolicyInfo TopPPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeTopPPolicy(const PolicyOptions& options, int page_size);

PolicyInfo TovaPolicyInfo();
Result<std::unique_ptr<AttentionPolicy>> MakeTovaPolicy(const PolicyOptions& options, int page_size);

}  // namespace quire
