// A block for each (row, KV head) that evicts: its threads look at every 256th slot, and the smallest of their (weight,
// position) pairs is one, whatever the order, for no two slots hold the same position. Weights take a thread a slot; of one
// sequence's rows it takes all, one after the other.
#include "kernels/cuda/slot_map.h"

#include "kernels/cuda/attention_math.cuh"
#include "kernels/cuda/radix_select.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kSlotThreads = 256;

struct EvictSlotsKernel {
  struct Params {
    EvictParams p;
    int64_t sinks, recent;
  };
  static constexpr const char* kName = "evict_slots";
  static constexpr int kMaxThreads = kSlotThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWarps = kSlotThreads / simt::kWarpSize;
  static constexpr unsigned long long kNone = ~0ull;
  struct Layout {
    unsigned long long least[kWarps];
  };

  // In the order in which slots leave: by weight, then by position.
  QUIRE_DEVICE static unsigned long long KeyOf(float weight, int32_t position) {
    const float judged = weight != weight ? -MinusInfinity() : weight;
    return static_cast<unsigned long long>(OrderedKey(judged)) << 32 | static_cast<uint32_t>(position);
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const EvictParams& p = params.p;
    auto& s = simt::Shared<Layout>();
    const int row = simt::BlockX(), head = simt::BlockY(), position = p.row_pos[row];
    const SlotMap map = p.maps[row];
    int32_t* positions = map.Positions(head);
    float* weights = map.Weights(head);
    unsigned long long least = kNone;
    int64_t mine = 0;  // the slot of `least`
    for (int64_t slot = simt::ThreadIndex(); slot < map.capacity; slot += kSlotThreads) {
      const int32_t held = positions[slot];
      if (held < params.sinks || held >= position - params.recent) continue;
      const unsigned long long key = KeyOf(weights[slot], held);
      if (key >= least) continue;
      least = key;
      mine = slot;
    }
    unsigned long long first = least;
    for (int distance = simt::kWarpSize / 2; distance > 0; distance /= 2) {
      const unsigned long long other = simt::ShuffleXor(simt::kFullMask, first, distance);
      first = other < first ? other : first;
    }
    if (simt::Lane() == 0) s.least[simt::Warp()] = first;
    simt::SyncThreads();
    for (int w = 0; w < kWarps; ++w) first = s.least[w] < first ? s.least[w] : first;
    if (least != first || least == kNone) return;
    positions[mine] = position;
    weights[mine] = 0;
    p.taken[int64_t{head} * p.rows + row] = static_cast<int32_t>(mine);
  }
};

struct RememberSlotsKernel {
  struct Params {
    RememberSlotsParams p;
    SlotRule rule;
  };
  static constexpr const char* kName = "remember_slots";
  static constexpr int kMaxThreads = kSlotThreads;
  static constexpr int kMinBlocks = 4;

  QUIRE_DEVICE static void Run(const Params& params) {
    const RememberSlotsParams& p = params.p;
    const int64_t slot = int64_t{simt::BlockX()} * kSlotThreads + simt::ThreadIndex();
    const int head = simt::BlockY(), first = simt::BlockZ(), end = p.one_sequence ? p.rows : first + 1;
    if (slot >= p.row_len[end - 1]) return;  // the last row sees the most
    float& weight = p.maps[first].Weights(head)[slot];
    const auto mass_of = [&](int row) { return p.mass[(int64_t{row} * p.kv_heads + head) * p.mass_slots + slot]; };
    if (params.rule == SlotRule::kLast) {
      weight = mass_of(end - 1);
      return;
    }
    float sum = weight;
    for (int row = first; row < end; ++row) {
      if (slot < p.row_len[row]) sum += mass_of(row);
    }
    weight = sum;
  }
};

}  // namespace

Status EvictSlots(Stream stream, int64_t sinks, int64_t recent, const EvictParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.grid_y = p.kv_heads;
  shape.threads = kSlotThreads;
  shape.shared_bytes = sizeof(EvictSlotsKernel::Layout);
  return simt::Launch<EvictSlotsKernel>(shape, stream, {p, sinks, recent});
}

Status RememberSlots(Stream stream, SlotRule rule, const RememberSlotsParams& p) {
  simt::LaunchShape shape;
  shape.grid_x = (p.mass_slots + kSlotThreads - 1) / kSlotThreads;
  shape.grid_y = p.kv_heads;
  shape.grid_z = p.one_sequence ? 1 : p.rows;
  shape.threads = kSlotThreads;
  return simt::Launch<RememberSlotsKernel>(shape, stream, {p, rule});
}

}  // namespace quire::cuda
