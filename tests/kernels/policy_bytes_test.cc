// What each policy says that its selection reads, against the formula of README's table worked out by hand, at the
// lengths that `quire bench kernels` is run at: to within the pages that are forced and so not looked at.
#include <gtest/gtest.h>

#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

TEST(PolicyBytes, AreThoseOfTheReadmesFormulas) {
  constexpr int kHeads = 8, kDim = 128, kPage = 16, kElement = 2;
  constexpr double kVector = kDim * kElement, kBudget = 2048;
  for (const int64_t n : {4096, 32768, 131072}) {
    for (const int batch : {1, 8}) {
      const std::vector<int32_t> lengths(static_cast<size_t>(batch), static_cast<int32_t>(n));
      SelectParams p;
      p.rows = batch;
      p.q_heads = 4 * kHeads;
      p.row_len = lengths.data();
      p.table.format = PageFormat::Create(DType::kBF16, kPage, kHeads, kDim, kDim).value();
      const auto length = static_cast<double>(n), pages = length / kPage;
      const double kept = std::max(0.25 * pages, kBudget / kPage);
      const std::vector<std::pair<const char*, double>> formulas = {
          {"quest", 2 * pages * kVector},
          {"auto", 2 * pages * kVector},
          {"hierarchical", (2 * pages / 16 + 2 * kept) * kVector},
          {"hierarchical:metadata=int8", (2 * pages / 16 + 2 * kept / 2 + 2 * kept / 16) * kVector},
          {"hybrid", pages / 4 * kVector},
          {"hybrid:channels=16", pages / 8 * kVector},
          {"sparq", length * 32 / kDim * kVector},
          {"swa", 4 * pages * sizeof(float)},
          {"swa:rows=9", 9 * pages * sizeof(float)},
          {"h2o", pages * sizeof(float)},
          {"tova", pages * sizeof(float)},
          {"streaming", 0},
          {"top-p", 2 * pages * kVector + std::max(kBudget, length / 4) * kVector},
          {"top-p:selector=h2o:loose=0.5", pages * sizeof(float) + std::max(kBudget, length / 2) * kVector}};
      for (const auto& [spec, bytes] : formulas) {
        const double expected = bytes * kHeads * batch;
        // Hierarchical looks at whole groups, two of which hold forced pages.
        const double slack = std::string(spec).starts_with("hierarchical") ? 4 * 16 * 2 * kVector * kHeads * batch : 0.001 * expected;
        EXPECT_NEAR(static_cast<double>(Make(spec, kPage)->SelectBytes(p)), expected, slack)
            << spec << " at " << n << " × " << batch;
      }
    }
  }
}

}  // namespace
}  // namespace quire
