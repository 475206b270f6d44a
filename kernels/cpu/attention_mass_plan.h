// How the mass of prompt rows is cut into tasks, and a worker's scratch. Pure arithmetic; the cuts follow positions
// alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention_mass.h"
#include "kernels/cpu/attention_prefill_plan.h"

namespace quire {

inline constexpr int kMassKeys = 256;  // widened at once; a multiple of kPrefillKeyBlock
static_assert(kMassKeys % kPrefillKeyBlock == 0);

struct MassPlan {
  int64_t task_pages = 1;
  int64_t tasks = 0;  // of a KV head
  int64_t task_entries = 1;  // of mass

  static MassPlan Create(const PrefillMassParams& p) {
    MassPlan plan;
    plan.task_pages = std::max(1, kMassKeys / p.table.format.page_size);
    const int64_t page_size = p.table.format.page_size;
    const int64_t pages = p.by_token ? (p.mass_pages + page_size - 1) / page_size : p.mass_pages;
    plan.tasks = (pages + plan.task_pages - 1) / plan.task_pages;
    plan.task_entries = plan.task_pages * (p.by_token ? page_size : 1);
    return plan;
  }
};

struct MassScratch {
  float* k = nullptr;       // panels of kMassKeys keys x k_dim
  float* q = nullptr;       // [tile rows][k_dim]
  float* scores = nullptr;  // [tile rows][64]

  static size_t Bytes(const PageFormat& f) {
    const int64_t floats = int64_t{kMassKeys + kPrefillTileRows} * f.k_dim + kPrefillTileRows * kPrefillKeyBlock;
    return static_cast<size_t>((floats + 15) / 16 * 16) * sizeof(float);
  }
  static MassScratch Create(const PageFormat& f, void* workspace, int worker) {
    MassScratch s;
    s.k = reinterpret_cast<float*>(static_cast<char*>(workspace) + static_cast<size_t>(worker) * Bytes(f));
    s.scores = s.k + int64_t{kMassKeys} * f.k_dim;
    s.q = s.scores + int64_t{kPrefillTileRows} * kPrefillKeyBlock;
    return s;
  }
};

}  // namespace quire
