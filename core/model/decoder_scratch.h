// Memory that grows to the largest step seen and stays: attention workspaces and selections, whose sizes depend
// on lengths and policies, not on the model alone.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/base/buffer.h"

namespace quire {

class GrowBuffer {
 public:
  // Room for `bytes`; what was in it is lost when it grows. RESOURCE_EXHAUSTED when there is none.
  Status Reserve(size_t bytes, Device device = {}) {
    if (bytes <= buffer_.size()) return OkStatus();
    const size_t wanted = std::max(bytes, buffer_.size() + buffer_.size() / 2);
    buffer_ = Buffer();  // before the new one is made: the old contents aren't needed
    ASSIGN_OR_RETURN(buffer_, Buffer::Create(wanted, device));
    return OkStatus();
  }
  template <typename T>
  T* As() { return reinterpret_cast<T*>(buffer_.data()); }
  size_t size() const { return buffer_.size(); }

 private:
  Buffer buffer_;
};

}  // namespace quire
