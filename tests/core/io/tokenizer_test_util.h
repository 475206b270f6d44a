// Where the tokenizer tests find their data, and how a test skips without it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/io/file_mapping.h"
#include "core/io/tokenizer.h"

namespace quire {

// A path below the shared data folder; it may not exist.
inline std::string SharedData(const std::string& path) {
  const char* root = std::getenv("QUIRE_SHARED_DATA");
  return (root != nullptr ? std::string(root) : std::string(QUIRE_SOURCE_DIR "/../shared/data")) + "/" + path;
}

inline std::string GoldenFile(const std::string& name) {
  return std::string(QUIRE_SOURCE_DIR "/tests/core/io/golden/") + name;
}

// A model folder that the repository or, failing that, the shared data have.
inline std::string ModelFolder(const std::string& name) {
  const std::string own = std::string(QUIRE_SOURCE_DIR "/tests/data/") + name;
  return std::filesystem::exists(own) ? own : SharedData("models/" + name);
}

inline std::string SmolLm2Path() {
  const char* cache = std::getenv("QUIRE_CACHE");
  const char* home = std::getenv("HOME");
  const std::string root = cache != nullptr ? cache : std::string(home != nullptr ? home : "") + "/.cache/quire";
  return root + "/models/SmolLM2-135M-Instruct.gguf";
}

inline std::unique_ptr<Tokenizer> Load(const std::string& path) {
  auto tokenizer = LoadTokenizer(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

inline std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status().ToString();
  return ids.ok() ? *ids : std::vector<int32_t>{};
}

// A random text of valid UTF-8: words, spaces, digits, marks, scripts, symbols and any code point.
std::string RandomText(std::mt19937_64& random, int characters);

}  // namespace quire

#define QUIRE_SKIP_UNLESS_EXISTS(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << (path) << " is not there"
