// Small writers of GGUF and safetensors bytes, for files that are wrong in one chosen way.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace quire {

inline std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

template <typename T>
std::string Raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void WriteAll(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// The bytes of a safetensors file with this header and so many zero bytes of data.
inline std::string SafetensorsBytes(const std::string& header, size_t data_bytes) {
  return Raw<uint64_t>(header.size()) + header + std::string(data_bytes, '\0');
}

// Builds GGUF bytes; type numbers as in the format: 4 u32, 6 f32, 7 bool, 8 string, 9 array, 10 u64.
class GgufBuilder {
 public:
  uint32_t magic = 0x46554747, version = 3;
  uint64_t extra_tensors = 0, extra_values = 0;  // claimed, but not there

  static std::string Text(std::string_view text) { return Raw<uint64_t>(text.size()).append(text); }

  GgufBuilder& Value(std::string_view key, uint32_t type, const std::string& payload) {
    metadata_ += Text(key) + Raw(type) + payload;
    ++values_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t value) { return Value(key, 4, Raw(value)); }
  GgufBuilder& F32(std::string_view key, float value) { return Value(key, 6, Raw(value)); }
  GgufBuilder& String(std::string_view key, std::string_view value) { return Value(key, 8, Text(value)); }

  GgufBuilder& Tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    directory_ += Text(name) + Raw(static_cast<uint32_t>(dims.size()));
    for (const uint64_t d : dims) directory_ += Raw(d);
    directory_ += Raw(type) + Raw(offset);
    ++tensors_;
    return *this;
  }

  std::string Bytes(size_t data_bytes = 0, size_t alignment = 32) const {
    std::string out = Raw(magic) + Raw(version) + Raw(tensors_ + extra_tensors) + Raw(values_ + extra_values);
    out += metadata_ + directory_;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + std::string(data_bytes, '\0');
  }

 private:
  std::string metadata_, directory_;
  uint64_t values_ = 0, tensors_ = 0;
};

// A folder of the running test alone, removed at its end.
class TestFolder {
 public:
  TestFolder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::path(QUIRE_BINARY_DIR) / "test-folders" /
            (std::string(info->test_suite_name()) + "." + info->name());
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

}  // namespace quire
