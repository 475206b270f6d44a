// What evicting policies that weigh their slots keep of a sequence, and the rows that change it: each takes a slot of another
// token, and the attention that it pays is what slots are judged by. Which slot, and what a weight is, each policy says
// (kernels/selection/policy.h).
#pragma once

#include <cstdint>

namespace quire {

// What an evicting sequence keeps of one layer beside K and V: for each KV head the position whose token lies in each
// of its slots, and the weight by which the policy judges it. Slot s first holds position s, with no weight.
struct SlotMap {
  int32_t* positions = nullptr;  // [kv_heads][capacity], in the memory of the device that evicts, as weights
  float* weights = nullptr;      // [kv_heads][capacity]
  int kv_heads = 0;
  int64_t capacity = 0;
  constexpr int32_t* Positions(int head) const { return positions + head * capacity; }
  constexpr float* Weights(int head) const { return weights + head * capacity; }
};

// Rows of one policy, no two of one sequence, that each take a slot. What the pointers point to lies in the device's memory.
struct EvictParams {
  int rows = 0;
  int kv_heads = 0;
  const int32_t* row_pos = nullptr;  // [rows] position of the row's token; at least its map's capacity
  const SlotMap* maps = nullptr;     // [rows] of the row's sequence
  int32_t* taken = nullptr;          // [kv_heads][rows] out: the slots
};

// Attention mass of rows of one policy, by slots. Likewise.
struct RememberSlotsParams {
  const float* mass = nullptr;  // [rows][kv_heads][mass_slots], summed over the query group
  int64_t mass_slots = 0;
  int rows = 0;
  int kv_heads = 0;
  const int32_t* row_len = nullptr;  // [rows] the row attended to slots [0, row_len)
  const SlotMap* maps = nullptr;     // [rows] of the row's sequence, or where one_sequence the only one
  bool one_sequence = false;         // the rows are one sequence's, in the order of positions; else no two are
};

}  // namespace quire
