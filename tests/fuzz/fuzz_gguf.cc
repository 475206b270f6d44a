// Any bytes as a GGUF file: a status, or metadata that make a config and a tokenizer (or don't) and tensors that can be read.
#include <utility>

#include "core/io/gguf.h"
#include "core/io/gguf_vocab.h"
#include "core/io/gguf_weights.h"
#include "core/model/family.h"
#include "tests/fuzz/read_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto file = quire::GgufFile::Parse({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  if (!file.ok()) return 0;
  auto config = quire::ConfigFromGguf(*file);
  if (config.ok()) (void)quire::RopeInverseFrequencies(config->rope, config->max_position);
  if (auto vocab = quire::ReadGgufVocab(*file); vocab.ok()) {
    auto tokenizer = quire::MakeGgufTokenizer(std::move(*vocab));
    if (tokenizer.ok()) (void)(*tokenizer)->Encode("Two words, a <s> and 12 digits\n", {});
  }
  auto weights = quire::MakeGgufWeights(std::move(*file));
  if (weights.ok()) quire::ReadTensors(**weights);
  return 0;
}
