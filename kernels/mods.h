// Score and mask functors of the attention kernels (FlexAttention's two functions). The kernels are templates on a Mod;
// the identity compiles to nothing.
#pragma once

#include <cstdint>

namespace quire {

struct IdentityMod {
  static constexpr bool kIsIdentity = true;
  float Score(float score, int seq, int head, int64_t q_idx, int64_t kv_idx) const { return score; }
  bool Mask(int seq, int head, int64_t q_idx, int64_t kv_idx) const { return true; }
};

}  // namespace quire
