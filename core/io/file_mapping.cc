#include "core/io/file_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

namespace quire {

Result<FileMapping> FileMapping::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NotFound("can't open " + path + ": " + std::strerror(errno));
  struct stat info;
  if (fstat(fd, &info) != 0) {
    const int error = errno;
    close(fd);
    return NotFound("can't read the size of " + path + ": " + std::strerror(error));
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    close(fd);
    return InvalidArgument(path + (S_ISREG(info.st_mode) ? " is empty" : " is not a file"));
  }
  FileMapping mapping;
  mapping.path_ = path;
  mapping.size_ = static_cast<size_t>(info.st_size);
  void* p = mmap(nullptr, mapping.size_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (p == MAP_FAILED) return Internal("can't map " + path + ": " + std::strerror(error));
  mapping.data_ = static_cast<const std::byte*>(p);
  return mapping;
}

FileMapping::~FileMapping() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

FileMapping::FileMapping(FileMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

FileMapping& FileMapping::operator=(FileMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

Result<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return NotFound("can't open " + path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return InvalidArgument(path + " is not a file");
  if (static_cast<size_t>(info.st_size) > max_bytes) {
    return ResourceExhausted(path + " has " + std::to_string(info.st_size) + " bytes, more than the " +
                             std::to_string(max_bytes) + " that are read");
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(static_cast<size_t>(info.st_size), '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(text.size()))) return DataLoss("can't read all of " + path);
  return text;
}

}  // namespace quire
