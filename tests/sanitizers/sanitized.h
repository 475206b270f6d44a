// What tests must know of the build: QUIRE_SANITIZED is defined under a sanitizer, and kSlowness is how many times longer
// things may take then. Times that a test gives something are multiplied by it; times that it only waits are not.
#pragma once

#if defined(__SANITIZE_THREAD__) || defined(QUIRE_TSAN)  // see rpc/tsan_protobuf_layout.h
#define QUIRE_SANITIZED 1
#define QUIRE_SLOWNESS 10
#elif defined(__SANITIZE_ADDRESS__)
#define QUIRE_SANITIZED 1
#define QUIRE_SLOWNESS 4
#elif defined(__has_feature)  // clang
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define QUIRE_SANITIZED 1
#define QUIRE_SLOWNESS 10
#endif
#endif
#ifndef QUIRE_SLOWNESS
#define QUIRE_SLOWNESS 1
#endif

namespace quire {
inline constexpr double kSlowness = QUIRE_SLOWNESS;
}  // namespace quire
