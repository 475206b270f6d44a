// auto: quest where it pays, dense where it doesn't. Below `crossover` tokens every layer attends densely; from there on
// the pages, and so the tokens, are quest's with the same options. The crossover follows from the options and the
// model's shape by a cost model with committed constants (cost_model.h), or is given: lengths alone decide, alike on all
// ranks, after a preemption and behind a lost engine.
//
// Reads per step and KV head: dense's n vectors of K and of V below the crossover, quest's from it on.
#include <string>

#include "kernels/selection/cost_model.h"
#include "kernels/selection/options.h"
#include "kernels/selection/page_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

class AutoPolicy : public AttentionPolicy {
 public:
  AutoPolicy(std::unique_ptr<AttentionPolicy> sparse, int64_t crossover)
      : sparse_(std::move(sparse)), crossover_(crossover) {}

  std::string_view name() const override { return "auto"; }
  int64_t token_budget() const override { return sparse_->token_budget(); }
  bool RunsOnGpu() const override { return sparse_->RunsOnGpu(); }
  PageDataNeeds Declare() const override { return sparse_->Declare(); }
  bool IsDense(int64_t length, int layer, int page_size) const override {
    return length < crossover_ || sparse_->IsDense(length, layer, page_size);
  }
  int MaxPages(int64_t length, int page_size) const override { return sparse_->MaxPages(length, page_size); }
  size_t SelectWorkspace(const SelectParams& params) const override { return sparse_->SelectWorkspace(params); }
  int64_t SelectBytes(const SelectParams& params) const override { return sparse_->SelectBytes(params); }
  int64_t SelectLineBytes(const SelectParams& params) const override { return sparse_->SelectLineBytes(params); }
  void Select(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const override {
    sparse_->Select(ctx, params, selection, workspace);
  }

 private:
  std::unique_ptr<AttentionPolicy> sparse_;
  int64_t crossover_;
};

}  // namespace

PolicyInfo AutoPolicyInfo() {
  return {"auto", "quest (Tang et al., arXiv 2406.10774), and dense where a measured cost model has it faster",
          "n vectors of K and of V below the crossover, quest's from it on",
          std::string(kPageOptions).append(kReduceOption) +
              ", crossover (0 to 2^30, the length from which on quest is used; default by the cost model, as quire info shows)"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeAutoPolicy(const PolicyOptions& options, const PolicyShape& shape) {
  PolicyOptions inner = options;
  inner.erase("crossover");
  // Read once more for the cost model, and for messages in auto's name.
  OptionReader reader("auto", options);
  ASSIGN_OR_RETURN(PageOptions page_options, PageOptions::Read("auto", &reader, shape.page_size));
  RETURN_IF_ERROR(PageOptions::ReadReduce(&reader, &page_options.reduce));
  int64_t crossover =
      AttentionCostModel(MeasuredCosts(shape.device), shape, page_options.token_budget, page_options.budget_share).Crossover();
  RETURN_IF_ERROR(reader.Integer("crossover", 0, int64_t{1} << 30, &crossover));
  RETURN_IF_ERROR(reader.Finish());
  ASSIGN_OR_RETURN(auto sparse, MakeQuestPolicy(inner, shape.page_size));
  return std::unique_ptr<AttentionPolicy>(std::make_unique<AutoPolicy>(std::move(sparse), crossover));
}

}  // namespace quire
