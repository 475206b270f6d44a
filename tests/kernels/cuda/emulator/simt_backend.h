// simt.h on the emulator. The signatures are those of kernels/cuda/backend/simt_backend.h, where each function is described.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/cuda/simt_types.h"
#include "tests/kernels/cuda/emulator/engine.h"
#include "tests/kernels/cuda/emulator/mma.h"

#define QUIRE_DEVICE inline

namespace quire::simt {

using Where = emulator::Where;

inline int ThreadIndex() { return emulator::Place().thread; }
inline int BlockThreads() { return emulator::Place().threads; }
inline int Lane() { return ThreadIndex() % 32; }
inline int Warp() { return ThreadIndex() / 32; }
inline int BlockX() { return static_cast<int>(emulator::Place().block[0]); }
inline int BlockY() { return static_cast<int>(emulator::Place().block[1]); }
inline int BlockZ() { return static_cast<int>(emulator::Place().block[2]); }
inline int GridX() { return static_cast<int>(emulator::Place().grid[0]); }
inline int GridY() { return static_cast<int>(emulator::Place().grid[1]); }
inline int GridZ() { return static_cast<int>(emulator::Place().grid[2]); }
inline uint64_t Clock() { return emulator::Tick(); }

inline std::byte* SharedBytes() { return emulator::Place().shared; }
template <typename T>
T& Shared(Where where = Where::current()) {
  emulator::CheckShared(SharedBytes(), sizeof(T), where);
  return *reinterpret_cast<T*>(SharedBytes());
}

inline void SyncThreads(Where where = Where::current()) { emulator::BlockBarrier(0, BlockThreads(), true, where); }
inline void SyncWarp(uint32_t mask = kFullMask, Where where = Where::current()) { emulator::WarpBarrier(mask, where); }
inline void NamedBarrierSync(int id, int threads, Where where = Where::current()) {
  if (id == 0) emulator::Fail("named barriers are 1 to 15; 0 is SyncThreads", where);
  emulator::BlockBarrier(id, threads, true, where);
}
inline void NamedBarrierArrive(int id, int threads, Where where = Where::current()) {
  if (id == 0) emulator::Fail("named barriers are 1 to 15; 0 is SyncThreads", where);
  emulator::BlockBarrier(id, threads, false, where);
}
inline void ThreadFence() { emulator::Fence(); }

namespace internal {

// in: value (2 words), lane to read. Lanes read are in the mask.
inline const char* FinishShuffle(emulator::Exchange* const (&lanes)[32]) {
  for (int l = 0; l < 32; ++l) {
    if (lanes[l] == nullptr) continue;
    const emulator::Exchange* from = lanes[lanes[l]->in[2]];
    if (from == nullptr) return "a shuffle reads a lane outside its mask";
    std::memcpy(lanes[l]->out, from->in, 8);
  }
  return nullptr;
}

template <typename T>
T Shuffle(const char* name, uint32_t mask, T value, int lane, const Where& where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  emulator::Exchange e;
  e.in[1] = 0;
  std::memcpy(e.in, &value, sizeof(T));
  e.in[2] = static_cast<uint32_t>(lane);
  emulator::WarpArrive(mask, {name, FinishShuffle}, &e, where);
  std::memcpy(&value, e.out, sizeof(T));
  return value;
}

// fold(out, value) over the lanes' in[0], the same out to all.
template <typename Fold>
const char* FinishFold(emulator::Exchange* const (&lanes)[32], uint32_t start, Fold fold) {
  uint32_t out = start;
  for (int l = 0; l < 32; ++l) {
    if (lanes[l] != nullptr) out = fold(out, lanes[l]->in[0], l);
  }
  for (emulator::Exchange* e : lanes) {
    if (e != nullptr) e->out[0] = out;
  }
  return nullptr;
}

inline uint32_t Collect(const emulator::WarpOperation& operation, uint32_t mask, uint32_t value, const Where& where) {
  emulator::Exchange e;
  e.in[0] = value;
  emulator::WarpArrive(mask, operation, &e, where);
  return e.out[0];
}

}  // namespace internal

template <typename T>
T ShuffleIndex(uint32_t mask, T value, int lane, Where where = Where::current()) {
  return internal::Shuffle("ShuffleIndex", mask, value, lane & 31, where);
}
template <typename T>
T ShuffleXor(uint32_t mask, T value, int distance, Where where = Where::current()) {
  const int lane = Lane() ^ distance;
  return internal::Shuffle("ShuffleXor", mask, value, lane < 32 ? lane : Lane(), where);
}
template <typename T>
T ShuffleUp(uint32_t mask, T value, int distance, Where where = Where::current()) {
  return internal::Shuffle("ShuffleUp", mask, value, Lane() >= distance ? Lane() - distance : Lane(), where);
}
template <typename T>
T ShuffleDown(uint32_t mask, T value, int distance, Where where = Where::current()) {
  return internal::Shuffle("ShuffleDown", mask, value, Lane() + distance < 32 ? Lane() + distance : Lane(), where);
}
inline uint32_t Ballot(uint32_t mask, bool vote, Where where = Where::current()) {
  return internal::Collect({"Ballot",
                            [](emulator::Exchange* const (&lanes)[32]) {
                              return internal::FinishFold(
                                  lanes, 0, [](uint32_t out, uint32_t v, int l) { return out | (v != 0 ? 1u << l : 0u); });
                            }},
                           mask, vote, where);
}
inline bool Any(uint32_t mask, bool vote, Where where = Where::current()) { return Ballot(mask, vote, where) != 0; }
inline bool All(uint32_t mask, bool vote, Where where = Where::current()) { return Ballot(mask, vote, where) == mask; }
inline uint32_t MatchAny(uint32_t mask, uint32_t value, Where where = Where::current()) {
  return internal::Collect({"MatchAny",
                            [](emulator::Exchange* const (&lanes)[32]) -> const char* {
                              for (emulator::Exchange* mine : lanes) {
                                if (mine == nullptr) continue;
                                mine->out[0] = 0;
                                for (int l = 0; l < 32; ++l) {
                                  if (lanes[l] != nullptr && lanes[l]->in[0] == mine->in[0]) mine->out[0] |= 1u << l;
                                }
                              }
                              return nullptr;
                            }},
                           mask, value, where);
}
inline uint32_t ReduceAdd(uint32_t mask, uint32_t value, Where where = Where::current()) {
  return internal::Collect({"ReduceAdd",
                            [](emulator::Exchange* const (&lanes)[32]) {
                              return internal::FinishFold(lanes, 0, [](uint32_t out, uint32_t v, int) { return out + v; });
                            }},
                           mask, value, where);
}
inline uint32_t ReduceMin(uint32_t mask, uint32_t value, Where where = Where::current()) {
  return internal::Collect({"ReduceMin",
                            [](emulator::Exchange* const (&lanes)[32]) {
                              return internal::FinishFold(lanes, UINT32_MAX,
                                                          [](uint32_t out, uint32_t v, int) { return v < out ? v : out; });
                            }},
                           mask, value, where);
}
inline uint32_t ReduceMax(uint32_t mask, uint32_t value, Where where = Where::current()) {
  return internal::Collect({"ReduceMax",
                            [](emulator::Exchange* const (&lanes)[32]) {
                              return internal::FinishFold(lanes, 0,
                                                          [](uint32_t out, uint32_t v, int) { return v > out ? v : out; });
                            }},
                           mask, value, where);
}

namespace internal {

// Relaxed read-modify-write of a 4- or 8-byte value: next(old) replaces it. Returns the old value.
template <typename T, typename Next>
T Update(T* p, Next next) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  auto* bits = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(next(std::bit_cast<T>(old))), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}

}  // namespace internal

template <typename T>
T AtomicAdd(T* p, T x) { return internal::Update(p, [x](T old) { return old + x; }); }
template <typename T>
T AtomicMin(T* p, T x) { return internal::Update(p, [x](T old) { return x < old ? x : old; }); }
template <typename T>
T AtomicMax(T* p, T x) { return internal::Update(p, [x](T old) { return x > old ? x : old; }); }
template <typename T>
T AtomicOr(T* p, T x) { return internal::Update(p, [x](T old) { return old | x; }); }
template <typename T>
T AtomicExchange(T* p, T x) { return internal::Update(p, [x](T) { return x; }); }
template <typename T>
T AtomicCompareExchange(T* p, T expected, T x) {
  return internal::Update(p, [=](T old) { return old == expected ? x : old; });
}

template <typename V>
V Load(const void* p, Where where = Where::current()) {
  emulator::CheckAligned(p, sizeof(V), where);
  return *static_cast<const V*>(p);
}
template <typename V>
void Store(void* p, V v, Where where = Where::current()) {
  emulator::CheckAligned(p, sizeof(V), where);
  *static_cast<V*>(p) = v;
}
template <typename V>
V LoadReadOnly(const void* p, Where where = Where::current()) {
  static_assert(sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  return Load<V>(p, where);
}
template <typename V>
V LoadStreaming(const void* p, Where where = Where::current()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  return Load<V>(p, where);
}
template <typename V>
void StoreStreaming(void* p, V v, Where where = Where::current()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  Store(p, v, where);
}
inline void PrefetchL2(const void*) {}

template <int kBytes>
void CpAsync(void* shared, const void* global, Where where = Where::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::CopyAsync(shared, global, kBytes, true, where);
}
template <int kBytes>
void CpAsyncOrZero(void* shared, const void* global, bool there, Where where = Where::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::CopyAsync(shared, global, kBytes, there, where);
}
inline void CpAsyncCommit(Where = Where::current()) { emulator::CopyCommit(); }
template <int kGroups>
void CpAsyncWait(Where = Where::current()) {
  emulator::CopyWait(kGroups);
}

template <int kMatrices>
void LdMatrix(uint32_t (&regs)[kMatrices], const void* row, Where where = Where::current()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  emulator::WarpLoadMatrices(kMatrices, false, regs, row, where);
}
template <int kMatrices>
void LdMatrixTranspose(uint32_t (&regs)[kMatrices], const void* row, Where where = Where::current()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  emulator::WarpLoadMatrices(kMatrices, true, regs, row, where);
}
template <typename T>
void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  static_assert(std::is_same_v<T, BF16> || std::is_same_v<T, F16>);
  emulator::WarpMma(std::is_same_v<T, BF16> ? DType::kBF16 : DType::kF16, d, a, b, where);
}

inline int PopCount(uint32_t x) { return std::popcount(x); }
inline int LowestBit(uint32_t x) { return x == 0 ? -1 : std::countr_zero(x); }
inline uint32_t FloatBits(float x) { return std::bit_cast<uint32_t>(x); }
inline float BitsFloat(uint32_t x) { return std::bit_cast<float>(x); }

using quire::FromFloat;
using quire::ToFloat;
template <typename T>
uint32_t PackPair(float low, float high) {
  return uint32_t{quire::FromFloat<T>(low).bits} | uint32_t{quire::FromFloat<T>(high).bits} << 16;
}
template <typename T>
float LowFloat(uint32_t word) {
  return quire::ToFloat(T{static_cast<uint16_t>(word & 0xffffu)});
}
template <typename T>
float HighFloat(uint32_t word) {
  return quire::ToFloat(T{static_cast<uint16_t>(word >> 16)});
}

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float Max(float a, float b) { return std::fmax(a, b); }
inline float Exp(float x) { return std::exp(x); }
inline float Log(float x) { return std::log(x); }
inline float Exp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline float Sqrt(float x) { return std::sqrt(x); }
inline float Rsqrt(float x) { return static_cast<float>(1.0 / std::sqrt(double{x})); }
inline void SinCos(double x, double* sine, double* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}

// Runs the grid, at once unless the emulated GPU has streams; breaking a rule throws emulator::Error.
template <typename Kernel>
Status Launch(const LaunchShape& shape, Stream stream, const typename Kernel::Params& params) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Params> && sizeof(typename Kernel::Params) <= 4096);
  if (shape.grid_x == 0 || shape.grid_y == 0 || shape.grid_z == 0) return OkStatus();
  typename Kernel::Params copy = params;
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(&copy);  // or who looks for addresses of host memory would find those of long ago in the gaps
#endif
#endif
  emulator::Submit(stream.handle, [shape, copy] {
    emulator::RunLaunch(Kernel::kName, Kernel::kMaxThreads, shape, &copy, sizeof(copy), [&copy] { Kernel::Run(copy); });
  });
  return OkStatus();
}

}  // namespace quire::simt
