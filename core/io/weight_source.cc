#include "core/io/weight_source.h"

namespace quire {

std::string_view StorageTypeName(StorageType type) {
  switch (type) {
    case StorageType::kF32: return "F32";
    case StorageType::kF16: return "F16";
    case StorageType::kBF16: return "BF16";
    case StorageType::kQ8_0: return "Q8_0";
    case StorageType::kQ4_0: return "Q4_0";
    case StorageType::kQ4_1: return "Q4_1";
    case StorageType::kQ5_0: return "Q5_0";
    case StorageType::kQ5_1: return "Q5_1";
    case StorageType::kQ4_K: return "Q4_K";
    case StorageType::kQ5_K: return "Q5_K";
    case StorageType::kQ6_K: return "Q6_K";
  }
  return "unknown";
}

int BlockElements(StorageType type) {
  switch (type) {
    case StorageType::kF32:
    case StorageType::kF16:
    case StorageType::kBF16: return 1;
    case StorageType::kQ8_0:
    case StorageType::kQ4_0:
    case StorageType::kQ4_1:
    case StorageType::kQ5_0:
    case StorageType::kQ5_1: return 32;
    case StorageType::kQ4_K:
    case StorageType::kQ5_K:
    case StorageType::kQ6_K: return 256;
  }
  return 0;
}

int BlockBytes(StorageType type) {
  switch (type) {
    case StorageType::kF32: return 4;
    case StorageType::kF16:
    case StorageType::kBF16: return 2;
    case StorageType::kQ8_0: return 2 + 32;      // scale, 32 bytes
    case StorageType::kQ4_0: return 2 + 16;      // scale, 32 nibbles
    case StorageType::kQ4_1: return 2 + 2 + 16;  // scale, minimum, nibbles
    case StorageType::kQ5_0: return 2 + 4 + 16;  // scale, 32 fifth bits, nibbles
    case StorageType::kQ5_1: return 2 + 2 + 4 + 16;
    case StorageType::kQ4_K: return 2 + 2 + 12 + 128;  // scale, minimum, 8 six-bit pairs, nibbles
    case StorageType::kQ5_K: return 2 + 2 + 12 + 32 + 128;
    case StorageType::kQ6_K: return 128 + 64 + 16 + 2;  // low nibbles, upper bit pairs, 16 scales, scale
  }
  return 0;
}

}  // namespace quire
