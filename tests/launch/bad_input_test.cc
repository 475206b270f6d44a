// Bad input of every kind: a sentence on stderr, an exit code that isn't 0, no signal.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/launch/program.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// One line of at least a few words, exit code 1 or 2, and `about` somewhere in it.
void ExpectRefused(const Strings& arguments, const std::string& about) {
  const ProgramResult result = RunQuire(arguments);
  std::string command;
  for (const std::string& argument : arguments) command += argument + " ";
  EXPECT_EQ(result.signal, 0) << command << result.err;
  EXPECT_TRUE(result.exit_code == 1 || result.exit_code == 2) << command << result.exit_code << result.err;
  EXPECT_NE(result.err.find("quire: error: "), std::string::npos) << command << result.err;
  EXPECT_GT(result.err.size(), 30u) << command << result.err;
  EXPECT_NE(result.err.find(about), std::string::npos) << command << result.err;
  EXPECT_EQ(result.out, "") << command;
}

// A copy of a committed model whose files a test may spoil.
class SpoiltModel : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}) {
      scratch_.Write(std::string("m/") + name, ReadAll(DataPath(std::string("stories260K/") + name)));
    }
    ids_ = scratch_.Write("ids.json", "[1]");
  }
  std::string Model() const { return scratch_.Path("m"); }
  std::string File(const std::string& name) const { return Model() + "/" + name; }
  void Spoil(const std::string& name, const std::string& bytes) { scratch_.Write("m/" + name, bytes); }
  void ExpectLoadRefused(const std::string& about) {
    ExpectRefused({"generate", "--model", Model(), "--token-ids-file", ids_, "--max-tokens", "2"}, about);
  }
  ScratchFolder scratch_;
  std::string ids_;
};

TEST_F(SpoiltModel, TheCopyItselfWorks) {
  EXPECT_EQ(RunQuire({"generate", "--model", Model(), "--token-ids-file", ids_, "--max-tokens", "2"}).exit_code, 0);
}

TEST_F(SpoiltModel, TruncatedWeights) {
  const std::string whole = ReadAll(File("model.safetensors"));
  for (const size_t length : {size_t{0}, size_t{5}, size_t{8}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    Spoil("model.safetensors", whole.substr(0, length));
    ExpectLoadRefused("model.safetensors");
  }
}

TEST_F(SpoiltModel, AHeaderLongerThanTheFile) {
  std::string bytes = ReadAll(File("model.safetensors"));
  bytes[6] = 0x7f;  // the eight bytes of the header's length
  Spoil("model.safetensors", bytes);
  ExpectLoadRefused("model.safetensors");
}

TEST_F(SpoiltModel, OverlappingTensors) {
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  Spoil("model.safetensors", bytes + header + std::string(24, '\0'));
  ExpectLoadRefused("model.safetensors");
}

TEST_F(SpoiltModel, ShapesThatDoNotMatchTheConfig) {
  std::string config = ReadAll(File("config.json"));
  config.replace(config.find("\"intermediate_size\": 172"), 24, "\"intermediate_size\": 176");
  Spoil("config.json", config);
  ExpectLoadRefused("mlp");
}

TEST_F(SpoiltModel, MissingShards) {
  fs::remove(File("model.safetensors"));
  Spoil("model.safetensors.index.json",
        R"({"metadata":{},"weight_map":{"model.embed_tokens.weight":"model-00001-of-00002.safetensors"}})");
  ExpectLoadRefused("model-00001-of-00002.safetensors");
  fs::remove(File("model.safetensors.index.json"));
  ExpectLoadRefused("model.safetensors");
}

TEST_F(SpoiltModel, InvalidJson) {
  for (const char* name : {"config.json", "tokenizer.json"}) {
    const std::string good = ReadAll(File(name));
    for (const std::string& bad :
         {good.substr(0, good.size() / 2), std::string("{\"a\": "), std::string("[]"), std::string("\xff\xfe")}) {
      Spoil(name, bad);
      ExpectLoadRefused(name);
    }
    Spoil(name, good);
  }
}

TEST_F(SpoiltModel, ConfigsOutOfRange) {
  const std::string good = ReadAll(File("config.json"));
  for (const auto& [from, to, about] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"\"num_hidden_layers\": 5", "\"num_hidden_layers\": -5", "num_hidden_layers"},
           {"\"num_hidden_layers\": 5", "\"num_hidden_layers\": 1000000000", "layers"},
           {"\"hidden_size\": 64", "\"hidden_size\": 0", "hidden_size"},
           {"\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3", "heads"},
           {"\"vocab_size\": 512", "\"vocab_size\": \"many\"", "vocab_size"},
           {"LlamaForCausalLM", "NoSuchForCausalLM", "NoSuchForCausalLM"}}) {
    std::string config = good;
    ASSERT_NE(config.find(from), std::string::npos) << from;
    config.replace(config.find(from), from.size(), to);
    Spoil("config.json", config);
    ExpectLoadRefused(about);
  }
}

TEST(BadInput, NoSuchModel) {
  ExpectRefused({"generate", "--model", "/no/such/model", "--prompt", "a"}, "/no/such/model");
  ExpectRefused({"info", "--model", "/no/such/model.gguf"}, "/no/such/model.gguf");
  ExpectRefused({"tokenize", "--model", "/no/such/model", "--text-file", "/dev/null"}, "/no/such/model");
}

TEST(BadInput, SpoiltGguf) {
  const ScratchFolder scratch;
  const std::string magic("GGUF\3\0\0\0", 8);
  for (const std::string& bytes :
       {std::string("GGU"), magic, std::string("GGUF\2\0\0\0", 8) + std::string(16, '\0'),
        magic + std::string(16, '\xff'),  // 2^64 − 1 tensors and keys
        magic + std::string("\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 16), std::string(4096, '\0')}) {
    ExpectRefused({"generate", "--model", scratch.Write("m.gguf", bytes), "--prompt", "a"}, "m.gguf");
  }
}

class BadPrompt : public testing::Test {
 protected:
  Strings Generate(Strings more) const {
    Strings all = {"generate", "--model", DataPath("stories260K"), "--max-tokens", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  ScratchFolder scratch_;
};

TEST_F(BadPrompt, InvalidUtf8) {
  for (const char* text : {"abc\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\x80"}) {
    ExpectRefused(Generate({"--prompt-file", scratch_.Write("p", text)}), "UTF-8");
    ExpectRefused(Generate({"--prompt", text}), "UTF-8");
  }
  ExpectRefused({"tokenize", "--model", DataPath("stories260K"), "--text-file", scratch_.Write("t", "ab\xffz")},
                "byte 2");
}

TEST_F(BadPrompt, EmptyOrNoneOrTwo) {
  ExpectRefused(Generate({"--prompt", ""}), "empty");
  ExpectRefused(Generate({"--prompt-file", scratch_.Write("p", "")}), "empty");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[]")}), "no token ids");
  ExpectRefused(Generate({}), "--prompt");
  ExpectRefused(Generate({"--prompt", "a", "--prompt-file", scratch_.Write("p", "b")}), "exactly one");
  ExpectRefused(Generate({"--prompt-file", scratch_.Path("absent")}), "absent");
}

TEST_F(BadPrompt, LongerThanTheContext) {
  std::string ids = "[1";
  for (int i = 0; i < 600; ++i) ids += ",5";
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", ids + "]")}), "601");
  ExpectRefused({"score", "--model", DataPath("stories260K"), "--token-ids-file", scratch_.Write("i", ids + "]")},
                "601");
}

TEST_F(BadPrompt, TokenIds) {
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[1, 512]")}), "512");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[1, -1]")}), "-1");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[1, 99999999999]")}), "99999999999");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[1, 2.5]")}), "2.5");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "{\"a\": 1}")}), "array");
  ExpectRefused(Generate({"--token-ids-file", scratch_.Write("i", "[1, ")}), "JSON");
  ExpectRefused({"score", "--model", DataPath("stories260K"), "--token-ids-file", scratch_.Write("i", "[1, 512]")},
                "512");
}

TEST_F(BadPrompt, ListsOfTexts) {
  const auto refused = [&](const std::string& list, const std::string& about) {
    ExpectRefused({"score", "--model", DataPath("stories260K"), "--list-file", scratch_.Write("list", list)}, about);
  };
  refused("[\"a\", 3]", "text 1 is a JSON number");
  refused("[\"a\", \"\"]", "text 1 is empty");
  refused("[[1], [1, -2]]", "text 1: entry 1 is -2");
  refused("[]", "no texts");
  refused("{}", "object");
  refused("[\"a\"", "JSON");
  refused("[[1, 2], [1, 512]]", "text 1");
  const std::string ids = scratch_.Write("ids", "[1]");
  ExpectRefused({"score", "--model", DataPath("stories260K")}, "--list-file");
  ExpectRefused({"score", "--token-ids-file", ids}, "--model or --address");
  ExpectRefused({"score", "--token-ids-file", ids, "--address", "nowhere"}, "HOST:PORT");
  ExpectRefused({"score", "--token-ids-file", ids, "--address", "127.0.0.1:1", "--connect-timeout", "0.2"}, "127.0.0.1:1");
}

TEST_F(BadPrompt, ParametersOutOfRange) {
  const Strings prompt = {"--prompt", "Once"};
  for (const auto& [bad, about] : std::vector<std::pair<Strings, std::string>>{
           {{"--page-size", "0"}, "page-size is 0"},
           {{"--page-size", "-3"}, "page-size is -3"},
           {{"--attention", "quest", "--token-budget", "0"}, "--token-budget is 0"},
           {{"--attention", "quest:token_budget=-5"}, "token_budget=-5"},
           {{"--attention", "quest:token_budget=many"}, "token_budget=many"},
           {{"--attention", "nosuch"}, "unknown attention policy 'nosuch'"},
           {{"--evict"}, "'dense' can't evict"},
           {{"--attention", "quest", "--evict"}, "'quest' can't evict"},
           {{"--attention", "streaming", "--token-budget", "2048", "--evict"}, "the context has 512"},
           {{"--attention", "h2o", "--token-budget", "64", "--dense-layers", "2", "--evict"}, "dense_layers=2"},
           {{"--attention", "quest:token_budget=16"}, "give at least 48"},
           {{"--attention", ""}, "no policy name"},
           {{"--temperature", "-1"}, "temperature is -1"},
           {{"--top-p", "0"}, "top_p is 0"},
           {{"--top-p", "1.5"}, "top_p is 1.5"},
           {{"--min-p", "2"}, "min_p is 2"},
           {{"--n", "0"}, "--n is 0"},
           {{"--repetition-penalty", "0"}, "repetition_penalty is 0"},
           {{"--logit-bias", "1=x"}, "ID=BIAS"},
           {{"--logit-bias", "512=1"}, "token id 512"},
           {{"--dtype", "int3"}, "dtype 'int3'"},
           {{"--kv-cache-dtype", "float8"}, "dtype 'float8'"},
           {{"--threads", "-1"}, "--threads is -1"},
           {{"--max-model-len", "-1"}, "--max-model-len is -1"},
           {{"--load-format", "magic"}, "magic"},
           {{"--kv-cache-memory-bytes", "lots"}, "lots"},
           {{"--format", "xml"}, "xml"},
           {{"--chat"}, "no chat template"},
           {{"--seed", "-1"}, "at least 0"},
           {{"--stop", ""}, "stop string is empty"}}) {
    Strings all = prompt;
    all.insert(all.end(), bad.begin(), bad.end());
    ExpectRefused(Generate(all), about);
  }
  for (const char* bad : {"0", "-1"}) {  // which Generate gives already
    ExpectRefused({"generate", "--model", DataPath("stories260K"), "--prompt", "Once", "--max-tokens", bad},
                  std::string("max_tokens is ") + bad);
  }
}

TEST_F(BadPrompt, NoMemoryForTheCache) {
  // A cache of less than a page, one smaller than the request, and one larger than any machine.
  ExpectRefused(Generate({"--prompt", "Once upon a time", "--kv-cache-memory-bytes", "100"}), "cache");
  ExpectRefused(
      Generate({"--prompt", "Once upon a time there was", "--page-size", "1", "--kv-cache-memory-bytes", "4K"}),
      "cache");
  ExpectRefused(Generate({"--prompt", "Once", "--kv-cache-memory-bytes", "1000000G"}), "Give a smaller kv_cache_bytes");
}

TEST(BadInput, EvalAndBench) {
  const ScratchFolder scratch;
  const std::string text = scratch.Write("text", "a few words");
  const std::string model = DataPath("retriever-2m");
  for (const auto& [bad, about] : std::vector<std::pair<Strings, std::string>>{
           {{"eval", "perplexity", "--model", model, "--text-file", text}, "more than half of --context 2048"},
           {{"eval", "perplexity", "--model", model, "--text-file", text, "--context", "1"}, "--context is 1"},
           {{"eval", "passkey", "--model", model, "--lengths", "100000"}, "the model takes 8192"},
           {{"eval", "passkey", "--model", model, "--lengths", "10"}, "10 are too few"},
           {{"eval", "passkey", "--model", model, "--depths", "0"}, "--depths and --trials must be at least 1"},
           {{"bench", "decode", "--model", model, "--depth", "-1"}, "--depth is -1"},
           {{"bench", "decode", "--model", model, "--batch", "0"}, "--batch is 0"},
           {{"bench", "decode", "--model", model, "--steps", "0"}, "--steps and --repeats must be at least 1"},
           {{"bench", "prefill", "--model", model, "--lengths", "0"}, "--lengths is 0"},
           {{"bench", "kernels", "--q-heads", "5", "--kv-heads", "2"}, "no multiple of --kv-heads 2"},
           {{"bench", "kernels", "--head-dim", "63"}, "head_dim 63"},
           {{"bench", "kernels", "--depth", "1000000000", "--batch", "2"}, "give a smaller --depth or --batch"},
           {{"bench", "kernels", "--depth", "9000000000000000000"}, "give a smaller --depth or --batch"},
           {{"bench", "kernels", "--batch", "0"}, "--batch is 0"},
           {{"bench", "crossover", "--depth", "100", "--token-budget", "100"}, "longer than a --token-budget"},
           {{"bench", "crossover", "--q-heads", "5", "--kv-heads", "2"}, "no multiple of --kv-heads 2"},
           {{"bench", "crossover", "--repeats", "0"}, "--repeats is 0"},
           {{"info", "--model", model, "-tp", "0"}, "--tensor-parallel-size is 0"}}) {
    ExpectRefused(bad, about);
  }
}

}  // namespace
}  // namespace quire
