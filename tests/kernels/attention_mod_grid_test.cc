// Every shipped functor, and some together, over a grid of shapes against the full matrix of scores.
#include "tests/kernels/flex_fixture.h"

namespace quire {
namespace {

using testing::DecodeByMatrix;
using testing::DecodeCall;
using testing::FlexTest;
using testing::kLengths;
using testing::kShapes;
using testing::PagedCache;
using testing::PrefillByMatrix;
using testing::PrefillCall;
using testing::RelativeError;
using testing::Shape;
using testing::Tables;

class AttentionModGrid : public FlexTest {
 protected:
  // Decode at several lengths of each sequence, and prefill of whole sequences and of tails.
  template <class Mod>
  void Check(const char* what, const Mod& mod) {
    for (const Shape& s : kShapes) {
      const std::string at = std::string(what) + ", " + std::string(DTypeName(s.dtype)) + ", page " +
                             std::to_string(s.page_size) + ", heads " + std::to_string(s.q_heads) + "/" +
                             std::to_string(s.kv_heads);
      PagedCache cache(s.dtype, s.page_size, s.kv_heads, s.dim, s.dim, kLengths, 1);
      cache.Fill(ctx);
      DecodeCall decode(cache, s.q_heads, {0, 1, 2, 3, 0, 0, 3, 1}, {150, 70, 1, 93, 129, 17, 64, 0}, 2, 3, 5);
      decode.p.scale *= 2;  // scores of some size
      DecodeCall by_matrix = decode;
      Decode(decode, mod);
      DecodeByMatrix(cache, by_matrix, mod);
      EXPECT_LE(RelativeError(decode.out, by_matrix.out), 1e-5) << at;
      EXPECT_LE(RelativeError(decode.lse, by_matrix.lse), 1e-5) << at;

      for (const std::vector<int>& tails : {std::vector<int>{150, 70, 1, 93}, std::vector<int>{40, 70, 1, 13}}) {
        PrefillCall prefill(cache, s.q_heads, tails, 3, 1, 2);
        prefill.p.scale *= 2;
        PrefillCall matrix = prefill;
        Prefill(prefill, mod);
        PrefillByMatrix(cache, matrix, mod);
        EXPECT_LE(RelativeError(prefill.out, matrix.out), 1e-5) << at;
        EXPECT_LE(RelativeError(prefill.lse, matrix.lse), 1e-5) << at;
        if (tails[0] == 150) continue;
        // And the reference that other tests lean on says the same.
        PrefillCall reference = prefill;
        reference.Clear();
        reference::AttentionPrefill(reference.Params(), mod);
        EXPECT_LE(RelativeError(reference.out, matrix.out), 1e-6) << at;
      }
    }
  }
  Tables t;
};

TEST_F(AttentionModGrid, SoftCapAgreesWithTheFullMatrix) { Check("soft cap", Flex(SoftCap{3.0f})); }
TEST_F(AttentionModGrid, AlibiAgreesWithTheFullMatrix) { Check("alibi", Flex(t.alibi())); }
TEST_F(AttentionModGrid, RelativeBiasAgreesWithTheFullMatrix) { Check("relative bias", Flex(t.relative())); }
TEST_F(AttentionModGrid, CausalMaskAgreesWithTheFullMatrix) { Check("causal", FlexMask(CausalMask{})); }
TEST_F(AttentionModGrid, WindowMaskAgreesWithTheFullMatrix) { Check("window", FlexMask(WindowMask{37})); }
TEST_F(AttentionModGrid, PrefixLmMaskAgreesWithTheFullMatrix) { Check("prefix lm", FlexMask(t.prefix_lm())); }
TEST_F(AttentionModGrid, DocumentMaskAgreesWithTheFullMatrix) { Check("documents", FlexMask(t.documents())); }
TEST_F(AttentionModGrid, TwoScoreModsAndTwoMasksAgreeWithTheFullMatrix) {
  Check("cap, then alibi, in a window of a document",
        Flex(Then(SoftCap{3.0f}, t.alibi()), And(WindowMask{50}, t.documents())));
}
TEST_F(AttentionModGrid, EitherOfTwoMasksAgreesWithTheFullMatrix) {
  Check("relative bias, window or prefix", Flex(t.relative(), Or(WindowMask{9}, t.prefix_lm())));
  Check("prefix within its document", FlexMask(And(t.prefix_lm(), t.documents())));
}

TEST_F(AttentionModGrid, AUsersLambdasAgreeWithTheFullMatrix) {
  const auto score = [](float s, int seq, int head, int64_t q, int64_t kv) {
    return s * 0.5f - 0.02f * static_cast<float>(head + seq) * static_cast<float>(q % 3 + kv % 5);
  };
  const auto mask = [](int seq, int head, int64_t q, int64_t kv) { return (kv + head + seq) % 3 != 0 || kv == q; };
  Check("lambdas", Flex(score, mask));
}

}  // namespace
}  // namespace quire
