// Only in builds with ThreadSanitizer, before all else of a file that may see a protobuf header. Those add members to
// MapFieldBase where the compiler says that it instruments, and the system's library was built without them: a request
// with a map would be read with two layouts. So what the compiler says is taken back, after the standard library, which
// needs it, has looked.
#pragma once

#include <memory>

#define QUIRE_TSAN 1
#undef __SANITIZE_THREAD__
