// See identity.h.
#include "rpc/identity.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

namespace quire::rpc {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHead = 1 << 20;
constexpr size_t kPiece = 4096;
constexpr size_t kPieces = 256;

// Two lanes of 64-bit FNV-1a with a different start: enough against accidents, and against nothing else.
class Hash {
 public:
  void Add(std::string_view bytes) {
    for (const unsigned char c : bytes) {
      a_ = (a_ ^ c) * kPrime;
      b_ = (b_ ^ static_cast<unsigned char>(c + 0x5b)) * kPrime;
    }
    AddNumber(bytes.size());  // so that "ab", "c" is not "a", "bc"
  }
  void AddNumber(uint64_t number) {
    for (int i = 0; i < 8; ++i) {
      const auto c = static_cast<unsigned char>(number >> (8 * i));
      a_ = (a_ ^ c) * kPrime;
      b_ = (b_ ^ static_cast<unsigned char>(c + 0x5b)) * kPrime;
    }
  }
  std::string Hex() const {
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(a_),
                  static_cast<unsigned long long>(b_));
    return text;
  }

 private:
  static constexpr uint64_t kPrime = 0x100000001b3;
  uint64_t a_ = 0xcbf29ce484222325, b_ = 0x9ae16a3b2f90404f;
};

void AddPart(std::ifstream& file, uint64_t offset, size_t count, Hash* hash) {
  std::string bytes(count, '\0');
  file.clear();
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  hash->Add(bytes);
}

Status AddFile(const fs::path& path, bool whole, Hash* hash) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) return NotFound(path.string() + " can't be read");
  hash->AddNumber(size);
  if (whole) {
    AddPart(file, 0, size, hash);
    return OkStatus();
  }
  AddPart(file, 0, std::min<uint64_t>(size, kHead), hash);
  for (size_t i = 0; size > kHead && i < kPieces; ++i) {
    AddPart(file, kHead + (size - kHead) / kPieces * i, kPiece, hash);
  }
  return OkStatus();
}

}  // namespace

std::string TokenizerHash(const Tokenizer& tokenizer) {
  Hash hash;
  hash.AddNumber(static_cast<uint64_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    hash.Add(tokenizer.IdToToken(id));
    hash.AddNumber(tokenizer.IsSpecial(id) ? 1 : 0);
  }
  for (const int32_t id : tokenizer.eos_ids()) hash.AddNumber(static_cast<uint64_t>(id));
  hash.Add(tokenizer.chat_template());
  return hash.Hex();
}

Result<std::string> ModelHash(const std::string& path, const std::string& extra) {
  Hash hash;
  hash.Add(extra);
  std::error_code error;
  if (!fs::exists(path, error)) return NotFound("there is no model at " + path);
  if (!fs::is_directory(path, error)) {
    if (fs::path(path).filename() == "config.json") {
      RETURN_IF_ERROR(AddFile(path, /*whole=*/true, &hash));
    } else {
      RETURN_IF_ERROR(AddFile(path, /*whole=*/false, &hash));
    }
    return hash.Hex();
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, error)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    const std::string name = file.filename().string();
    const bool weights = file.extension() == ".safetensors";
    if (!weights && name != "config.json" && name != "generation_config.json" && !name.ends_with(".index.json")) {
      continue;
    }
    hash.Add(name);
    RETURN_IF_ERROR(AddFile(file, !weights, &hash));
  }
  return hash.Hex();
}

}  // namespace quire::rpc
