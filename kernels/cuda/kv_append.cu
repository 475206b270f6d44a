// Blocks: x is a row, z a role, y a KV head (or, behind those, some heads of q). Role 0 writes K of a whole page and its
// column of metadata: the block of the first row that this call brings to the page does all of them, the others leave.
// Role 1 writes a row's V, two slots a word where the next row is the word's other slot. Role 2 keeps the min and max over a
// metadata group: the block of the group's first row reads K of all the group's rows again (from L2), so that no block waits
// for another and no atomics are needed.
//
// Where metadata is kept in 8 bits, too, a second launch follows: the block of a row that makes its group whole encodes it.
#include "kernels/cuda/kv_append.h"

#include <algorithm>

#include "kernels/cuda/metadata_codes.cuh"
#include "kernels/cuda/simt.h"

namespace quire::cuda {
namespace {

constexpr int kMaxRowLanes = 4;
constexpr float kInfinity = __builtin_huge_valf();

// Where a row of a KV head goes.
struct Place {
  const int32_t* row_pos;  // [rows] the head's
  int seq, pos, page, slot;
};

QUIRE_DEVICE Place PlaceOf(const KvAppendParams& p, int64_t row, int head) {
  const int32_t* row_pos = p.row_pos + head * p.pos_head_stride;
  const int seq = p.row_seq[row], pos = row_pos[row];
  const int page = pos / p.table.format.page_size;
  return {row_pos, seq, pos, page, pos - page * p.table.format.page_size};
}

// True while `row` belongs to the same sequence and to the same run of kPages logical pages as `at`.
template <int kPages>
QUIRE_DEVICE bool SameRun(const KvAppendParams& p, const Place& at, int64_t row) {
  if (row < 0 || row >= p.rows || p.row_seq[row] != at.seq) return false;
  return at.row_pos[row] / p.table.format.page_size / kPages == at.page / kPages;
}

// Channel c of one head of one row, rotated.
template <typename In>
QUIRE_DEVICE float Rotated(const KvAppendParams& p, const In* head, int64_t row, int c) {
  const float x = simt::ToFloat(head[c]);
  if (p.cos_sin == nullptr || c >= p.rotary_dim) return x;
  const int half = p.rotary_dim / 2;
  const float* table = p.cos_sin + row * p.rotary_dim;
  const bool second = p.interleaved ? c % 2 == 1 : c >= half;
  const int pair = p.interleaved ? c / 2 : (second ? c - half : c);
  const int partner = p.interleaved ? c ^ 1 : (second ? c - half : c + half);
  const float cosine = table[pair], sine = table[half + pair];
  const float y = simt::ToFloat(head[partner]) * sine;
  return second ? simt::Fma(x, cosine, y) : simt::Fma(x, cosine, -y);
}

// In: rows; T: cache.
template <typename In, typename T>
struct KvAppendKernel {
  struct Params {
    KvAppendParams p;
    KvAppendConfig c;
  };
  static constexpr const char* kName = "kv_append";
  static constexpr int kMaxThreads = 512;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWord = 4 / static_cast<int>(sizeof(T));

  struct Range {
    float min[kWord], max[kWord];
  };

  // K of the run of kPages pages that begins with `row`: stored (kStore) and its min and max put with what `old` says.
  // min and max of channel c lie at meta[c * step] and meta[(k_dim + c) * step].
  template <int kPages, bool kStore>
  QUIRE_DEVICE static void Keys(const KvAppendParams& p, const KvAppendConfig& config, int64_t row, const Place& at, int h,
                                T* meta, int step, bool reset) {
    const PageFormat& f = p.table.format;
    auto* ranges = reinterpret_cast<Range*>(simt::SharedBytes());  // [row_lanes][lanes]
    const int lane = simt::ThreadIndex() % config.lanes, row_lane = simt::ThreadIndex() / config.lanes;
    const int words = f.k_dim / kWord;
    T* k = nullptr;
    if constexpr (kStore) {
      const int64_t id = p.table.page_ids[p.table.page_begin[at.seq] + at.page];
      k = static_cast<T*>(p.pages.k) + id * f.k_page_stride + h * f.k_head_stride;
    }
    for (int first = 0; first < words; first += config.lanes) {
      const int word = first + lane;
      Range range;
      for (int i = 0; i < kWord; ++i) {
        range.min[i] = kInfinity;
        range.max[i] = -kInfinity;
      }
      if (word < words) {
        for (int64_t r = row + row_lane; SameRun<kPages>(p, at, r); r += config.row_lanes) {
          const In* head = static_cast<const In*>(p.k) + r * p.k_stride + int64_t{h} * f.k_dim;
          T rounded[kWord];
          for (int i = 0; i < kWord; ++i) {
            rounded[i] = simt::FromFloat<T>(Rotated(p, head, r, word * kWord + i));
            const float x = simt::ToFloat(rounded[i]);
            range.min[i] = x < range.min[i] ? x : range.min[i];
            range.max[i] = x > range.max[i] ? x : range.max[i];
          }
          if constexpr (kStore) {
            const int slot = at.row_pos[r] % f.page_size;
            uint32_t bits;
            __builtin_memcpy(&bits, rounded, 4);
            simt::Store(k + f.KOffset(slot, word * kWord), bits);
          }
        }
      }
      if (meta == nullptr) continue;
      if (config.row_lanes > 1) {
        ranges[simt::ThreadIndex()] = range;
        simt::SyncThreads();
      }
      if (row_lane == 0 && word < words) {
        for (int i = 0; i < kWord; ++i) {
          const int c = word * kWord + i;
          T& min = meta[int64_t{c} * step];
          T& max = meta[(int64_t{f.k_dim} + c) * step];
          float low = range.min[i], high = range.max[i];
          for (int other = 1; other < config.row_lanes; ++other) {
            const Range& o = ranges[other * config.lanes + lane];
            low = o.min[i] < low ? o.min[i] : low;
            high = o.max[i] > high ? o.max[i] : high;
          }
          if (!reset) {
            const float old_low = simt::ToFloat(min), old_high = simt::ToFloat(max);
            low = low < old_low ? low : old_low;
            high = high > old_high ? high : old_high;
          }
          min = simt::FromFloat<T>(low);
          max = simt::FromFloat<T>(high);
        }
      }
      if (config.row_lanes > 1) simt::SyncThreads();
    }
  }

  QUIRE_DEVICE static void Values(const KvAppendParams& p, int64_t row, const Place& at, int h) {
    const PageFormat& f = p.table.format;
    const bool first_of_word = at.slot % kWord == 0;
    const bool with_next = kWord == 2 && first_of_word && at.slot + 1 < f.page_size && SameRun<1>(p, at, row + 1) &&
                           at.row_pos[row + 1] == at.pos + 1;
    // The row before has written this one's slot with its own.
    if (!first_of_word && SameRun<1>(p, at, row - 1) && at.row_pos[row - 1] == at.pos - 1) return;
    const int64_t id = p.table.page_ids[p.table.page_begin[at.seq] + at.page];
    T* v = static_cast<T*>(p.pages.v) + id * f.v_page_stride + h * f.v_head_stride + f.VOffset(at.slot, 0);
    const In* in = static_cast<const In*>(p.v) + row * p.v_stride + int64_t{h} * f.v_dim;
    for (int c = simt::ThreadIndex(); c < f.v_dim; c += simt::BlockThreads()) {
      const T x = simt::FromFloat<T>(simt::ToFloat(in[c]));
      if (with_next) {
        const T pair[2] = {x, simt::FromFloat<T>(simt::ToFloat(in[p.v_stride + c]))};
        uint32_t bits;
        __builtin_memcpy(&bits, pair, 4);
        simt::Store(v + int64_t{c} * kWord, bits);
      } else {
        v[int64_t{c} * kWord] = x;
      }
    }
  }

  // One thread turns both channels of a pair, so that it can be done in place.
  QUIRE_DEVICE static void Queries(const KvAppendParams& p, const KvAppendConfig& config, int64_t row, int block) {
    const int half = p.rotary_dim / 2;
    const int first = block * config.q_heads_per_block;
    const int heads = p.q_heads - first < config.q_heads_per_block ? p.q_heads - first : config.q_heads_per_block;
    const float* table = p.cos_sin + row * p.rotary_dim;
    for (int i = simt::ThreadIndex(); i < heads * half; i += simt::BlockThreads()) {
      const int pair = i % half;
      In* head = static_cast<In*>(p.q) + row * p.q_stride + int64_t{first + i / half} * p.table.format.k_dim;
      In& a = head[p.interleaved ? 2 * pair : pair];
      In& b = head[p.interleaved ? 2 * pair + 1 : pair + half];
      const float x = simt::ToFloat(a), y = simt::ToFloat(b), cosine = table[pair], sine = table[half + pair];
      a = simt::FromFloat<In>(simt::Fma(x, cosine, -(y * sine)));
      b = simt::FromFloat<In>(simt::Fma(y, cosine, x * sine));
    }
  }

  QUIRE_DEVICE static void Run(const Params& params) {
    const KvAppendParams& p = params.p;
    const PageFormat& f = p.table.format;
    const int64_t row = simt::BlockX();
    const int h = simt::BlockY(), role = simt::BlockZ();
    const Place at = PlaceOf(p, row, h < f.kv_heads ? h : 0);
    if (at.seq < 0) return;
    if (h >= f.kv_heads) {
      if (role == 0) Queries(p, params.c, row, h - f.kv_heads);
      return;
    }
    if (role == 1) return Values(p, row, at, h);
    const int column = at.page % kPagesPerGroup;
    int64_t group = 0;
    if (p.pages.meta != nullptr) group = p.table.group_ids[p.table.group_begin[at.seq] + at.page / kPagesPerGroup];
    if (role == 0) {
      if (SameRun<1>(p, at, row - 1)) return;
      T* meta = p.pages.meta == nullptr
                    ? nullptr
                    : static_cast<T*>(p.pages.meta) + group * f.meta_group_stride + h * f.meta_head_stride + column;
      Keys<1, true>(p, params.c, row, at, h, meta, kPagesPerGroup, at.slot == 0);
    } else {
      if (SameRun<kPagesPerGroup>(p, at, row - 1)) return;
      T* over = static_cast<T*>(p.pages.over) + group * f.over_group_stride + h * f.over_head_stride;
      Keys<kPagesPerGroup, false>(p, params.c, row, at, h, over, 1, at.slot == 0 && column == 0);
    }
  }
};

template <typename T>
struct EncodeWholeGroupsKernel {
  using Params = KvAppendParams;
  static constexpr const char* kName = "encode_whole_groups";
  static constexpr int kMaxThreads = 128;
  static constexpr int kMinBlocks = 4;

  QUIRE_DEVICE static void Run(const Params& p) {
    const PageFormat& f = p.table.format;
    const Place at = PlaceOf(p, simt::BlockX(), 0);
    if (at.seq < 0 || at.slot != f.page_size - 1 || at.page % kPagesPerGroup != kPagesPerGroup - 1) return;
    const int h = simt::BlockY();
    const int64_t group = p.table.group_ids[p.table.group_begin[at.seq] + at.page / kPagesPerGroup];
    const int64_t meta = group * f.meta_group_stride + h * f.meta_head_stride;
    EncodeHead(static_cast<const T*>(p.pages.meta) + meta,
               static_cast<const T*>(p.pages.over) + group * f.over_group_stride + h * f.over_head_stride, f, p.pages.codes + meta);
  }
};

template <typename T>
Status EncodeWholeGroups(Stream stream, const KvAppendParams& p) {
  if (p.pages.codes == nullptr) return OkStatus();
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.grid_y = p.table.format.kv_heads;
  shape.threads = EncodeWholeGroupsKernel<T>::kMaxThreads;
  return simt::Launch<EncodeWholeGroupsKernel<T>>(shape, stream, p);
}

template <typename In, typename T>
Status LaunchAppend(Stream stream, const KvAppendParams& p) {
  using Kernel = KvAppendKernel<In, T>;
  const PageFormat& f = p.table.format;
  const bool rotate_q = p.q != nullptr && p.cos_sin != nullptr;
  const KvAppendConfig config = KvAppendConfig::For(f, rotate_q ? p.q_heads : 0, p.rows, p.table.num_seqs);
  simt::LaunchShape shape;
  shape.grid_x = p.rows;
  shape.grid_y = f.kv_heads + config.q_blocks;
  shape.grid_z = p.pages.meta != nullptr ? 3 : 2;
  shape.threads = config.threads();
  shape.shared_bytes = config.shared_bytes;
  RETURN_IF_ERROR(simt::Launch<Kernel>(shape, stream, {p, config}));
  return EncodeWholeGroups<T>(stream, p);
}

}  // namespace

KvAppendConfig KvAppendConfig::For(const PageFormat& f, int q_heads, int64_t rows, int num_seqs) {
  KvAppendConfig c;
  const int words = f.k_dim / f.word;
  c.lanes = std::min(128, (words + 31) / 32 * 32);
  // Rows that share a page are those of prompts.
  c.row_lanes = rows > 2 * int64_t{num_seqs} ? kMaxRowLanes : 1;
  c.shared_bytes = c.row_lanes > 1 ? static_cast<size_t>(c.threads() * f.word) * 2 * sizeof(float) : 0;
  if (q_heads > 0) {
    // About four pairs a thread.
    c.q_heads_per_block = std::clamp(c.threads() * 8 / f.k_dim, 1, q_heads);
    c.q_blocks = (q_heads + c.q_heads_per_block - 1) / c.q_heads_per_block;
  }
  return c;
}

std::string KvAppendConfig::ToString() const {
  return std::to_string(lanes) + " x " + std::to_string(row_lanes) + " threads, " + std::to_string(q_blocks) + " blocks of " +
         std::to_string(q_heads_per_block) + " q heads, " + std::to_string(shared_bytes) + " B shared";
}

Status KvAppend(Stream stream, DType dtype, const KvAppendParams& p) {
  if ((p.pages.meta == nullptr) != (p.pages.over == nullptr) || (p.pages.meta != nullptr && p.table.group_ids == nullptr)) {
    return Internal("append: metadata needs its groups' memory, their table and their over-group memory");
  }
  if (p.pos_head_stride != 0 && p.pages.meta != nullptr) {
    return Internal("append: metadata is of positions that all heads share");
  }
  if (p.pages.codes != nullptr && p.pages.meta == nullptr) return Internal("append: codes of 8 bits are of metadata, which isn't there");
  if (p.cos_sin != nullptr && (p.rotary_dim % 2 != 0 || p.rotary_dim > p.table.format.k_dim)) {
    return InvalidArgument("append: rotary_dim " + std::to_string(p.rotary_dim) + " is odd or above head_dim " +
                           std::to_string(p.table.format.k_dim));
  }
  const DType cache = p.table.format.dtype;
  return VisitFloatDType(cache, [&](auto t) {
    using T = decltype(t);
    if (dtype == cache) return LaunchAppend<T, T>(stream, p);
    if (dtype == DType::kF32) return LaunchAppend<float, T>(stream, p);
    return InvalidArgument("append: rows of " + std::string(DTypeName(dtype)) + " into a cache of " +
                           std::string(DTypeName(cache)) + "; rows are float32 or of the cache's type");
  });
}

}  // namespace quire::cuda
