// What every tokenizer promises: texts come back, streams equal whole decodes, side files are read, long texts are
// fast, and bad input gives a status.
#include <chrono>
#include <fstream>
#include <thread>

#include "core/io/gguf_vocab_tokenizer.h"
#include "core/io/sentencepiece_tokenizer.h"
#include "core/io/tokenizer_json.h"
#include "core/io/unicode.h"
#include "tests/core/io/tokenizer_test_util.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

// Byte-level over all bytes, a few merges, two added tokens.
std::string SmallJson() {
  return R"({"added_tokens": [{"id": 300, "content": "<eos>", "special": true}, {"id": 301, "content": "<x>"}],
 "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
 "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<eos>"}},
   {"Sequence": {"id": "A"}}],
   "special_tokens": {"<eos>": {"id": "<eos>", "ids": [300], "tokens": ["<eos>"]}}},
 "decoder": {"type": "ByteLevel"},
 "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "Ã": 5, "©": 6},
   "merges": ["a b", "Ġ ab"]}})";
}

// A llama vocabulary by scores: all byte tokens, a few pieces.
GgufVocab SmallLlama() {
  GgufVocab vocab;
  vocab.model = "llama";
  const auto add = [&](std::string token, float score, GgufTokenType type) {
    vocab.tokens.push_back(std::move(token));
    vocab.scores.push_back(score);
    vocab.types.push_back(static_cast<int32_t>(type));
  };
  add("<unk>", 0, GgufTokenType::kUnknown);
  add("<s>", 0, GgufTokenType::kControl);
  add("</s>", 0, GgufTokenType::kControl);
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", b);
    add(name, 0, GgufTokenType::kByte);
  }
  float score = -1;
  for (const char* piece : {"he", "ll", "hell", "▁hell", "o", "▁", "h", "e", "l"})
    add(piece, score--, GgufTokenType::kNormal);
  vocab.bos_id = 1;
  vocab.eos_id = 2;
  vocab.unk_id = 0;
  return vocab;
}

std::vector<std::string> AvailableTokenizers() {
  std::vector<std::string> paths;
  for (const std::string& path :
       {ModelFolder("retriever-2m"), ModelFolder("stories260K"), SharedData("tokenizers/minimind/tokenizer.json"),
        SharedData("tokenizers/gpt2/ggml-vocab-gpt-2.gguf"), SharedData("tokenizers/mistral/tokenizer.model.v1")}) {
    if (std::filesystem::exists(path)) paths.push_back(path);
  }
  return paths;
}

TEST(Tokenizer, SmallTokenizerEncodesAndDecodes) {
  auto tokenizer = LoadTokenizerFromJson(SmallJson());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(Ids(t, "ab ab"), (std::vector<int32_t>{300, 2, 4}));
  EXPECT_EQ(Ids(t, "ab<eos><x>é", {.add_special_tokens = false}), (std::vector<int32_t>{2, 300, 301, 5, 6}));
  EXPECT_EQ(Ids(t, "a<x>", {.add_special_tokens = false, .parse_special_tokens = false}),
            (std::vector<int32_t>{0, 301}));
  EXPECT_EQ(t.Decode(std::vector<int32_t>{300, 2, 4, 5, 6, 301, 999, -1}, true), "ab abé<x>");
  EXPECT_EQ(t.Decode(std::vector<int32_t>{300, 5}, false), "<eos>\uFFFD");
  EXPECT_EQ(t.TokenBytes(5, false), "\xC3");
  EXPECT_EQ(t.vocab_size(), 302);
  EXPECT_EQ(t.IdToToken(4), "Ġab");
  EXPECT_EQ(t.IdToToken(100), "");
  EXPECT_EQ(t.TokenToId("<x>"), 301);
  EXPECT_TRUE(t.IsSpecial(300));
  EXPECT_FALSE(t.IsSpecial(301));
  const auto bad = t.Encode("ab\xFFz", {});
  EXPECT_EQ(bad.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(bad.status().message().find("byte 2"), std::string::npos);
}

TEST(Tokenizer, LlamaVocabularyOfAGguf) {
  auto tokenizer = MakeGgufTokenizer(SmallLlama());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const Tokenizer& t = **tokenizer;
  const int32_t hell = *t.TokenToId("▁hell"), o = *t.TokenToId("o");
  EXPECT_EQ(Ids(t, "hello"), (std::vector<int32_t>{1, hell, o}));
  EXPECT_EQ(Ids(t, "hello\n"), (std::vector<int32_t>{1, hell, o, 3 + '\n'}));
  EXPECT_EQ(Ids(t, "<s>hello</s>", {.add_special_tokens = false}), (std::vector<int32_t>{1, hell, o, 2}));
  EXPECT_EQ(t.Decode(Ids(t, "hello é"), true), "hello é");
  EXPECT_EQ(t.eos_ids(), std::vector<int32_t>{2});
  EXPECT_EQ(t.bos_id(), 1);
  // "<0x0A>" in a text is six characters, not a newline.
  EXPECT_EQ(t.Decode(Ids(t, "<0x0A>"), true), "<0x0A>");
}

TEST(Tokenizer, GgufThatCantBeRunIsRefusedByName) {
  const auto message = [](auto change) {
    GgufVocab vocab = SmallLlama();
    change(&vocab);
    auto tokenizer = MakeGgufTokenizer(std::move(vocab));
    EXPECT_FALSE(tokenizer.ok());
    return tokenizer.status().message();
  };
  EXPECT_NE(message([](GgufVocab* v) { v->model = "t5"; }).find("t5"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->model = "gpt2", v->pre = "viking"; }).find("viking"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->scores.pop_back(); }).find("scores"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->scores.clear(); }).find("scores"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->eos_id = 100000; }).find("eos_token_id"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->tokens[5] = "\xFF"; }).find("UTF-8"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->bos_id.reset(), v->add_bos = true; }).find("bos"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->model = "gpt2", v->merges = {"ab"}; }).find("no space"), std::string::npos);
  EXPECT_NE(message([](GgufVocab* v) { v->tokens.clear(); }).find("empty"), std::string::npos);
}

TEST(Tokenizer, EveryPreNameCompiles) {
  for (const char* pre :
       {"default", "gpt-2", "llama-bpe", "llama3", "qwen2", "smollm", "tekken", "gpt-4o", "deepseek-v3", "falcon"}) {
    PipelineSpec spec;
    EXPECT_TRUE(MakePreTokenizer(pre, &spec).ok()) << pre;
    auto words = ApplyPreTokenizer(spec.pre_tokenizer, "Hello world's 12345 …中文\n", true);
    EXPECT_TRUE(words.ok()) << pre;
  }
}

std::vector<std::string> PreWords(const char* pre, const std::string& text) {
  PipelineSpec spec;
  EXPECT_TRUE(MakePreTokenizer(pre, &spec).ok());
  auto words = ApplyPreTokenizer(spec.pre_tokenizer, text, true);
  std::vector<std::string> out;
  for (const auto& range : words->ranges) out.push_back(words->text.substr(range.begin, range.end - range.begin));
  return out;
}

TEST(Tokenizer, PreNamesDifferWhereTheirModelsDo) {
  using Strings = std::vector<std::string>;
  EXPECT_EQ(PreWords("llama-bpe", "I'M 12345"), (Strings{"I", "'M", "Ġ", "123", "45"}));
  EXPECT_EQ(PreWords("qwen2", "12a"), (Strings{"1", "2", "a"}));
  EXPECT_EQ(PreWords("gpt-2", "I'M 12345"), (Strings{"I", "'", "M", "Ġ12345"}));
  EXPECT_EQ(PreWords("smollm", "a 12"), (Strings{"a", "Ġ", "1", "2"}));
  EXPECT_EQ(PreWords("tekken", "helloWorld 12"), (Strings{"hello", "World", "Ġ", "1", "2"}));
  EXPECT_EQ(PreWords("gpt-4o", "HelloWorld's 1234"), (Strings{"Hello", "World's", "Ġ", "123", "4"}));
}

TEST(Tokenizer, RandomTextsComeBack) {
  const auto paths = AvailableTokenizers();
  if (paths.empty()) GTEST_SKIP() << "no tokenizer is there";
  for (const std::string& path : paths) {
    const auto tokenizer = Load(path);
    ASSERT_NE(tokenizer, nullptr);
    std::mt19937_64 random(3);
    const bool sentencepiece = path.find(".model") != std::string::npos || path.find("stories") != std::string::npos;
    for (int i = 0; i < 300; ++i) {
      std::string text = RandomText(random, 1 + static_cast<int>(random() % 40));
      // "▁" is a space, control pieces are cut out, and NUL is dropped by SentencePiece's normalizer.
      if (sentencepiece) {
        for (const char* part : {"▁", "<s>", "<0x0A>"}) {
          for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, std::string(part).size());
        }
        std::erase(text, '\0');
      }
      const auto ids = Ids(*tokenizer, text, {.add_special_tokens = false, .parse_special_tokens = false});
      ASSERT_EQ(tokenizer->Decode(ids, false), text) << path << " text " << i << " of seed 3";
    }
  }
}

TEST(Tokenizer, StreamsEqualWholeDecodes) {
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (const std::string& path : AvailableTokenizers()) tokenizers.push_back(Load(path));
  tokenizers.push_back(std::move(LoadTokenizerFromJson(SmallJson())).value());
  tokenizers.push_back(std::move(MakeGgufTokenizer(SmallLlama())).value());
  for (const auto& tokenizer : tokenizers) {
    ASSERT_NE(tokenizer, nullptr);
    std::mt19937_64 random(5);
    for (int round = 0; round < 400; ++round) {
      const bool skip = round % 2 == 0;
      std::vector<int32_t> ids;
      // Low ids are the byte tokens of most vocabularies: many ill-formed sequences.
      const int range = round % 4 < 2 ? std::min(300, tokenizer->vocab_size()) : tokenizer->vocab_size();
      for (size_t n = random() % 30; n > 0; --n) ids.push_back(static_cast<int32_t>(random() % (range + 2)) - 1);
      StreamDecoder stream(tokenizer.get(), skip);
      std::string streamed;
      for (int32_t id : ids) {
        const std::string piece = stream.Push(id);
        ASSERT_EQ(FindInvalidUtf8(piece), std::string_view::npos);
        streamed += piece;
      }
      streamed += stream.Finish();
      ASSERT_EQ(streamed, tokenizer->Decode(ids, skip)) << "round " << round << " of seed 5";
    }
  }
}

TEST(Tokenizer, IsThreadSafe) {
  const auto tokenizer = std::move(LoadTokenizerFromJson(SmallJson())).value();
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "ab é ";
  const auto wanted = Ids(*tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 5; ++n) equal[i] += *tokenizer->Encode(text, {}) == wanted;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(equal, (std::vector<int>{5, 5, 5, 5}));
}

// Seconds that encoding takes.
double Seconds(const Tokenizer& tokenizer, const std::string& text) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(tokenizer.Encode(text, {}).ok());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

TEST(Tokenizer, LongTextsAndLongWordsTakeNearLinearTime) {
  const auto paths = AvailableTokenizers();
  if (paths.empty()) GTEST_SKIP() << "no tokenizer is there";
  std::string prose, letters, spaces;
  std::mt19937_64 random(9);
  while (prose.size() < (1 << 20)) {
    for (size_t n = 1 + random() % 9; n > 0; --n) prose += static_cast<char>('a' + random() % 26);
    prose += ' ';
  }
  for (int i = 0; i < 100000; ++i) letters += static_cast<char>('a' + random() % 26);
  spaces.assign(100000, ' ');
  for (const std::string& path : paths) {
    // SentencePiece is the library's own time.
    if (path.find(".model") != std::string::npos) continue;
    const auto tokenizer = Load(path);
    // Generous for busy machines: a quadratic loop would take minutes.
    EXPECT_LT(Seconds(*tokenizer, prose), 10 * kSlowness) << path;
    EXPECT_LT(Seconds(*tokenizer, letters), 5 * kSlowness) << path;
    EXPECT_LT(Seconds(*tokenizer, spaces), 5 * kSlowness) << path;
    RecordProperty("prose_seconds", std::to_string(Seconds(*tokenizer, prose)));
  }
}

// A folder that goes away with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "quire_tokenizer_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(LoadTokenizer, SideFilesGiveBosEosAndTemplate) {
  TemporaryFolder folder;
  folder.Write("tokenizer.json", SmallJson());
  folder.Write("tokenizer_config.json", R"({"bos_token": {"content": "<x>"}, "eos_token": "<eos>",
    "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]})");
  folder.Write("generation_config.json", R"({"eos_token_id": [2, 300, 7000]})");
  folder.Write("config.json", R"({"eos_token_id": 4, "bos_token_id": 1})");
  auto tokenizer = Load(folder.path());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->bos_id(), 301);
  EXPECT_EQ(tokenizer->eos_ids(), (std::vector<int32_t>{300, 2, 4}));
  EXPECT_EQ(tokenizer->chat_template(), "D");
  folder.Write("chat_template.jinja", "J");
  EXPECT_EQ(Load(folder.path())->chat_template(), "J");
  EXPECT_EQ(Load(folder.path() + "/tokenizer.json")->chat_template(), "J");
}

TEST(LoadTokenizer, WhatIsMissingOrBrokenIsSaid) {
  const auto code = [](const std::string& path) { return LoadTokenizer(path).status().code(); };
  TemporaryFolder folder;
  EXPECT_EQ(code("/does/not/exist"), StatusCode::kNotFound);
  EXPECT_EQ(code(folder.path()), StatusCode::kNotFound);
  folder.Write("a.txt", "x");
  EXPECT_EQ(code(folder.path() + "/a.txt"), StatusCode::kInvalidArgument);
  folder.Write("a.gguf", "GGUFxxxx");
  EXPECT_FALSE(LoadTokenizer(folder.path() + "/a.gguf").ok());
  folder.Write("tokenizer.model", "this is no model");
  EXPECT_EQ(code(folder.path()), StatusCode::kInvalidArgument);
  folder.Write("tokenizer.json", "{");
  EXPECT_EQ(code(folder.path()), StatusCode::kInvalidArgument);
  folder.Write("tokenizer.json", SmallJson());
  folder.Write("tokenizer_config.json", "[]");
  EXPECT_EQ(code(folder.path()), StatusCode::kInvalidArgument);
  folder.Write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_EQ(code(folder.path()), StatusCode::kInvalidArgument);
}

TEST(LoadTokenizer, DamagedSentencePieceModelsGiveAStatus) {
  const std::string path = SharedData("tokenizers/mistral/tokenizer.model.v1");
  QUIRE_SKIP_UNLESS_EXISTS(path);
  auto model = ReadTextFile(path);
  ASSERT_TRUE(model.ok());
  EXPECT_FALSE(MakeSentencePieceTokenizer(model->substr(0, model->size() / 2), {}).ok());
  EXPECT_FALSE(MakeSentencePieceTokenizer("", {}).ok());
  EXPECT_FALSE(MakeSentencePieceTokenizer(std::string(1000, '\xFF'), {}).ok());
}

// The small tokenizer with one part replaced.
Status StatusWith(const std::string& from, const std::string& to) {
  std::string json = SmallJson();
  const size_t at = json.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  json.replace(at, from.size(), to);
  return LoadTokenizerFromJson(json).status();
}

TEST(LoadTokenizer, WhatTokenizerJsonAsksForInVainIsNamed) {
  const auto expect = [](const std::string& from, const std::string& to, const std::string& said) {
    const Status status = StatusWith(from, to);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << to;
    EXPECT_NE(status.message().find(said), std::string::npos) << status.ToString();
  };
  expect(R"("type": "BPE")", R"("type": "Unigram")", "Unigram");
  expect(R"("type": "BPE")", R"("type": "BPE", "dropout": 0.1)", "dropout");
  expect(R"("type": "BPE")", R"("type": "BPE", "end_of_word_suffix": "</w>")", "end_of_word_suffix");
  expect(R"("type": "BPE")", R"("type": "BPE", "unk_token": "nope")", "nope");
  expect(R"("type": "BPE")", R"("type": "BPE", "fuse_unk": 3)", "fuse_unk");
  expect(R"("normalizer": null)", R"("normalizer": {"type": "Precompiled"})", "Precompiled");
  expect(R"("normalizer": null)", R"("normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""})",
         "regular expression");
  expect(R"("type": "ByteLevel", "add_prefix_space": false)", R"("type": "UnicodeScripts")", "UnicodeScripts");
  expect(R"("type": "ByteLevel", "add_prefix_space": false)",
         R"("type": "Split", "pattern": {"String": "a"}, "behavior": "X")", "\"X\"");
  expect(R"("type": "TemplateProcessing")", R"("type": "Odd")", "Odd");
  expect(R"("ids": [300])", R"("ids": [-4])", "token id");
  expect(R"("ids": [300])", R"("ids": [900000000])", "900000000");
  expect(R"("decoder": {"type": "ByteLevel"})", R"("decoder": {"type": "CTC"})", "CTC");
  expect(R"("decoder": {"type": "ByteLevel"})", R"("decoder": null)", "no decoder");
  expect(R"("a": 0)", R"("a": -1)", "\"a\"");
  expect(R"("a": 0)", R"("a": 2000000000000)", "\"a\"");
  expect(R"("a": 0)", R"("a": 1000000000)", "1000000000");
  expect(R"("a b")", R"("a b c")", "merge 0");
  expect(R"("a b")", R"("a z")", "\"z\"");
  expect(R"("id": 301)", R"("id": "x")", "<x>");
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested += R"({"type": "Sequence", "normalizers": [)";
  for (int i = 0; i < 1000; ++i) nested += "]}";
  expect("\"normalizer\": null", "\"normalizer\": " + nested, "nested");
}

TEST(LoadTokenizer, DamagedJsonNeverCrashes) {
  const std::string json = SmallJson();
  std::mt19937_64 random(13);
  for (size_t cut = 0; cut < json.size(); ++cut) EXPECT_FALSE(LoadTokenizerFromJson(json.substr(0, cut)).ok());
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = json;
    for (size_t n = 1 + random() % 3; n > 0; --n) damaged[random() % damaged.size()] = static_cast<char>(random());
    const auto tokenizer = LoadTokenizerFromJson(damaged);
    if (tokenizer.ok()) (void)(*tokenizer)->Encode("ab <x> é", {});
  }
}

}  // namespace
}  // namespace quire
