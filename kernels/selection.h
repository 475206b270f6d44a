// Selection: which logical pages each (row, KV head) attends to. Made by a policy, read by the decode kernel,
// which knows no policy. Lists ascend; logical pages, so results don't depend on where pages lie.
#pragma once

#include <cstdint>

namespace quire {

struct SelectionView {
  int32_t* pages = nullptr;   // [rows][kv_heads][max_pages] ascending logical page indices
  int32_t* counts = nullptr;  // [rows][kv_heads] valid entries
  int max_pages = 0;
  // Token-level policies: bit s of the mask says that slot s counts. Null: whole pages. [rows][kv_heads][max_pages][mask_words]
  uint64_t* slot_mask = nullptr;
  int mask_words = 0;  // ceil(page_size / 64)
  // sparq's correction, y = alpha·attention + (1 − alpha)·v_mean. Null: none.
  float* alpha = nullptr;   // [rows][q_heads]
  float* v_mean = nullptr;  // [rows][kv_heads][v_dim]
};

}  // namespace quire
