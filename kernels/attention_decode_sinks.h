// Decode attention with sinks: each row sees the first tokens of its sequence with one query and the last ones with
// another, under one softmax. StreamingLLM's attention, where the query for the first tokens is turned back to the
// place that it has inside what is kept.
#pragma once

#include "kernels/attention_decode.h"

namespace quire {

struct AttentionSinksParams {
  // rows, lengths, pages and outputs; q is for the window. selection, mass: null.
  AttentionDecodeParams decode;
  const float* q_sinks = nullptr;  // [rows][q_heads][k_dim], row stride q_sinks_stride; for the sinks
  int64_t q_sinks_stride = 0;
  float softcap = 0;  // > 0: scores become softcap · tanh(score / softcap)
  int sinks = 0;   // the first tokens
  int window = 1;  // the last tokens that a row sees; sinks + window ≤ every row's length
};

size_t AttentionSinksWorkspace(const Context& ctx, const AttentionSinksParams& params);

// workspace: at least AttentionSinksWorkspace bytes, 64-byte aligned. A row's bits depend on the row alone.
void AttentionDecodeSinks(const Context& ctx, const AttentionSinksParams& params, void* workspace);

}  // namespace quire
