// The only door to the hardware: kernels reach threads, barriers, shuffles, shared memory, asynchronous copies and tensor
// cores through this header and nothing else. It takes `simt_backend.h` from the include path: kernels/cuda/backend (PTX and
// intrinsics, for nvcc) or tests/kernels/cuda/emulator (any host compiler; proves logic, never speed). One source, both ways.
//
// How a kernel is written (kernels/cuda/elementwise.cu is a short example):
//
//   struct Params { … };                                   // plain data, at most 4 KB, passed by value
//   template <typename T> struct MyKernel {
//     using Params = …;
//     static constexpr const char* kName = "my_kernel";
//     static constexpr int kMaxThreads = 256;              // of a block; with kMinBlocks it bounds the registers
//     static constexpr int kMinBlocks = 1;                 // blocks to fit on one multiprocessor
//     QUIRE_DEVICE static void Run(const Params& p);       // one thread's work
//   };
//   RETURN_IF_ERROR(simt::Launch<MyKernel<BF16>>(shape, stream, params));
//
// Rules, which the emulator enforces:
//  - Blocks have a multiple of 32 threads in one dimension; grids have three. Blocks never wait for each other (the emulator
//    runs them one after another, in a shuffled order).
//  - Shared memory is dynamic only: size it with sizeof(Layout) in the shape, get it with Shared<Layout>(). It is full of NaN
//    (all bits set) when a block starts.
//  - SyncThreads() is reached by all threads of the block at the same source line; none has left the kernel before.
//  - Warp operations (shuffles, votes, reductions, ldmatrix, mma) are reached by all lanes of their mask at the same line; a
//    lane that is read is in the mask. They order no memory: SyncWarp() does.
//  - An asynchronous copy's data is there after CpAsyncWait and, for other threads, a barrier after that; before, the place is
//    NaN. No thread leaves with copies under way.
//  - Vector accesses are aligned to their size.
// A function that calls one of these with a `Where where = Where::current()` of its own names its caller in the messages.
//
// A new kernel: its .cu in kernels/cuda/sources.cmake, its test in tests/kernels/cuda (typed.h and paged_layer.h there make the
// buffers; several seeds show what one order hides), and a tiny shape of it in kernel_races_test.cc there. Nothing in it asks
// which compiler it meets. A name that quire and simt share (ToFloat) is called as simt::ToFloat. `if` around a collective is
// fine where a whole warp (for SyncThreads, the whole block) takes the same side.
//
// Every other function of a kernel is marked QUIRE_DEVICE; constexpr functions (PageFormat's offsets, say) work on both sides.
// Storage of 16-bit floats is BF16 and F16 of core/base/dtype.h; their conversions here are device code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/device.h"
#include "core/base/status.h"
#include "kernels/cuda/simt_types.h"
#include "simt_backend.h"

// What a backend gives (see either of them for the signatures):
//   QUIRE_DEVICE, Where
//   Launch<Kernel>(shape, stream, params) → Status
//   ThreadIndex BlockThreads Lane Warp BlockX BlockY BlockZ GridX GridY GridZ Clock
//   Shared<T>() SharedBytes()
//   SyncThreads SyncWarp(mask) NamedBarrierSync(id, threads) NamedBarrierArrive(id, threads)      id 1 … 15
//   ShuffleIndex ShuffleXor ShuffleUp ShuffleDown (mask, value, lane or distance)    values of 4 or 8 bytes
//   Ballot Any All MatchAny (mask, …)   ReduceAdd ReduceMin ReduceMax (mask, uint32_t)
//   AtomicAdd AtomicMin AtomicMax AtomicOr AtomicExchange AtomicCompareExchange   ThreadFence
//   Load<V>(p) LoadReadOnly<V>(p) LoadStreaming<V>(p) Store(p, v) StoreStreaming(p, v) PrefetchL2(p)
//   CpAsync<bytes>(shared, global) CpAsyncOrZero<bytes>(shared, global, there) CpAsyncCommit() CpAsyncWait<n>()
//   LdMatrix<1|2|4>(regs, row) LdMatrixTranspose<1|2|4>(regs, row)   MmaM16N8K16<BF16|F16>(d, a, b)
//   ToFloat(BF16|F16|float) FromFloat<T>(x) PackPair<T>(low, high) LowFloat<T>(word) HighFloat<T>(word)
//   Exp Exp2 Log Rsqrt Sqrt SinCos Fma Max PopCount LowestBit FloatBits BitsFloat

namespace quire::simt {

// All lanes get the result; lanes are added in one fixed order (a butterfly), so bits don't depend on timing.
QUIRE_DEVICE float WarpSum(float x, Where where = Where::current()) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += ShuffleXor(kFullMask, x, distance, where);
  return x;
}

// A NaN of any lane is ignored, as by fmaxf.
QUIRE_DEVICE float WarpMax(float x, Where where = Where::current()) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const float other = ShuffleXor(kFullMask, x, distance, where);
    x = other > x || x != x ? other : x;
  }
  return x;
}

// Sum over the block to all threads; lanes by butterfly, then warps in order. scratch: shared, kMaxThreads / 32 floats, free to
// use again after the next SyncThreads.
QUIRE_DEVICE float BlockSum(float x, float* scratch, Where where = Where::current()) {
  x = WarpSum(x, where);
  if (Lane() == 0) scratch[Warp()] = x;
  SyncThreads(where);
  float sum = 0;
  for (int w = 0; w < BlockThreads() / kWarpSize; ++w) sum += scratch[w];
  return sum;
}

// Inclusive sum over lanes 0 … Lane().
QUIRE_DEVICE int WarpInclusiveSum(int x, Where where = Where::current()) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = ShuffleUp(kFullMask, x, distance, where);
    x += Lane() >= distance ? other : 0;
  }
  return x;
}

// Words of a vector access, by index.
template <typename V>
QUIRE_DEVICE uint32_t& Word(V& v, int i) {
  return reinterpret_cast<uint32_t*>(&v)[i];
}

}  // namespace quire::simt
