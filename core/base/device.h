// Which kind of memory and processor a buffer, stream or kernel call belongs to.
#pragma once

#include <string>

namespace quire {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // ordinal among the visible devices of that kind
  bool operator==(const Device&) const = default;
};

inline std::string DeviceName(Device device) {
  return device.kind == DeviceKind::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

// A queue of work on a device. On the CPU every kernel call is synchronous and `handle` is null;
// on CUDA it holds a cudaStream_t.
struct Stream {
  void* handle = nullptr;
};

}  // namespace quire
