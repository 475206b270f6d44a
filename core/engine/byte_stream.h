// Plain values to bytes and back: what the ranks of a group say to each other. Little endian, arrays and strings with
// their counts in front. The writer appends; the reader takes bytes that nobody vouches for, and what the values mean
// is for its caller to check.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace quire {

static_assert(std::endian::native == std::endian::little, "the messages are little endian");

class ByteWriter {
 public:
  explicit ByteWriter(std::vector<uint8_t>* out) : out_(out) {}
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
    Append(&value, sizeof(T));
  }
  void Put(float value) { Put(std::bit_cast<uint32_t>(value)); }
  void Put(const std::string& text) {
    Put(static_cast<uint32_t>(text.size()));
    Append(text.data(), text.size());
  }
  template <typename T>
  void PutAll(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
    Put(static_cast<uint32_t>(values.size()));
    Append(values.data(), values.size() * sizeof(T));
  }

 private:
  void Append(const void* data, size_t size) {
    const size_t at = out_->size();
    out_->resize(at + size);
    if (size > 0) std::memcpy(out_->data() + at, data, size);
  }
  std::vector<uint8_t>* out_;
};

// Reads as long as there are bytes; afterwards gives zeros and ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool ok() const { return ok_; }
  bool done() const { return ok_ && at_ == bytes_.size(); }
  template <typename T>
  T Get() {
    T value{};
    if (Has(1, sizeof(T))) {
      std::memcpy(&value, bytes_.data() + at_, sizeof(T));
      at_ += sizeof(T);
    }
    return value;
  }
  float GetFloat() { return std::bit_cast<float>(Get<uint32_t>()); }
  template <typename T>
  std::vector<T> GetAll() {
    const uint32_t n = Get<uint32_t>();
    std::vector<T> values;
    if (n > 0 && Has(n, sizeof(T))) {
      values.resize(n);
      std::memcpy(static_cast<void*>(values.data()), bytes_.data() + at_, n * sizeof(T));
      at_ += n * sizeof(T);
    }
    return values;
  }
  std::string GetString() {
    const uint32_t n = Get<uint32_t>();
    std::string text;
    if (Has(n, 1)) {
      text.assign(reinterpret_cast<const char*>(bytes_.data() + at_), n);
      at_ += n;
    }
    return text;
  }
  // A count of things that take at least `least` bytes each.
  uint32_t GetCount(size_t least) {
    const uint32_t n = Get<uint32_t>();
    return Has(n, least) ? n : 0;
  }

 private:
  bool Has(size_t n, size_t size) {
    if (ok_ && n > (bytes_.size() - at_) / size) ok_ = false;
    return ok_;
  }
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace quire
