// Any text as a config.json and, behind a NUL, a generation_config.json: a status, or a config whose numbers can be
// used.
#include <string_view>

#include "core/base/check.h"
#include "core/model/families.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const auto config = quire::ParseModelConfig(text.substr(0, cut), cut == text.npos ? "" : text.substr(cut + 1));
  if (!config.ok()) return 0;
  CHECK_EQ(config->window.size(), static_cast<size_t>(config->layers));
  CHECK_EQ(config->q_heads % config->kv_heads, 0);
  CHECK(config->attention_scale() > 0);
  for (const int64_t length : {int64_t{1}, config->max_position, config->max_position * 2}) {
    const auto frequencies = quire::RopeInverseFrequencies(config->rope, length);
    CHECK_EQ(frequencies.size(), static_cast<size_t>(config->head_dim / 2));
  }
  return 0;
}
