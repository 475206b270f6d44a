// A file mapped read-only into memory, whole. Pages are read when touched.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/base/status.h"

namespace quire {

class FileMapping {
 public:
  FileMapping() = default;
  ~FileMapping();
  FileMapping(FileMapping&& other) noexcept;
  FileMapping& operator=(FileMapping&& other) noexcept;
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  // NOT_FOUND or INVALID_ARGUMENT (a folder, an empty file) with the path and the system's reason.
  static Result<FileMapping> Open(const std::string& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// A small text file, whole (config.json and the like). NOT_FOUND; RESOURCE_EXHAUSTED above `max_bytes`.
Result<std::string> ReadTextFile(const std::string& path, size_t max_bytes = size_t{1} << 30);

}  // namespace quire
