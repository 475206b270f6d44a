// The instruction sets that the CPU kernels are compiled for: the baseline (SSE2 or NEON), AVX2 and AVX-512. Include before
// any Highway header. Left out: SSSE3 and SSE4 (compile time counts more than machines without AVX2), the x86 targets above
// AVX3 (bits 0–7 in every version of Highway; nothing here gains by them), and SVE and RVV, whose sizeless vectors can't stand in
// arrays. QUIRE_NO_AVX512 leaves AVX3 out too: sanitizer builds, where it takes minutes to compile.
#pragma once

#ifdef QUIRE_NO_AVX512
#define QUIRE_NEWEST_X86_TARGETS ((1LL << 9) - 1)
#else
#define QUIRE_NEWEST_X86_TARGETS ((1LL << 8) - 1)
#endif
#define HWY_DISABLED_TARGETS \
  (QUIRE_NEWEST_X86_TARGETS | HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
