// The tile instructions themselves; reached only after HasAmx() has said yes.
#include "kernels/cpu/amx.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace quire {
namespace {

std::atomic<bool> software_tiles{false};

#if defined(__x86_64__)
// Written as assembly: the compilers' intrinsics want literal tile numbers, and GCC 12's LDTILECFG claims to read 8 bytes
// of the 64, so that the stores to the rest vanish.
class RealTiles {
 public:
  static void Configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  static void Release() { asm volatile("tilerelease"); }
  template <int kTile>
  static void Zero() { asm volatile("tilezero %%tmm%c0" : : "i"(kTile)); }
  template <int kTile>
  static void Load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void Store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kC, int kA, int kB>
  static void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

bool DetectAmx() {
  const char* wish = std::getenv("QUIRE_AMX");
  if (wish != nullptr && std::strcmp(wish, "0") == 0) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (__get_cpuid_count(1, 0, &a, &b, &c, &d) == 0 || (c & (1u << 27)) == 0) return false;  // OSXSAVE
  unsigned xcr0 = 0, high = 0;
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((xcr0 & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else
class RealTiles : public SoftTiles {};
bool DetectAmx() { return false; }
#endif

// The software tiles note what would trap on hardware.
void CheckFaults(const SoftTiles& tiles) { CHECK(!tiles.fault); }
[[maybe_unused]] void CheckFaults(const RealTiles&) {}

template <class Tiles>
void Score(const AmxQueries& q, const BF16* const* k, const int64_t* at, int num_pages, int page_size, float scale,
           float* scores, int64_t stride) {
  Tiles tiles;
  const TileConfig config = AmxScoreConfig();
  tiles.Configure(config);
  for (int i = 0; i < num_pages; ++i) {
    AmxScorePage(tiles, q, k[i], k[i + 1 < num_pages ? i + 1 : i], page_size, scale, scores + at[i], stride);
  }
  CheckFaults(tiles);
  tiles.Release();
}

template <class Tiles>
void Accumulate(const AmxPage* pages, int num_pages, int page_size, int v_dim, const float* weights, int64_t stride, int heads,
                bool stacked, AmxOperand* operands, float* acc) {
  Tiles tiles;
  const TileConfig config = AmxSumConfig(page_size);
  tiles.Configure(config);
  AmxSumPages(tiles, pages, num_pages, page_size, v_dim, weights, stride, heads, stacked, operands, acc);
  CheckFaults(tiles);
  tiles.Release();
}

}  // namespace

bool HasAmx() {
  static const bool has = DetectAmx();
  return has || software_tiles;
}

void UseSoftwareTilesForTesting(bool use) { software_tiles = use; }

void AmxScorePages(const AmxQueries& q, const BF16* const* k, const int64_t* at, int num_pages, int page_size, float scale,
                   float* scores, int64_t stride) {
  auto* const run = software_tiles ? Score<SoftTiles> : Score<RealTiles>;
  run(q, k, at, num_pages, page_size, scale, scores, stride);
}

void AmxAccumulatePages(const AmxPage* pages, int num_pages, int page_size, int v_dim, const float* weights, int64_t stride,
                        int heads, bool stacked, AmxOperand* operands, float* acc) {
  auto* const run = software_tiles ? Accumulate<SoftTiles> : Accumulate<RealTiles>;
  run(pages, num_pages, page_size, v_dim, weights, stride, heads, stacked, operands, acc);
}

}  // namespace quire
