// FlexAttention's two functions (Dong et al., arXiv 2412.05496), which the attention kernels inline, and those that are
// shipped. They are plain functors, or lambdas, called with positions in the sequence:
//
//   float score_mod(float score, int seq, int head, int64_t q_idx, int64_t kv_idx)   score: q·k times the scale
//   bool mask_mod(int seq, int head, int64_t q_idx, int64_t kv_idx)                  false: as if the key weren't there
//
// seq is an index into the call's page table, head one of the call's query heads (a rank's own ones), q_idx and kv_idx
// are positions; both functors are called for keys that are there and no others. Flex(score, mask) makes a Mod of them.
// A row sees its own and earlier positions, and of those what the mask leaves; a mask with `kSeesFuture = true` is taken
// at its word and sees all keys up to the chunk's end (prefill; in decode there are no later ones).
//
// A mask may say more, and is asked less for it: `kPerHead = false` (no head differs, so one test serves all);
// FirstKey(q_idx), before which no key is seen, so that kernels begin there (in [0, q_idx + 1], never less for a later
// query); `kIsRun = true` (all keys from FirstKey, or 0, to the query's own are seen, so that none is tested); and
// State(seq, head, range), which tells whole ranges masked or open without a test; BlockMask (block_mask.h) makes that
// table for masks that can't. Functors are copied, pointers in them must be valid where the kernel runs; thread safe if
// they are. On a GPU their functions are marked QUIRE_HOST_DEVICE.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#define QUIRE_HOST_DEVICE __host__ __device__
#else
#define QUIRE_HOST_DEVICE
#endif

namespace quire {

// What a mask leaves of a range of queries and keys.
enum class MaskState : uint8_t { kMasked, kMixed, kOpen };

// Queries [q_begin, q_end) and keys [kv_begin, kv_end), both by position; neither is empty.
struct MaskRange {
  int64_t q_begin, q_end, kv_begin, kv_end;
};

// ---- score functors ----

struct NoScoreMod {
  QUIRE_HOST_DEVICE float operator()(float score, int, int, int64_t, int64_t) const { return score; }
};

// cap · tanh(score / cap), Gemma-2's (arXiv 2408.00118, section 2). cap > 0.
struct SoftCap {
  float cap;
  QUIRE_HOST_DEVICE float operator()(float score, int, int, int64_t, int64_t) const {
    return cap * std::tanh(score / cap);
  }
};

// ALiBi's linear bias (arXiv 2108.12409): score − slope · (q_idx − kv_idx). slopes: [heads].
struct Alibi {
  const float* slopes;
  QUIRE_HOST_DEVICE float operator()(float score, int, int head, int64_t q_idx, int64_t kv_idx) const {
    return score - slopes[head] * static_cast<float>(q_idx - kv_idx);
  }
};
// The paper's slope of one of `heads` heads: powers of 2^(−8 / n) for the largest power of two n ≤ heads; the others
// take every second one of twice as many.
inline float AlibiSlope(int head, int heads) {
  int n = 1;
  while (2 * n <= heads) n *= 2;
  return head < n ? std::exp2(-8.0f * static_cast<float>(head + 1) / static_cast<float>(n))
                  : std::exp2(-4.0f * static_cast<float>(2 * (head - n) + 1) / static_cast<float>(n));
}

// Adds bias[head][reach + clamp(q_idx − kv_idx, −reach, reach)]. bias: [heads][2 · reach + 1].
struct RelativeBias {
  const float* bias;
  int reach;
  QUIRE_HOST_DEVICE float operator()(float score, int, int head, int64_t q_idx, int64_t kv_idx) const {
    const int64_t distance = q_idx - kv_idx, r = reach;
    return score + bias[head * (2 * r + 1) + r + (distance < -r ? -r : distance > r ? r : distance)];
  }
};

// second(first(score)).
template <class First, class Second>
struct ThenScore {
  First first;
  Second second;
  QUIRE_HOST_DEVICE float operator()(float score, int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return second(first(score, seq, head, q_idx, kv_idx), seq, head, q_idx, kv_idx);
  }
};
template <class First, class Second>
ThenScore<First, Second> Then(First first, Second second) {
  return {first, second};
}

// ---- mask functors ----

struct NoMaskMod {
  static constexpr bool kPerHead = false;
  static constexpr bool kIsRun = true;
  QUIRE_HOST_DEVICE bool operator()(int, int, int64_t, int64_t) const { return true; }
  QUIRE_HOST_DEVICE MaskState State(int, int, const MaskRange&) const { return MaskState::kOpen; }
};

// Said aloud; rows are causal without it unless another mask sees the future.
struct CausalMask {
  static constexpr bool kPerHead = false;
  static constexpr bool kIsRun = true;
  QUIRE_HOST_DEVICE bool operator()(int, int, int64_t q_idx, int64_t kv_idx) const { return kv_idx <= q_idx; }
  QUIRE_HOST_DEVICE MaskState State(int, int, const MaskRange& r) const {
    return r.kv_end <= r.q_begin + 1 ? MaskState::kOpen
           : r.kv_begin >= r.q_end   ? MaskState::kMasked
                                     : MaskState::kMixed;
  }
};

// A row sees itself and the window − 1 positions before it: Mistral's (arXiv 2310.06825, section 2) and Gemma's layers.
struct WindowMask {
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  int64_t window = kAll;  // ≥ 1
  static constexpr bool kPerHead = false;
  static constexpr bool kIsRun = true;
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q_idx) const { return q_idx >= window ? q_idx - window + 1 : 0; }
  QUIRE_HOST_DEVICE bool operator()(int, int, int64_t q_idx, int64_t kv_idx) const {
    return kv_idx <= q_idx && q_idx - kv_idx < window;
  }
  QUIRE_HOST_DEVICE MaskState State(int, int, const MaskRange& r) const {
    if (r.kv_end <= r.q_begin - window + 1 || r.kv_begin >= r.q_end) return MaskState::kMasked;
    return r.kv_end <= r.q_begin + 1 && r.kv_begin >= r.q_end - window ? MaskState::kOpen : MaskState::kMixed;
  }
};

// The first prefix[seq] positions see each other, all others what is before them. In prefill the prefix must lie in one
// chunk, for its rows read each other's keys. prefix: [sequences].
struct PrefixLmMask {
  const int32_t* prefix;
  static constexpr bool kPerHead = false;
  static constexpr bool kSeesFuture = true;
  QUIRE_HOST_DEVICE bool operator()(int seq, int, int64_t q_idx, int64_t kv_idx) const {
    return kv_idx <= q_idx || kv_idx < prefix[seq];
  }
  QUIRE_HOST_DEVICE MaskState State(int seq, int, const MaskRange& r) const {
    if (r.kv_end <= r.q_begin + 1 || r.kv_end <= prefix[seq]) return MaskState::kOpen;
    return r.kv_begin >= r.q_end && r.kv_begin >= prefix[seq] ? MaskState::kMasked : MaskState::kMixed;
  }
};

// Documents packed into one sequence: a row sees its own. document[begin[seq] + position] ascends within a sequence;
// begin null: all sequences share one list.
struct DocumentMask {
  const int32_t* document;
  const int64_t* begin;
  static constexpr bool kPerHead = false;
  QUIRE_HOST_DEVICE int32_t Of(int seq, int64_t position) const {
    return document[(begin == nullptr ? 0 : begin[seq]) + position];
  }
  QUIRE_HOST_DEVICE bool operator()(int seq, int, int64_t q_idx, int64_t kv_idx) const {
    return Of(seq, q_idx) == Of(seq, kv_idx);
  }
  QUIRE_HOST_DEVICE MaskState State(int seq, int, const MaskRange& r) const {
    const int32_t q_first = Of(seq, r.q_begin), q_last = Of(seq, r.q_end - 1);
    const int32_t kv_first = Of(seq, r.kv_begin), kv_last = Of(seq, r.kv_end - 1);
    if (kv_last < q_first || kv_first > q_last) return MaskState::kMasked;
    return q_first == q_last && kv_first == kv_last ? MaskState::kOpen : MaskState::kMixed;
  }
};

namespace internal {

template <class M>
constexpr bool MaskPerHead() {
  if constexpr (requires { M::kPerHead; }) return M::kPerHead;
  return true;
}
template <class M>
constexpr bool MaskSeesFuture() {
  if constexpr (requires { M::kSeesFuture; }) return M::kSeesFuture;
  return false;
}
// True where a row's keys are those from FirstKey to its own.
template <class M>
constexpr bool MaskIsRun() {
  if constexpr (requires { M::kIsRun; }) return M::kIsRun;
  return false;
}
template <class M>
QUIRE_HOST_DEVICE int64_t FirstKeyOf(const M& mask, int64_t q_idx) {
  if constexpr (requires { mask.FirstKey(q_idx); }) {
    return mask.FirstKey(q_idx);
  } else {
    return 0;
  }
}
template <class M>
QUIRE_HOST_DEVICE MaskState StateOf(const M& mask, int seq, int head, const MaskRange& range) {
  if constexpr (requires { mask.State(seq, head, range); }) {
    return mask.State(seq, head, range);
  } else {
    return MaskState::kMixed;
  }
}

}  // namespace internal

// Keys that both masks leave.
template <class A, class B>
struct AndMask {
  A a;
  B b;
  static constexpr bool kPerHead = internal::MaskPerHead<A>() || internal::MaskPerHead<B>();
  static constexpr bool kSeesFuture = internal::MaskSeesFuture<A>() || internal::MaskSeesFuture<B>();
  static constexpr bool kIsRun = internal::MaskIsRun<A>() && internal::MaskIsRun<B>();
  QUIRE_HOST_DEVICE bool operator()(int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return a(seq, head, q_idx, kv_idx) && b(seq, head, q_idx, kv_idx);
  }
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q_idx) const {
    const int64_t x = internal::FirstKeyOf(a, q_idx), y = internal::FirstKeyOf(b, q_idx);
    return x > y ? x : y;
  }
  QUIRE_HOST_DEVICE MaskState State(int seq, int head, const MaskRange& r) const {
    const MaskState x = internal::StateOf(a, seq, head, r);
    if (x == MaskState::kMasked) return x;
    const MaskState y = internal::StateOf(b, seq, head, r);
    return y == MaskState::kMasked || x == MaskState::kOpen ? y : x;
  }
};
template <class A, class B>
AndMask<A, B> And(A a, B b) {
  return {a, b};
}

// Keys that either mask leaves.
template <class A, class B>
struct OrMask {
  A a;
  B b;
  static constexpr bool kPerHead = internal::MaskPerHead<A>() || internal::MaskPerHead<B>();
  static constexpr bool kSeesFuture = internal::MaskSeesFuture<A>() || internal::MaskSeesFuture<B>();
  static constexpr bool kIsRun = internal::MaskIsRun<A>() && internal::MaskIsRun<B>();
  QUIRE_HOST_DEVICE bool operator()(int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return a(seq, head, q_idx, kv_idx) || b(seq, head, q_idx, kv_idx);
  }
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q_idx) const {
    const int64_t x = internal::FirstKeyOf(a, q_idx), y = internal::FirstKeyOf(b, q_idx);
    return x < y ? x : y;
  }
  QUIRE_HOST_DEVICE MaskState State(int seq, int head, const MaskRange& r) const {
    const MaskState x = internal::StateOf(a, seq, head, r);
    if (x == MaskState::kOpen) return x;
    const MaskState y = internal::StateOf(b, seq, head, r);
    return y == MaskState::kOpen || x == MaskState::kMasked ? y : x;
  }
};
template <class A, class B>
OrMask<A, B> Or(A a, B b) {
  return {a, b};
}

// ---- the two together, as kernels take them ----

template <class ScoreMod, class MaskMod>
struct FlexMod {
  ScoreMod score = {};
  MaskMod mask = {};

  static constexpr bool kPerHead = internal::MaskPerHead<MaskMod>();
  static constexpr bool kSeesFuture = internal::MaskSeesFuture<MaskMod>();
  static constexpr bool kHasScore = !std::is_same_v<ScoreMod, NoScoreMod>;
  static constexpr bool kHasMask = kSeesFuture || !internal::MaskIsRun<MaskMod>();  // FirstKey doesn't say it all
  static constexpr bool kIsIdentity = !kHasScore && !kHasMask;  // of the keys from FirstKey on

  QUIRE_HOST_DEVICE float Score(float s, int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return score(s, seq, head, q_idx, kv_idx);
  }
  QUIRE_HOST_DEVICE bool Mask(int seq, int head, int64_t q_idx, int64_t kv_idx) const {
    return mask(seq, head, q_idx, kv_idx);
  }
  QUIRE_HOST_DEVICE int64_t FirstKey(int64_t q_idx) const { return internal::FirstKeyOf(mask, q_idx); }
  QUIRE_HOST_DEVICE MaskState State(int seq, int head, const MaskRange& range) const {
    return internal::StateOf(mask, seq, head, range);
  }
  // Of heads [first, first + heads), which one kernel call treats alike.
  QUIRE_HOST_DEVICE MaskState State(int seq, int first, int heads, const MaskRange& range) const {
    const MaskState state = State(seq, first, range);
    for (int h = 1; kPerHead && h < heads; ++h) {
      if (State(seq, first + h, range) != state) return MaskState::kMixed;
    }
    return state;
  }
};

template <class ScoreMod, class MaskMod = NoMaskMod>
FlexMod<ScoreMod, MaskMod> Flex(ScoreMod score, MaskMod mask = {}) {
  return {score, mask};
}
template <class MaskMod>
FlexMod<NoScoreMod, MaskMod> FlexMask(MaskMod mask) {
  return {{}, mask};
}

// The two that the library has compiled, for every target: scores as they are, and with the soft cap of model families,
// both through a window or without one. Others are compiled where they are used (flex_attention.h).
using PlainMod = FlexMod<NoScoreMod, WindowMask>;
using SoftCapMod = FlexMod<SoftCap, WindowMask>;

// What a model's layers ask for, by numbers.
struct ModelMod {
  float softcap = 0;  // > 0: SoftCap
  int window = 0;     // > 0: WindowMask
};
// run(mod) with the one of the two that these numbers make.
template <typename Run>
auto WithModelMod(const ModelMod& m, Run&& run) {
  const WindowMask mask{m.window > 0 ? m.window : WindowMask::kAll};
  return m.softcap > 0 ? run(SoftCapMod{{m.softcap}, mask}) : run(PlainMod{{}, mask});
}

}  // namespace quire
