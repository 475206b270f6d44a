// LoadTokenizer (tokenizer.h): which file of a path holds the vocabulary, and what the side files of a Hugging
// Face folder say about it (bos, eos, chat template).
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/io/file_mapping.h"
#include "core/io/gguf.h"
#include "core/io/gguf_vocab.h"
#include "core/io/sentencepiece_tokenizer.h"
#include "core/io/tokenizer.h"
#include "core/io/tokenizer_json.h"
#include "core/io/tokenizer_json_steps.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

bool IsFile(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// A JSON object; empty when there is no such file.
Result<Json> ReadJsonObject(const fs::path& path) {
  if (!IsFile(path)) return Json(Json::object());
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path.string()));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument(path.string() + " is not valid JSON");
  if (!json.is_object()) return InvalidArgument(path.string() + " is not a JSON object");
  return json;
}

// "<s>" or {"content": "<s>", …}; "" for anything else.
std::string TokenText(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
    return (*it)["content"].get<std::string>();
  }
  return "";
}

// Ids of a key that is a number or a list of numbers.
Result<std::vector<int32_t>> IdList(const Json& json, const char* key, int vocab_size, const std::string& where) {
  std::vector<int32_t> ids;
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return ids;
  const Json list = it->is_array() ? *it : Json::array({*it});
  for (const Json& id : list) {
    if (!id.is_number_integer())
      return InvalidArgument(std::string(key) + " of " + where + " is not a number or a list of numbers");
    // Old configs name ids that the tokenizer lacks (-1, or one of a padded vocabulary): none of ours.
    if (id >= 0 && id < vocab_size) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// The side files of a folder.
struct SideFiles {
  Json tokenizer_config, generation_config, config;
  std::string jinja;  // chat_template.jinja
};

Result<SideFiles> ReadSideFiles(const fs::path& folder) {
  SideFiles files;
  ASSIGN_OR_RETURN(files.tokenizer_config, ReadJsonObject(folder / "tokenizer_config.json"));
  ASSIGN_OR_RETURN(files.generation_config, ReadJsonObject(folder / "generation_config.json"));
  ASSIGN_OR_RETURN(files.config, ReadJsonObject(folder / "config.json"));
  if (IsFile(folder / "chat_template.jinja")) {
    ASSIGN_OR_RETURN(files.jinja, ReadTextFile((folder / "chat_template.jinja").string()));
  }
  return files;
}

// A string, or a list of {"name", "template"} of which "default" is taken.
Result<std::string> ChatTemplateOf(const SideFiles& files) {
  if (!files.jinja.empty()) return files.jinja;
  const auto it = files.tokenizer_config.find("chat_template");
  if (it == files.tokenizer_config.end() || it->is_null()) return std::string();
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array()) {
    for (const Json& entry : *it) {
      if (entry.is_object() && TokenText(entry, "name") == "default") return TokenText(entry, "template");
    }
    return std::string();
  }
  return InvalidArgument("chat_template of tokenizer_config.json is neither a string nor a list");
}

void AddId(int32_t id, std::vector<int32_t>* ids) {
  for (int32_t have : *ids) {
    if (have == id) return;
  }
  ids->push_back(id);
}

// bos: tokenizer_config.json's token, else the configs' id. eos: all that any of the three files names.
Status ApplySideFiles(const SideFiles& files, TokenTable* tokenizer) {
  TokenizerSettings& settings = tokenizer->settings();
  const int size = tokenizer->vocab_size();
  if (const auto id = tokenizer->TokenToId(TokenText(files.tokenizer_config, "bos_token"))) settings.bos_id = *id;
  // The tokenizer's own eos comes first: chat templates write that one.
  std::vector<int32_t> ends;
  if (const auto id = tokenizer->TokenToId(TokenText(files.tokenizer_config, "eos_token"))) AddId(*id, &ends);
  for (const auto& [json, where] :
       {std::pair<const Json*, const char*>{&files.generation_config, "generation_config.json"},
        {&files.config, "config.json"}}) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> eos, IdList(*json, "eos_token_id", size, where));
    for (int32_t id : eos) AddId(id, &ends);
    ASSIGN_OR_RETURN(const std::vector<int32_t> bos, IdList(*json, "bos_token_id", size, where));
    const bool names_bos = files.tokenizer_config.contains("bos_token");  // null there means: none
    if (!settings.bos_id.has_value() && !names_bos && !bos.empty()) settings.bos_id = bos[0];
  }
  if (!ends.empty()) settings.eos_ids = std::move(ends);
  ASSIGN_OR_RETURN(settings.chat_template, ChatTemplateOf(files));
  return OkStatus();
}

// Which pre-tokenizer goes with a vocab.json + merges.txt, by the class that would read them.
Result<std::string> PreOfClass(const Json& tokenizer_config) {
  const std::string name = TokenText(tokenizer_config, "tokenizer_class");
  if (name.empty() || name == "GPT2Tokenizer" || name == "GPT2TokenizerFast") return std::string("gpt-2");
  if (name == "Qwen2Tokenizer" || name == "Qwen2TokenizerFast") return std::string("qwen2");
  return InvalidArgument("the tokenizer_class " + name + " with vocab.json and merges.txt is not supported; a " +
                         "tokenizer.json is needed");
}

Result<std::unique_ptr<Tokenizer>> LoadJson(const fs::path& path) {
  ASSIGN_OR_RETURN(const SideFiles files, ReadSideFiles(path.parent_path()));
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path.string()));
  auto tokenizer = MakeJsonTokenizer(text);
  if (!tokenizer.ok()) return tokenizer.status().WithContext(path.string());
  RETURN_IF_ERROR(ApplySideFiles(files, tokenizer->get()));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer).value());
}

Result<std::unique_ptr<Tokenizer>> LoadModel(const fs::path& path) {
  ASSIGN_OR_RETURN(const SideFiles files, ReadSideFiles(path.parent_path()));
  ASSIGN_OR_RETURN(const std::string model, ReadTextFile(path.string()));
  Fields fields(files.tokenizer_config, "tokenizer_config.json");
  SentencePieceOptions options;
  options.add_bos = fields.Bool("add_bos_token", true);
  options.add_eos = fields.Bool("add_eos_token", false);
  RETURN_IF_ERROR(fields.status());
  auto tokenizer = MakeSentencePieceTokenizer(model, options);
  if (!tokenizer.ok()) return tokenizer.status().WithContext(path.string());
  RETURN_IF_ERROR(ApplySideFiles(files, tokenizer->get()));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer).value());
}

Result<std::unique_ptr<Tokenizer>> LoadVocabMerges(const fs::path& folder) {
  ASSIGN_OR_RETURN(const SideFiles files, ReadSideFiles(folder));
  ASSIGN_OR_RETURN(const std::string pre, PreOfClass(files.tokenizer_config));
  ASSIGN_OR_RETURN(const std::string vocab, ReadTextFile((folder / "vocab.json").string()));
  ASSIGN_OR_RETURN(const std::string merges, ReadTextFile((folder / "merges.txt").string()));
  auto tokenizer = MakeVocabMergesTokenizer(vocab, merges, pre);
  if (!tokenizer.ok()) return tokenizer.status().WithContext(folder.string());
  RETURN_IF_ERROR(ApplySideFiles(files, tokenizer->get()));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer).value());
}

Result<std::unique_ptr<Tokenizer>> LoadGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  auto vocab = ReadGgufVocab(file);
  if (!vocab.ok()) return vocab.status().WithContext(path);
  auto tokenizer = MakeGgufTokenizer(std::move(vocab).value());
  if (!tokenizer.ok()) return tokenizer.status().WithContext(path);
  return tokenizer;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  const fs::path p(path);
  std::error_code error;
  if (fs::is_directory(p, error)) {
    if (IsFile(p / "tokenizer.json")) return LoadJson(p / "tokenizer.json");
    if (IsFile(p / "tokenizer.model")) return LoadModel(p / "tokenizer.model");
    if (IsFile(p / "vocab.json") && IsFile(p / "merges.txt")) return LoadVocabMerges(p);
    return NotFound("the folder " + path + " has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with " +
                    "merges.txt)");
  }
  if (!fs::exists(p, error)) return NotFound("there is no file or folder " + path);
  if (p.extension() == ".gguf") return LoadGguf(path);
  if (p.extension() == ".json") return LoadJson(p);
  // "tokenizer.model", and Mistral's "….model.v3".
  if (p.filename().string().find(".model") != std::string::npos) return LoadModel(p);
  return InvalidArgument(path +
                         " is no tokenizer: a Hugging Face folder, a .gguf, a tokenizer.json or a .model is needed");
}

}  // namespace quire
