// What is done to logits of a row before its candidates are taken: some logits are changed (penalties, biases, masks), and all
// are scaled. Plain data, in device memory where the logits are there.
#pragma once

#include <cstdint>
#include <limits>

namespace quire {

// One logit: + bias, then repetition (positive: divided by it, else multiplied), then − subtract. A bias of −∞ makes it −∞
// whatever it was, NaN too.
struct LogitEdit {
  int32_t id = 0;  // of the whole vocabulary
  float bias = 0;
  float repetition = 1;
  float subtract = 0;  // finite
};

// Row `row` of the logits with edits [edits_begin, edits_end), no id twice, all of the slice; then times scale.
struct CandidateRow {
  int32_t row = 0;
  float scale = 1;
  int32_t edits_begin = 0, edits_end = 0;
};

// On the host. Each operation rounds by itself: the GPU's kernel gives the same bits.
inline float Edited(float x, const LogitEdit& e) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  x = e.bias == kMinusInf ? kMinusInf : x + e.bias;
  x = x > 0 ? x / e.repetition : x * e.repetition;
  return x - e.subtract;
}

}  // namespace quire
