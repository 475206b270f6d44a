// Decode attention on tensor cores without a Mod, compiled beside the rest: it is the longest to compile.
#include "kernels/cuda/attention_decode_mma.cuh"

namespace quire::cuda {

template Status LaunchTensorDecode<PlainMod>(Stream, const ModDecodeArgs<PlainMod>&);

}  // namespace quire::cuda
