// Tells builds apart: two ranks that compute must run the same code, or their bits and messages may differ.
#pragma once

#include <cstdint>

namespace quire {

// Equal for equal builds: the linker's build id of the object that holds this function, or where it has none, a hash of
// that object's code and constants as they lie in memory.
uint64_t BuildHash();

}  // namespace quire
