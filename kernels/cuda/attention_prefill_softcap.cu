// Prefill attention with a soft cap on the scores, for the families that have one.
#include "kernels/cuda/flex_attention.cuh"

namespace quire::cuda {

template Status AttentionPrefill<SoftCapMod>(Stream, const AttentionPrefillParams&, int64_t, const SoftCapMod&);

}  // namespace quire::cuda
