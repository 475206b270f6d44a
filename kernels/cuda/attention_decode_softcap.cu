// Decode attention with a soft cap on the scores, for the families that have one.
#include "kernels/cuda/flex_attention.cuh"

namespace quire::cuda {

template Status AttentionDecode<SoftCapMod>(Stream, const AttentionDecodeParams&, int, const SoftCapMod&, void*,
                                            int32_t*);

}  // namespace quire::cuda
