// Chat templates: every family rendered as jinja2 renders it (golden/chat_templates.json, made by
// golden/make_chat_goldens.py), and refusals.
#include "core/io/chat_template.h"

#include <nlohmann/json.hpp>

#include "core/io/chat_template_text.h"
#include "tests/core/io/tokenizer_test_util.h"

namespace quire {
namespace {

using Json = nlohmann::json;

// A tokenizer that only has what a template asks for.
class FakeTokenizer final : public Tokenizer {
 public:
  FakeTokenizer(std::string chat_template, std::string bos, std::string eos)
      : template_(std::move(chat_template)), tokens_{std::move(bos), std::move(eos)} {}
  Result<std::vector<int32_t>> Encode(std::string_view, const EncodeOptions&) const override {
    return Unimplemented("fake");
  }
  std::string TokenBytes(int32_t, bool) const override { return ""; }
  std::string Decode(std::span<const int32_t>, bool) const override { return ""; }
  int vocab_size() const override { return 2; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  std::string IdToToken(int32_t id) const override { return tokens_[id]; }
  bool IsSpecial(int32_t) const override { return true; }
  std::optional<int32_t> bos_id() const override { return 0; }
  std::vector<int32_t> eos_ids() const override { return {1}; }
  const std::string& chat_template() const override { return template_; }

 private:
  std::string template_;
  std::string tokens_[2];
};

std::vector<ChatMessage> Messages(const Json& json) {
  std::vector<ChatMessage> messages;
  for (const Json& entry : json) {
    messages.push_back({entry["role"].get<std::string>(), entry["content"].get<std::string>()});
  }
  return messages;
}

Json Golden() {
  auto text = ReadTextFile(GoldenFile("chat_templates.json"));
  EXPECT_TRUE(text.ok()) << text.status().ToString();
  return Json::parse(*text);
}

// All conversations of one template; "expected" is null where jinja2 raised an exception.
int ExpectCases(const Json& cases, const Tokenizer& tokenizer, const std::string& name) {
  int count = 0;
  for (const Json& entry : cases) {
    const auto messages = Messages(entry["messages"]);
    const auto prompt = ApplyChatTemplate(tokenizer, messages);
    if (entry["expected"].is_null()) {
      EXPECT_EQ(prompt.status().code(), StatusCode::kInvalidArgument) << name << entry["messages"];
    } else {
      EXPECT_TRUE(prompt.ok()) << name << ": " << prompt.status().ToString();
      if (prompt.ok()) {
        EXPECT_EQ(*prompt, entry["expected"].get<std::string>()) << name;
      }
    }
    ++count;
  }
  return count;
}

TEST(ChatTemplate, FamiliesRenderAsJinjaDoes) {
  const Json golden = Golden();
  int families = 0;
  for (const auto& [name, family] : golden["families"].items()) {
    const FakeTokenizer tokenizer(family["template"].get<std::string>(), family["bos"].get<std::string>(),
                                  family["eos"].get<std::string>());
    EXPECT_GE(ExpectCases(family["cases"], tokenizer, name), 6) << name;
    ++families;
  }
  EXPECT_GE(families, 12);
}

TEST(ChatTemplate, Qwen3RendersAsJinjaDoes) {
  QUIRE_SKIP_UNLESS_EXISTS(SharedData("tokenizers/qwen3/tokenizer_config.json"));
  const auto tokenizer = Load(SharedData("tokenizers/qwen3"));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_GE(ExpectCases(Golden()["qwen3"], *tokenizer, "qwen3"), 6);
}

TEST(SmolLM2ChatTemplate, SmolLm2RendersAsJinjaDoes) {
  QUIRE_SKIP_UNLESS_EXISTS(SmolLm2Path());
  const auto tokenizer = Load(SmolLm2Path());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_GE(ExpectCases(Golden()["smollm2"], *tokenizer, "smollm2"), 6);
  const auto prompt = ApplyChatTemplate(*tokenizer, std::vector<ChatMessage>{{"user", "Hi"}});
  ASSERT_TRUE(prompt.ok());
  const auto ids = Ids(*tokenizer, *prompt, {.add_special_tokens = false});
  EXPECT_EQ(ids.front(), 1);  // <|im_start|>
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 3);
  EXPECT_EQ(tokenizer->eos_ids(), std::vector<int32_t>{2});
}

void ExpectRefused(const std::string& jinja, const std::string& said) {
  const FakeTokenizer tokenizer(jinja, "<s>", "</s>");
  const auto prompt = ApplyChatTemplate(tokenizer, std::vector<ChatMessage>{{"user", "Hi"}});
  ASSERT_FALSE(prompt.ok()) << jinja;
  EXPECT_NE(prompt.status().message().find(said), std::string::npos) << prompt.status().ToString();
}

TEST(ChatTemplate, OthersAreRefusedWithASentence) {
  ExpectRefused("", "has no chat template");
  ExpectRefused("{% for m in messages %}{{ '<turn>' + m.role }}{% endfor %}", "none of their markers");
  ExpectRefused("{% for m in messages %}{{ '<start_of_turn>' + m.role }}{% endfor %}", "not Gemma's");
  ExpectRefused("{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content }}{% endfor %}",
                "not ChatML's");
  ExpectRefused(
      "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
      "{% endfor %}{{ '<|im_start|>assistant\\n' }}{{ '<|vision_start|>' }}",
      "<|vision_start|>");
  ExpectRefused(
      "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
      "{% endfor %}{{ '<|im_start|>assistant\\n' }}{{ strftime_now('%d') }}",
      "strftime_now");
  ExpectRefused("<|im_start|>{{ messages[0].content }}", "outside of its expressions");
  ExpectRefused("{{ bos_token }}{% for message in messages %}{{ '[INST]' + message.content + '[/INST]' }}{% endfor %}",
                "not Mistral's");
  ExpectRefused("{{ 'x", "does not end");
  ExpectRefused("{# x", "does not end");
}

TEST(ChatTemplate, BadMessagesAreRefused) {
  const FakeTokenizer tokenizer("x", "<s>", "</s>");
  const auto code = [&](std::vector<ChatMessage> messages) {
    return ApplyChatTemplate(tokenizer, messages).status().code();
  };
  EXPECT_EQ(code({}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"robot", "hi"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"user", "\xFF"}}), StatusCode::kInvalidArgument);
}

TEST(ChatTemplateText, LayoutQuotesAndEscapesDoNotMatter) {
  const auto a = CanonicalizeTemplate(
      "{{- bos_token }}\n{%- for message in messages %}\n  {{- \"a\\n\" + message[\"role\"] }}\n{%- endfor %}\n");
  const auto b =
      CanonicalizeTemplate("{{bos_token}}{%for message in messages%}{{'a' + '\n'+message['role']}}{# c ' #}{%endfor%}");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->text, "{{bos_token}}{%formessageinmessages%}{{'a\n'+message.role}}{%endfor%}");
  EXPECT_EQ(a->text, b->text);
  EXPECT_EQ(TermsOf("'a+b'+c+'d'"), (std::vector<std::string>{"'a+b'", "c", "'d'"}));
}

}  // namespace
}  // namespace quire
