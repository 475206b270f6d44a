// See tokenizer_files.h.
#include "rpc/tokenizer_files.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <type_traits>
#include <variant>

#include "core/io/file_mapping.h"
#include "core/io/gguf.h"

namespace quire::rpc {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolderFiles[] = {"tokenizer.json",          "tokenizer.model",        "tokenizer_config.json",
                                        "special_tokens_map.json", "generation_config.json", "config.json",
                                        "chat_template.jinja"};
constexpr const char* kGgufName = "tokenizer.gguf";

// ggml's numbers of value types.
enum GgufType : uint32_t { kBool = 7, kString = 8, kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12 };

class GgufWriter {
 public:
  template <typename T>
  void Put(T value) {
    char bytes[sizeof(T)];  // the format is little endian, as is every machine that this runs on
    std::memcpy(bytes, &value, sizeof(T));
    out_.append(bytes, sizeof(T));
  }
  void PutString(const std::string& text) {
    Put<uint64_t>(text.size());
    out_ += text;
  }
  template <typename List, typename PutOne>
  void PutArray(GgufType type, const List& list, PutOne put) {
    Put<uint32_t>(kArray);
    Put<uint32_t>(type);
    Put<uint64_t>(list.size());
    for (const auto& one : list) put(one);
  }
  void PutValue(const GgufValue& value) {
    std::visit(
        [this](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, bool>) {
            Put<uint32_t>(kBool), Put<uint8_t>(v ? 1 : 0);
          } else if constexpr (std::is_same_v<T, int64_t>) {
            Put<uint32_t>(kI64), Put<int64_t>(v);
          } else if constexpr (std::is_same_v<T, uint64_t>) {
            Put<uint32_t>(kU64), Put<uint64_t>(v);
          } else if constexpr (std::is_same_v<T, double>) {
            Put<uint32_t>(kF64), Put<double>(v);
          } else if constexpr (std::is_same_v<T, std::string>) {
            Put<uint32_t>(kString), PutString(v);
          } else if constexpr (std::is_same_v<T, std::vector<uint8_t>>) {
            PutArray(kBool, v, [this](uint8_t one) { Put<uint8_t>(one); });
          } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
            PutArray(kI64, v, [this](int64_t one) { Put<int64_t>(one); });
          } else if constexpr (std::is_same_v<T, std::vector<double>>) {
            PutArray(kF64, v, [this](double one) { Put<double>(one); });
          } else {
            PutArray(kString, v, [this](const std::string& one) { PutString(one); });
          }
        },
        value.value);
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

Result<TokenizerFile> VocabularyOfGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  std::vector<const std::pair<const std::string, GgufValue>*> wanted;
  for (const auto& entry : file.metadata()) {
    if (entry.first.starts_with("tokenizer.") || entry.first == "general.architecture") wanted.push_back(&entry);
  }
  GgufWriter writer;
  for (const char c : {'G', 'G', 'U', 'F'}) writer.Put<char>(c);
  writer.Put<uint32_t>(3);
  writer.Put<uint64_t>(0);  // tensors
  writer.Put<uint64_t>(wanted.size());
  for (const auto* entry : wanted) {
    writer.PutString(entry->first);
    writer.PutValue(entry->second);
  }
  return TokenizerFile{kGgufName, writer.Take()};
}

// A folder that goes away with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::error_code error;
    std::string pattern = (fs::temp_directory_path(error) / "quire_tokenizer_XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code error;
    if (!path_.empty()) fs::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

Result<std::vector<TokenizerFile>> ReadTokenizerFiles(const std::string& model) {
  std::error_code error;
  std::vector<TokenizerFile> files;
  fs::path folder = model;
  if (!fs::is_directory(folder, error)) {
    if (folder.extension() == ".gguf") {
      ASSIGN_OR_RETURN(TokenizerFile file, VocabularyOfGguf(model));
      files.push_back(std::move(file));
      return files;
    }
    folder = folder.parent_path();
  }
  bool vocabulary = false;
  for (const char* name : kFolderFiles) {
    if (!fs::is_regular_file(folder / name, error)) continue;
    ASSIGN_OR_RETURN(std::string data, ReadTextFile((folder / name).string()));
    vocabulary |= std::strcmp(name, "tokenizer.json") == 0 || std::strcmp(name, "tokenizer.model") == 0;
    files.push_back({name, std::move(data)});
  }
  if (!vocabulary) return NotFound(model + " has neither tokenizer.json nor tokenizer.model");
  return files;
}

Result<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::vector<TokenizerFile>& files) {
  const TemporaryFolder folder;
  if (folder.path().empty()) return Internal("no folder for the tokenizer's files could be made");
  std::string path = folder.path();
  for (const TokenizerFile& file : files) {
    if (file.name.empty() || file.name == "." || file.name == ".." || file.name.find('/') != std::string::npos) {
      return InvalidArgument("the tokenizer has a file '" + file.name + "', which is no plain file name");
    }
    const std::string target = folder.path() + "/" + file.name;
    std::ofstream out(target, std::ios::binary);
    out.write(file.data.data(), static_cast<std::streamsize>(file.data.size()));
    out.close();
    if (!out) return ResourceExhausted(target + " could not be written");
    if (file.name == kGgufName) path = target;
  }
  return LoadTokenizer(path);
}

}  // namespace quire::rpc
