// libFuzzer: bytes are a tokenizer.json, or, behind a first byte of 1, a chat template. A tokenizer that loads
// encodes and decodes a short text. Nothing may crash, hang or leak; statuses are fine.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/check.h"
#include "core/io/chat_template_text.h"
#include "core/io/tokenizer.h"
#include "core/io/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (!bytes.empty() && bytes[0] == 1) {
    const auto canonical = quire::CanonicalizeTemplate(bytes.substr(1));
    if (canonical.ok()) {
      for (const std::string& block : canonical->blocks) (void)quire::TermsOf(block);
    }
    return 0;
  }
  const auto tokenizer = quire::LoadTokenizerFromJson(bytes);
  if (!tokenizer.ok()) return 0;
  const quire::Tokenizer& t = **tokenizer;
  const auto ids = t.Encode("ab <x>the  caf\u00e9 e\u0301 12'll\n\n\u4e2d <eos>", {});
  if (!ids.ok()) return 0;
  quire::StreamDecoder stream(&t, false);
  std::string streamed;
  for (int32_t id : *ids) {
    CHECK(id >= 0 && id < t.vocab_size());
    streamed += stream.Push(id);
  }
  streamed += stream.Finish();
  CHECK_EQ(streamed, t.Decode(*ids, false));
  return 0;
}
