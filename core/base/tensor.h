// Tensor owns memory, TensorView does not. Views are trivially copyable and carry a dtype, a shape of
// up to four dimensions and row-major strides in elements; kernels take plain pointers taken from them.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/base/buffer.h"
#include "core/base/check.h"
#include "core/base/dtype.h"

namespace quire {

inline constexpr int kMaxRank = 4;

struct Shape {
  std::array<int64_t, kMaxRank> dims{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> list) {
    CHECK_LE(list.size(), size_t{kMaxRank});
    for (int64_t d : list) dims[rank++] = d;
  }
  int64_t operator[](int i) const { return dims[i]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  bool operator==(const Shape& o) const {
    if (rank != o.rank) return false;
    for (int i = 0; i < rank; ++i) if (dims[i] != o.dims[i]) return false;
    return true;
  }
  std::string ToString() const {  // "[3, 64]"
    std::string s = "[";
    for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(dims[i]);
    return s + "]";
  }
};

// A dense row-major view. data may be null only when the shape has no elements.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  Device device;

  int64_t elements() const { return shape.elements(); }
  int64_t bytes() const { return elements() * ElementSize(dtype); }
  template <typename T>
  T* As() const { return static_cast<T*>(data); }
};

class Tensor {
 public:
  Tensor() = default;
  static Result<Tensor> Create(DType dtype, Shape shape, Device device = {}) {
    Tensor t;
    ASSIGN_OR_RETURN(t.buffer_, Buffer::Create(static_cast<size_t>(shape.elements()) * ElementSize(dtype), device));
    t.dtype_ = dtype;
    t.shape_ = shape;
    return t;
  }
  TensorView view() { return {buffer_.data(), dtype_, shape_, buffer_.device()}; }
  template <typename T>
  T* data() { return reinterpret_cast<T*>(buffer_.data()); }
  template <typename T>
  const T* data() const { return reinterpret_cast<const T*>(buffer_.data()); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  size_t bytes() const { return buffer_.size(); }

 private:
  Buffer buffer_;
  DType dtype_ = DType::kF32;
  Shape shape_;
};

}  // namespace quire
