// The policy that reads every page: no selection is ever made.
#include "core/base/check.h"
#include "kernels/selection/options.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

class DensePolicy : public AttentionPolicy {
 public:
  std::string_view name() const override { return "dense"; }
  int64_t token_budget() const override { return 0; }
  bool RunsOnGpu() const override { return true; }
  PageDataNeeds Declare() const override { return {}; }
  bool IsDense(int64_t, int, int) const override { return true; }
  int MaxPages(int64_t length, int page_size) const override {
    return static_cast<int>((length + page_size - 1) / page_size);
  }
  size_t SelectWorkspace(const SelectParams&) const override { return 0; }
  int64_t SelectBytes(const SelectParams&) const override { return 0; }
  void Select(const Context&, const SelectParams& params, SelectionView, void*) const override {
    CHECK_EQ(params.rows, 0);  // every row is dense
  }
};

}  // namespace

PolicyInfo DensePolicyInfo() {
  return {"dense", "softmax(q·Kᵀ/√d)·V over all pages", "n vectors of K and of V", "none"};
}

Result<std::unique_ptr<AttentionPolicy>> MakeDensePolicy(const PolicyOptions& options, int) {
  RETURN_IF_ERROR(OptionReader("dense", options).Finish());
  return std::unique_ptr<AttentionPolicy>(std::make_unique<DensePolicy>());
}

}  // namespace quire
