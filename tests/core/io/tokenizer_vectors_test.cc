// Real tokenizers against ids that other implementations made: the 47 vectors of llama.cpp, and golden lists
// from Hugging Face's tokenizers and from SentencePiece (tests/core/io/golden/make_goldens.py).
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/core/io/tokenizer_test_util.h"

namespace quire {
namespace {

using Json = nlohmann::json;

struct Vector {
  std::string text;
  std::vector<int32_t> ids;
};

// name.inp: texts between lines "__ggml_vocab_test__"; name.out: a line of ids for each.
std::vector<Vector> ReadVectors(const std::string& name) {
  std::ifstream inp(SharedData("tokenizers/vectors/" + name + ".inp"), std::ios::binary);
  std::ifstream out(SharedData("tokenizers/vectors/" + name + ".out"));
  const std::string all((std::istreambuf_iterator<char>(inp)), {});
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::vector<Vector> vectors;
  for (size_t begin = 0; begin <= all.size();) {
    const size_t end = std::min(all.find(separator, begin), all.size());
    Vector vector{all.substr(begin, end - begin), {}};
    std::string line;
    std::getline(out, line);
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) vector.ids.push_back(id);
    vectors.push_back(std::move(vector));
    begin = end + separator.size();
  }
  return vectors;
}

void ExpectVectors(const std::string& name, const std::string& tokenizer_path) {
  const auto tokenizer = Load(tokenizer_path);
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<Vector> vectors = ReadVectors(name);
  ASSERT_EQ(vectors.size(), 47u);
  for (const Vector& vector : vectors) {
    EXPECT_EQ(Ids(*tokenizer, vector.text, {.add_special_tokens = false}), vector.ids) << vector.text;
    EXPECT_EQ(tokenizer->Decode(vector.ids, false), vector.text);
  }
}

TEST(TokenizerVectors, Qwen2FromTokenizerJson) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/qwen3/tokenizer.json"));
  ExpectVectors("qwen2", SharedData("tokenizers/qwen3/tokenizer.json"));
}

TEST(TokenizerVectors, Gpt2FromVocabAndMerges) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/gpt2/vocab.json"));
  ExpectVectors("gpt-2", SharedData("tokenizers/gpt2"));
}

TEST(TokenizerVectors, Gpt2FromGguf) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/gpt2/ggml-vocab-gpt-2.gguf"));
  ExpectVectors("gpt-2", SharedData("tokenizers/gpt2/ggml-vocab-gpt-2.gguf"));
}

// {"options": {…}, "cases": [{"text", "ids"[, "special_ids"][, "decoded"]}]}
void ExpectGolden(const std::string& golden, const std::string& tokenizer_path, size_t at_least) {
  const auto tokenizer = Load(tokenizer_path);
  ASSERT_NE(tokenizer, nullptr);
  auto text = ReadTextFile(GoldenFile(golden));
  ASSERT_TRUE(text.ok()) << text.status().ToString();
  const Json json = Json::parse(*text);
  ASSERT_GE(json["cases"].size(), at_least);
  for (const Json& entry : json["cases"]) {
    const auto input = entry["text"].get<std::string>();
    const auto ids = entry["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(Ids(*tokenizer, input, {.add_special_tokens = false}), ids) << input;
    if (entry.contains("plain_ids")) {
      EXPECT_EQ(Ids(*tokenizer, input, {.add_special_tokens = false, .parse_special_tokens = false}),
                entry["plain_ids"].get<std::vector<int32_t>>())
          << input;
    }
    if (entry.contains("decoded")) {
      EXPECT_EQ(tokenizer->Decode(ids, false), entry["decoded"].get<std::string>());
    }
    if (entry.contains("decoded_skip")) {
      EXPECT_EQ(tokenizer->Decode(ids, true), entry["decoded_skip"].get<std::string>());
    }
  }
}

TEST(TokenizerGolden, MinimindAgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/minimind/tokenizer.json"));
  ExpectGolden("minimind.json", SharedData("tokenizers/minimind/tokenizer.json"), 200);
}

TEST(TokenizerGolden, Qwen3AgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/qwen3/tokenizer.json"));
  ExpectGolden("qwen3.json", SharedData("tokenizers/qwen3"), 200);
}

TEST(TokenizerGolden, StoriesAgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(ModelFolder("stories260K"));
  ExpectGolden("stories260K.json", ModelFolder("stories260K"), 200);
}

TEST(TokenizerGolden, RetrieverAgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(ModelFolder("retriever-2m"));
  ExpectGolden("retriever-2m.json", ModelFolder("retriever-2m"), 200);
}

TEST(TokenizerGolden, GemmasFormAgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(ModelFolder("gemma-tokenizer"));
  ExpectGolden("gemma.json", ModelFolder("gemma-tokenizer"), 200);
  const auto tokenizer = Load(ModelFolder("gemma-tokenizer"));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Ids(*tokenizer, "a", {}).front(), 2);  // <bos>
}

TEST(TokenizerGolden, MistralV1AgreesWithSentencePiece) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/mistral/tokenizer.model.v1"));
  ExpectGolden("mistral_v1.json", SharedData("tokenizers/mistral/tokenizer.model.v1"), 200);
}

TEST(TokenizerGolden, MistralV3AgreesWithSentencePiece) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3"));
  ExpectGolden("mistral_v3.json", SharedData("tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3"), 200);
}

TEST(SmolLM2TokenizerGolden, SmolLm2AgreesWithHuggingFace) {
  QUIRE_SKIP_UNLESS_EXISTS(SmolLm2Path());
  ExpectGolden("smollm2.json", SmolLm2Path(), 200);
}

}  // namespace
}  // namespace quire
