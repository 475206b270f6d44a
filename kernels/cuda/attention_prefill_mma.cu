// Prefill attention on tensor cores without a Mod, compiled beside the rest: it is the longest to compile.
#include "kernels/cuda/attention_prefill_mma.cuh"

namespace quire::cuda {

template Status LaunchTensorPrefill<PlainMod>(Stream, const simt::LaunchShape&, const ModPrefillArgs<PlainMod>&);

}  // namespace quire::cuda
