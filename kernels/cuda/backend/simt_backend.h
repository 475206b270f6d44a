// simt.h on the GPU: intrinsics and PTX of sm_80 and later. nvcc only. Every function is what its one instruction is.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/cuda/simt_types.h"

#define QUIRE_DEVICE __device__ __forceinline__

namespace quire::simt {

// Where a collective was called; only the emulator wants to know.
struct Where {
  __host__ __device__ static constexpr Where current() { return {}; }
};

QUIRE_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
QUIRE_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
QUIRE_DEVICE int Lane() { return static_cast<int>(threadIdx.x & 31); }
QUIRE_DEVICE int Warp() { return static_cast<int>(threadIdx.x >> 5); }
QUIRE_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
QUIRE_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
QUIRE_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
QUIRE_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
QUIRE_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
QUIRE_DEVICE int GridZ() { return static_cast<int>(gridDim.z); }
QUIRE_DEVICE uint64_t Clock() { return static_cast<uint64_t>(clock64()); }

// The block's shared memory, 128-byte aligned.
QUIRE_DEVICE std::byte* SharedBytes() {
  extern __shared__ __align__(128) unsigned char quire_shared_memory[];
  return reinterpret_cast<std::byte*>(quire_shared_memory);
}
template <typename T>
QUIRE_DEVICE T& Shared() {
  return *reinterpret_cast<T*>(SharedBytes());
}

QUIRE_DEVICE void SyncThreads(Where = {}) { __syncthreads(); }
QUIRE_DEVICE void SyncWarp(uint32_t mask = kFullMask, Where = {}) { __syncwarp(mask); }
QUIRE_DEVICE void NamedBarrierSync(int id, int threads, Where = {}) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
QUIRE_DEVICE void NamedBarrierArrive(int id, int threads, Where = {}) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
QUIRE_DEVICE void ThreadFence() { __threadfence(); }

template <typename T>
QUIRE_DEVICE T ShuffleIndex(uint32_t mask, T value, int lane, Where = {}) {
  return __shfl_sync(mask, value, lane);
}
template <typename T>
QUIRE_DEVICE T ShuffleXor(uint32_t mask, T value, int distance, Where = {}) {
  return __shfl_xor_sync(mask, value, distance);
}
// Lanes that have nobody `distance` below (above) get their own value.
template <typename T>
QUIRE_DEVICE T ShuffleUp(uint32_t mask, T value, int distance, Where = {}) {
  return __shfl_up_sync(mask, value, static_cast<unsigned>(distance));
}
template <typename T>
QUIRE_DEVICE T ShuffleDown(uint32_t mask, T value, int distance, Where = {}) {
  return __shfl_down_sync(mask, value, static_cast<unsigned>(distance));
}
QUIRE_DEVICE uint32_t Ballot(uint32_t mask, bool vote, Where = {}) { return __ballot_sync(mask, vote); }
QUIRE_DEVICE bool Any(uint32_t mask, bool vote, Where = {}) { return __any_sync(mask, vote) != 0; }
QUIRE_DEVICE bool All(uint32_t mask, bool vote, Where = {}) { return __all_sync(mask, vote) != 0; }
// Lanes of the mask with the same value.
QUIRE_DEVICE uint32_t MatchAny(uint32_t mask, uint32_t value, Where = {}) { return __match_any_sync(mask, value); }
QUIRE_DEVICE uint32_t ReduceAdd(uint32_t mask, uint32_t value, Where = {}) { return __reduce_add_sync(mask, value); }
QUIRE_DEVICE uint32_t ReduceMin(uint32_t mask, uint32_t value, Where = {}) { return __reduce_min_sync(mask, value); }
QUIRE_DEVICE uint32_t ReduceMax(uint32_t mask, uint32_t value, Where = {}) { return __reduce_max_sync(mask, value); }

// Relaxed, on global or shared memory; they return what was there before.
template <typename T>
QUIRE_DEVICE T AtomicAdd(T* p, T x) { return atomicAdd(p, x); }
template <typename T>
QUIRE_DEVICE T AtomicMin(T* p, T x) { return atomicMin(p, x); }
template <typename T>
QUIRE_DEVICE T AtomicMax(T* p, T x) { return atomicMax(p, x); }
template <typename T>
QUIRE_DEVICE T AtomicOr(T* p, T x) { return atomicOr(p, x); }
template <typename T>
QUIRE_DEVICE T AtomicExchange(T* p, T x) { return atomicExch(p, x); }
template <typename T>
QUIRE_DEVICE T AtomicCompareExchange(T* p, T expected, T x) { return atomicCAS(p, expected, x); }

// One access of sizeof(V) = 4, 8 or 16 bytes.
template <typename V>
QUIRE_DEVICE V Load(const void* p, Where = {}) {
  return *static_cast<const V*>(p);
}
template <typename V>
QUIRE_DEVICE void Store(void* p, V v, Where = {}) {
  *static_cast<V*>(p) = v;
}
// Global memory that nobody writes during the kernel.
template <typename V>
QUIRE_DEVICE V LoadReadOnly(const void* p, Where = {}) {
  static_assert(sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  V v;
  if constexpr (sizeof(V) == 2) {
    const uint16_t x = __ldg(static_cast<const unsigned short*>(p));
    __builtin_memcpy(&v, &x, 2);
  } else if constexpr (sizeof(V) == 4) {
    const uint32_t x = __ldg(static_cast<const uint32_t*>(p));
    __builtin_memcpy(&v, &x, 4);
  } else if constexpr (sizeof(V) == 8) {
    const uint2 x = __ldg(static_cast<const uint2*>(p));
    __builtin_memcpy(&v, &x, 8);
  } else {
    const uint4 x = __ldg(static_cast<const uint4*>(p));
    __builtin_memcpy(&v, &x, 16);
  }
  return v;
}
// As LoadReadOnly, for what is read once: it takes no place in L1.
template <typename V>
QUIRE_DEVICE V LoadStreaming(const void* p, Where = {}) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  V v;
  if constexpr (sizeof(V) == 4) {
    uint32_t x;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(x) : "l"(p));
    __builtin_memcpy(&v, &x, 4);
  } else if constexpr (sizeof(V) == 8) {
    uint2 x;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
    __builtin_memcpy(&v, &x, 8);
  } else {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    __builtin_memcpy(&v, &x, 16);
  }
  return v;
}
// Global memory that is not read again soon.
template <typename V>
QUIRE_DEVICE void StoreStreaming(void* p, V v, Where = {}) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  if constexpr (sizeof(V) == 4) {
    uint32_t x;
    __builtin_memcpy(&x, &v, 4);
    __stcs(static_cast<uint32_t*>(p), x);
  } else if constexpr (sizeof(V) == 8) {
    uint2 x;
    __builtin_memcpy(&x, &v, 8);
    __stcs(static_cast<uint2*>(p), x);
  } else {
    uint4 x;
    __builtin_memcpy(&x, &v, 16);
    __stcs(static_cast<uint4*>(p), x);
  }
}
QUIRE_DEVICE void PrefetchL2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

QUIRE_DEVICE uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 4, 8 or 16 bytes from global to shared memory; 16 pass by L1.
template <int kBytes>
QUIRE_DEVICE void CpAsync(void* shared, const void* global, Where = {}) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(SharedAddress(shared)), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(SharedAddress(shared)), "l"(global), "n"(kBytes)
                 : "memory");
  }
}
// Zeros where !there; the address must still be one of global memory, but nothing is read.
template <int kBytes>
QUIRE_DEVICE void CpAsyncOrZero(void* shared, const void* global, bool there, Where = {}) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(SharedAddress(shared)), "l"(global), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}
QUIRE_DEVICE void CpAsyncCommit(Where = {}) { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kGroups of this thread's committed groups are still under way.
template <int kGroups>
QUIRE_DEVICE void CpAsyncWait(Where = {}) {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// kMatrices 8×8 matrices of 16-bit elements from shared memory: lane 8j + i names row i of matrix j (16 bytes, aligned);
// regs[j] gets row Lane() / 4, elements 2 (Lane() % 4) and the next. Lanes past 8 kMatrices name any valid row.
template <int kMatrices>
QUIRE_DEVICE void LdMatrix(uint32_t (&regs)[kMatrices], const void* row, Where = {}) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const uint32_t address = SharedAddress(row);
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(regs[0]) : "r"(address) : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(regs[0]), "=r"(regs[1]) : "r"(address) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(regs[0]), "=r"(regs[1]), "=r"(regs[2]), "=r"(regs[3]) : "r"(address) : "memory");
  }
}
// The same matrices transposed: regs[j] gets column Lane() / 4 of rows 2 (Lane() % 4) and the next.
template <int kMatrices>
QUIRE_DEVICE void LdMatrixTranspose(uint32_t (&regs)[kMatrices], const void* row, Where = {}) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const uint32_t address = SharedAddress(row);
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(regs[0]) : "r"(address) : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(regs[0]), "=r"(regs[1]) : "r"(address) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(regs[0]), "=r"(regs[1]), "=r"(regs[2]), "=r"(regs[3]) : "r"(address) : "memory");
  }
}

// d += a·b on tensor cores: a [16][16] row-major, b [16][8], d [16][8]. With g = Lane() / 4 and t = Lane() % 4:
//   a[0]: row g,     columns 2t, 2t + 1      a[1]: row g + 8, the same columns
//   a[2]: row g,     columns 2t + 8, 2t + 9  a[3]: row g + 8, the same columns
//   b[0]: rows 2t, 2t + 1 of column g        b[1]: rows 2t + 8, 2t + 9 of column g
//   d[0], d[1]: row g, columns 2t, 2t + 1    d[2], d[3]: row g + 8, the same columns
template <typename T>
QUIRE_DEVICE void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where = {}) {
  static_assert(std::is_same_v<T, BF16> || std::is_same_v<T, F16>);
  if constexpr (std::is_same_v<T, BF16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

QUIRE_DEVICE int PopCount(uint32_t x) { return __popc(x); }
QUIRE_DEVICE int LowestBit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }  // −1 for 0
QUIRE_DEVICE uint32_t FloatBits(float x) { return __float_as_uint(x); }
QUIRE_DEVICE float BitsFloat(uint32_t x) { return __uint_as_float(x); }

QUIRE_DEVICE float ToFloat(float x) { return x; }
QUIRE_DEVICE float ToFloat(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
QUIRE_DEVICE float ToFloat(F16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
// Nearest even.
template <typename T>
QUIRE_DEVICE T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    T y;
    if constexpr (std::is_same_v<T, BF16>) {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    } else {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    }
    return y;
  }
}
// Two 16-bit floats in a word, `low` in the lower half (the lower address).
template <typename T>
QUIRE_DEVICE uint32_t PackPair(float low, float high) {
  static_assert(std::is_same_v<T, BF16> || std::is_same_v<T, F16>);
  uint32_t word;
  if constexpr (std::is_same_v<T, BF16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}
template <typename T>
QUIRE_DEVICE float LowFloat(uint32_t word) {
  if constexpr (std::is_same_v<T, BF16>) {
    return __uint_as_float(word << 16);
  } else {
    return simt::ToFloat(F16{static_cast<uint16_t>(word & 0xffffu)});
  }
}
template <typename T>
QUIRE_DEVICE float HighFloat(uint32_t word) {
  if constexpr (std::is_same_v<T, BF16>) {
    return __uint_as_float(word & 0xffff0000u);
  } else {
    return simt::ToFloat(F16{static_cast<uint16_t>(word >> 16)});
  }
}

QUIRE_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QUIRE_DEVICE float Max(float a, float b) { return fmaxf(a, b); }  // the other one of a NaN
QUIRE_DEVICE float Exp(float x) { return expf(x); }    // within 1 ulp
QUIRE_DEVICE float Log(float x) { return logf(x); }    // within 1 ulp
QUIRE_DEVICE float Exp2(float x) {                     // one instruction, within 2 ulp; subnormal results are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
QUIRE_DEVICE float Sqrt(float x) { return __fsqrt_rn(x); }
QUIRE_DEVICE float Rsqrt(float x) { return __frsqrt_rn(x); }  // correctly rounded
QUIRE_DEVICE void SinCos(double x, double* sine, double* cosine) { sincos(x, sine, cosine); }

// OK, or what the runtime said when `name` did `what`; out of memory is RESOURCE_EXHAUSTED.
inline Status CudaStatus(cudaError_t error, const char* name, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  const std::string message =
      std::string(name) + ": " + what + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return ResourceExhausted(message);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return FailedPrecondition(message);
  return Internal(message);
}

// On sm_90 and later a kernel is put on its multiprocessors while the one before it ends (programmatic dependent launch), and
// waits there, before it touches memory, until that one's writes are there.
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kMaxThreads, Kernel::kMinBlocks)
    Entry(const __grid_constant__ typename Kernel::Params params) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  Kernel::Run(params);
}

// Whether the current device can launch kernels so; asked once a process, whose GPUs are of one kind.
inline bool LaunchesEarly() {
  static const bool answer = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
  }();
  return answer;
}

// Puts the kernel on the stream (a cudaStream_t in `handle`). Never waits, never allocates; works under graph capture.
template <typename Kernel>
Status Launch(const LaunchShape& shape, Stream stream, const typename Kernel::Params& params) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Params> && sizeof(typename Kernel::Params) <= 4096);
  if (shape.grid_x == 0 || shape.grid_y == 0 || shape.grid_z == 0) return OkStatus();
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shape.shared_bytes > kAlwaysAllowed) {
    RETURN_IF_ERROR(CudaStatus(cudaFuncSetAttribute(Entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shape.shared_bytes)),
                               Kernel::kName, "shared memory of a block"));
  }
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y),
                        static_cast<unsigned>(shape.grid_z));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &early;
  config.numAttrs = LaunchesEarly() ? 1 : 0;
  return CudaStatus(cudaLaunchKernelEx(&config, Entry<Kernel>, params), Kernel::kName, "launch");
}

}  // namespace quire::simt
