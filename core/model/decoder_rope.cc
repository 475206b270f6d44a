#include "core/model/decoder_rope.h"

#include <algorithm>

#include "core/base/device_memory.h"
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

Status RopeTables::Fill(const Context& ctx, const DecoderRows& rows, const int32_t* positions, float* cos_sin) {
  return FillRows(ctx, rows, positions, rows.rows, magnitude_, cos_sin);
}

Status RopeTables::FillTurns(const Context& ctx, const DecoderRows& rows, const int32_t* turns, float* cos_sin) {
  return FillRows(ctx, rows, turns, rows.decode_rows, 1.0f, cos_sin);  // the queries have the magnitude already
}

Status RopeTables::FillRows(const Context& ctx, const DecoderRows& rows, const int32_t* positions, int count,
                            float magnitude, float* cos_sin) {
  const size_t bytes = inv_freq_.size() * sizeof(float);
  bool copied = device_inv_freq_.size() == bytes;
  if (!copied) {
    ASSIGN_OR_RETURN(device_inv_freq_, Buffer::Create(bytes, ctx.device));
  }
  for (int begin = 0; begin < count;) {
    const int64_t length = FrequencyLength(rows.rope_len[begin]);
    int end = begin + 1;
    while (end < count && FrequencyLength(rows.rope_len[end]) == length) ++end;
    if (length != cached_length_) {
      inv_freq_ = RopeInverseFrequencies(config_, length);
      cached_length_ = length;
      copied = false;
    }
    if (!copied) {
      RETURN_IF_ERROR(CopyToDevice(ctx.device, device_inv_freq_.data(), inv_freq_.data(), bytes, ctx.stream));
      copied = true;
    }
    RopeTable(ctx, positions + begin, end - begin, reinterpret_cast<const float*>(device_inv_freq_.data()), half_,
              magnitude, cos_sin + int64_t{begin} * 2 * half_);
    begin = end;
  }
  return OkStatus();
}

}  // namespace quire
