// The cos and sin rows of a step, made once and shared by q, k and all layers. Rows share one set of inverse
// frequencies, except under dynamic scaling, where a set belongs to the sequence's total length.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/context.h"
#include "core/base/status.h"
#include "core/model/decoder_rows.h"
#include "core/model/model_config.h"

namespace quire {

class RopeTables {
 public:
  explicit RopeTables(const RopeConfig& config);

  // positions: rows.pos where kernels read it. cos_sin: [rows][2][half()], by place.
  Status Fill(const Context& ctx, const DecoderRows& rows, const int32_t* positions, float* cos_sin);
  // What turns rotated queries of the decode rows on by so many positions, which may be negative. turns: rows.turns
  // where kernels read it, cos_sin: [decode_rows][2][half()].
  Status FillTurns(const Context& ctx, const DecoderRows& rows, const int32_t* turns, float* cos_sin);
  int half() const { return half_; }

 private:
  Status FillRows(const Context& ctx, const DecoderRows& rows, const int32_t* positions, int count, float magnitude,
                float* cos_sin);
  // The length whose frequencies a row uses: all lengths up to the original maximum share one set.
  int64_t FrequencyLength(int32_t rope_len) const;

  RopeConfig config_;
  int half_ = 0;
  float magnitude_ = 1.0f;
  int64_t cached_length_ = 0;    // the length that inv_freq_ was made for
  std::vector<float> inv_freq_;  // [half_]
  Buffer device_inv_freq_;       // the same where kernels read it; empty before the first Fill
};

}  // namespace quire
