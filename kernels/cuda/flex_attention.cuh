// Decode and prefill attention on the GPU with a Mod of the caller's own (kernels/mods.h): what AttentionDecode and
// AttentionPrefill launch. For nvcc, or a host compiler with the emulator's backend; quire::cuda_kernels of the CMake package
// brings the include path and the flags.
#pragma once

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_decode_merge.cuh"
#include "kernels/cuda/attention_decode_mma.cuh"
#include "kernels/cuda/attention_decode_plain.cuh"
#include "kernels/cuda/attention_mass.cuh"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/attention_prefill_mma.cuh"
#include "kernels/cuda/attention_prefill_plain.cuh"

namespace quire::cuda {

template <class Mod>
Status AttentionDecode(Stream stream, const AttentionDecodeParams& params, int most_pages, const Mod& mod, void* workspace,
                       int32_t* counters) {
  ModDecodeArgs<Mod> args{{}, mod};
  RETURN_IF_ERROR(MakeDecodeArgs(params, most_pages, workspace, counters, &args));
  RETURN_IF_ERROR(args.c.tensor_cores ? LaunchTensorDecode(stream, args)
                                      : VisitFloatDType(params.table.format.dtype, [&](auto t) {
                                          return LaunchPlainHeads<decltype(t)>(stream, args);
                                        }));
  if (!args.c.direct && args.counters == nullptr) RETURN_IF_ERROR(LaunchDecodeMerge(stream, args));
  return params.mass == nullptr ? OkStatus() : LaunchDecodeMass(stream, args);
}

template <class Mod>
Status AttentionPrefill(Stream stream, const AttentionPrefillParams& params, int64_t most_rows, const Mod& mod) {
  ModPrefillArgs<Mod> args{{}, mod};
  simt::LaunchShape shape;
  RETURN_IF_ERROR(MakePrefillArgs(params, most_rows, &args, &shape));
  if (params.num_chunks == 0) return OkStatus();
  if (args.c.tensor_cores) return LaunchTensorPrefill(stream, shape, args);
  return VisitFloatDType(params.table.format.dtype, [&](auto t) {
    return simt::Launch<PlainPrefillKernel<decltype(t), Mod>>(shape, stream, args);
  });
}

}  // namespace quire::cuda
