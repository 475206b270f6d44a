#include "core/model/decoder_rope.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace quire {

RopeTables::RopeTables(const RopeConfig& config) : config_(config), half_(config.rotary_dim / 2) {
  magnitude_ = config.scaling == RopeScaling::kYarn ? static_cast<float>(config.attention_factor) : 1.0f;
  cached_length_ = FrequencyLength(1);
  inv_freq_ = RopeInverseFrequencies(config_, cached_length_);
}

int64_t RopeTables::FrequencyLength(int32_t rope_len) const {
  if (config_.scaling != RopeScaling::kDynamic) return config_.original_max_position;
  return std::max<int64_t>(rope_len, config_.original_max_position);
}

void RopeTables::Fill(const Context& ctx, const DecoderRows& rows, float* cos_sin) {
  FillRows(ctx, rows, rows.pos.data(), rows.rows, magnitude_, cos_sin);
}

void RopeTables::FillTurns(const Context& ctx, const DecoderRows& rows, const int32_t* turns, float* cos_sin) {
  FillRows(ctx, rows, turns, rows.decode_rows, 1.0f, cos_sin);  // the queries have the magnitude already
}

void RopeTables::FillRows(const Context& ctx, const DecoderRows& rows, const int32_t* positions, int count,
                          float magnitude, float* cos_sin) {
  for (int begin = 0; begin < count;) {
    const int64_t length = FrequencyLength(rows.rope_len[begin]);
    int end = begin + 1;
    while (end < count && FrequencyLength(rows.rope_len[end]) == length) ++end;
    if (length != cached_length_) {
      inv_freq_ = RopeInverseFrequencies(config_, length);
      cached_length_ = length;
    }
    RopeTable(ctx, positions + begin, end - begin, inv_freq_.data(), half_, magnitude,
              cos_sin + int64_t{begin} * 2 * half_);
    begin = end;
  }
}

}  // namespace quire
