// The cos and sin rows of a step, made once and shared by q, k and all layers. Rows share one set of inverse
// frequencies, except under dynamic scaling, where a set belongs to the sequence's total length.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/context.h"
#include "core/model/decoder_rows.h"
#include "core/model/model_config.h"

namespace quire {

class RopeTables {
 public:
  explicit RopeTables(const RopeConfig& config);

  // cos_sin: [rows][2][half()], by place.
  void Fill(const Context& ctx, const DecoderRows& rows, float* cos_sin);
  // What turns rotated queries of the decode rows on by so many positions, which may be negative. turns: [decode_rows],
  // cos_sin: [decode_rows][2][half()].
  void FillTurns(const Context& ctx, const DecoderRows& rows, const int32_t* turns, float* cos_sin);
  int half() const { return half_; }

 private:
  void FillRows(const Context& ctx, const DecoderRows& rows, const int32_t* positions, int count, float magnitude,
                float* cos_sin);
  // The length whose frequencies a row uses: all lengths up to the original maximum share one set.
  int64_t FrequencyLength(int32_t rope_len) const;

  RopeConfig config_;
  int half_ = 0;
  float magnitude_ = 1.0f;
  int64_t cached_length_ = 0;     // the length that inv_freq_ was made for
  std::vector<float> inv_freq_;  // [half_]
};

}  // namespace quire
