#include "tests/kvstore/test_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kv_append.h"
#include "kernels/metadata_codes.h"
#include "kvstore/table_batch.h"

namespace quire {

float TokenValue(uint32_t token, int which, int layer, int head, int channel) {
  uint32_t x =
      token * 0x9e3779b1u + static_cast<uint32_t>(((which * 8 + layer) * 8 + head) * 64 + channel) * 0x85ebca77u;
  x ^= x >> 15;
  x *= 0x2c1b3c6du;
  x ^= x >> 12;
  return static_cast<float>(static_cast<int32_t>(x)) * 0x1p-29f;  // within ±4
}

CacheConfig TestCache::Config(int page_size, int window, bool metadata, DType dtype) {
  CacheConfig config;
  config.page_size = page_size;
  config.metadata = config.codes = metadata;
  config.groups = {{.layers = {0, 2}, .kv_heads = 2, .k_dim = 4, .v_dim = 3, .window = 0, .dtype = dtype},
                   {.layers = {1}, .kv_heads = 1, .k_dim = 2, .v_dim = 2, .window = window, .dtype = DType::kF16}};
  return config;
}

TestCache::TestCache(CacheConfig c, std::vector<GroupCapacity> capacity, int max_append, int threads)
    : config(c),
      pool(std::make_unique<ThreadPool>(threads)),
      books(KvBooks::Create(c, capacity, max_append).value()),
      storage(PageStorage::Create(c, capacity).value()) {
  ctx.pool = pool.get();
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    // As if all had just been freed, so that what was never used is spoilt as well.
    page_refs_.emplace_back(static_cast<size_t>(books.pages(g).capacity()), 1);
    group_refs_.emplace_back(static_cast<size_t>(books.metadata_groups(g).capacity()), 1);
  }
  Spoil();
}

std::vector<uint32_t> TestCache::NewTokens(int count) {
  std::vector<uint32_t> tokens(static_cast<size_t>(count));
  for (uint32_t& token : tokens) token = next_token_++;
  return tokens;
}

Status TestCache::Append(SeqId seq, const std::vector<uint32_t>& tokens) {
  RETURN_IF_ERROR(books.Append(seq, static_cast<int64_t>(tokens.size())));
  std::vector<uint32_t>& rows = appended_[seq];
  rows.insert(rows.end(), tokens.begin(), tokens.end());
  return OkStatus();
}

void TestCache::Free(SeqId seq) {
  books.Free(seq);
  appended_.erase(seq);
}

void TestCache::Run() {
  const CacheOps ops = books.TakeOps();
  storage.Execute(ctx, ops);
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    TableBatch batch;
    std::vector<int32_t> row_seq, row_pos;
    std::vector<uint32_t> row_token;
    for (const auto& [seq, tokens] : appended_) {
      const int index = batch.Add(books.Table(seq, g));
      const int64_t first = books.Length(seq) - std::ssize(tokens);
      for (size_t i = 0; i < tokens.size(); ++i) {
        row_seq.push_back(index);
        row_pos.push_back(static_cast<int32_t>(first + static_cast<int64_t>(i)));
        row_token.push_back(tokens[i]);
      }
    }
    const PageFormat& f = storage.format(g);
    for (int layer : config.groups[g].layers) {
      std::vector<float> k, v;
      for (uint32_t token : row_token) {
        for (int h = 0; h < f.kv_heads; ++h) {
          for (int c = 0; c < f.k_dim; ++c) k.push_back(TokenValue(token, 0, layer, h, c));
          for (int c = 0; c < f.v_dim; ++c) v.push_back(TokenValue(token, 1, layer, h, c));
        }
      }
      KvAppendParams params;
      params.pages = storage.Layer(layer);
      params.table = batch.View(f, config.metadata);
      params.k = k.data();
      params.k_stride = f.kv_heads * f.k_dim;
      params.v = v.data();
      params.v_stride = f.kv_heads * f.v_dim;
      params.row_seq = row_seq.data();
      params.row_pos = row_pos.data();
      params.rows = std::ssize(row_token);
      KvAppend(ctx, params);
    }
  }
  appended_.clear();
  Spoil();
}

// NaN in all that has become free: whoever still reads it, or gets it without a reset, is found out.
void TestCache::Spoil() {
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    const PageFormat& f = storage.format(g);
    VisitFloatDType(f.dtype, [&]<typename T>(T) {
      const T nan = FromFloat<T>(std::numeric_limits<float>::quiet_NaN());
      const auto fill = [&](void* base, int64_t id, int64_t stride) {
        std::fill_n(static_cast<T*>(base) + id * stride, stride, nan);
      };
      for (int32_t id = 0; id < books.pages(g).capacity(); ++id) {
        const int32_t refs = books.pages(g).refs(id);
        if (refs == 0 && page_refs_[g][id] != 0) {
          for (int layer : config.groups[g].layers) {
            fill(storage.Layer(layer).k, id, f.k_page_stride);
            fill(storage.Layer(layer).v, id, f.v_page_stride);
          }
        }
        page_refs_[g][id] = refs;
      }
      for (int32_t id = 0; id < books.metadata_groups(g).capacity(); ++id) {
        const int32_t refs = books.metadata_groups(g).refs(id);
        if (refs == 0 && group_refs_[g][id] != 0) {
          for (int layer : config.groups[g].layers) {
            fill(storage.Layer(layer).meta, id, f.meta_group_stride);
            fill(storage.Layer(layer).over, id, f.over_group_stride);
            std::fill_n(storage.Layer(layer).codes + id * f.meta_group_stride, f.meta_group_stride, uint8_t{0x55});
          }
        }
        group_refs_[g][id] = refs;
      }
    });
  }
}

namespace {

struct Where {
  const char* what;
  int layer, head, channel;
  int64_t index;
};

::testing::AssertionResult Differs(const Where& w, float is, float should) {
  return ::testing::AssertionFailure() << w.what << " layer " << w.layer << " head " << w.head << " channel "
                                       << w.channel << " index " << w.index << " is " << is << ", should be " << should;
}

// One (layer, head) of a sequence.
template <typename T>
::testing::AssertionResult HeadHolds(const LayerPages& pages, const PageFormat& f, const PageTable& table, int layer,
                                     int head, const std::vector<uint32_t>& tokens, bool metadata) {
  const int64_t n = std::ssize(tokens), num_pages = std::ssize(table.pages);
  for (int64_t p = table.first_live_page; p < num_pages; ++p) {
    const T* k = static_cast<const T*>(pages.k) + table.pages[p] * f.k_page_stride + head * f.k_head_stride;
    const T* v = static_cast<const T*>(pages.v) + table.pages[p] * f.v_page_stride + head * f.v_head_stride;
    for (int slot = 0; slot < f.page_size; ++slot) {
      const int64_t t = p * f.page_size + slot;
      for (int which = 0; which < 2; ++which) {
        const int channels = which == 0 ? f.k_dim : f.v_dim;
        for (int c = 0; c < channels; ++c) {
          const float is = ToFloat(which == 0 ? k[f.KOffset(slot, c)] : v[f.VOffset(slot, c)]);
          const Where where{which == 0 ? "K" : "V", layer, head, c, t};
          if (t < n) {
            const float should = ToFloat(FromFloat<T>(TokenValue(tokens[t], which, layer, head, c)));
            if (is != should) return Differs(where, is, should);
          } else if (!std::isfinite(is)) {  // past the length: zero, or what a truncate has left
            return Differs(where, is, 0);
          }
        }
      }
    }
  }
  if (!metadata) return ::testing::AssertionSuccess();
  const int64_t first_group = table.first_live_page / kPagesPerGroup;
  for (int64_t g = first_group; g < std::ssize(table.groups); ++g) {
    const T* meta =
        static_cast<const T*>(pages.meta) + table.groups[g] * f.meta_group_stride + head * f.meta_head_stride;
    const T* over =
        static_cast<const T*>(pages.over) + table.groups[g] * f.over_group_stride + head * f.over_head_stride;
    for (int c = 0; c < f.k_dim; ++c) {
      const float inf = std::numeric_limits<float>::infinity();
      float over_min = inf, over_max = -inf;
      for (int column = 0; column < kPagesPerGroup; ++column) {
        const int64_t page = g * kPagesPerGroup + column;
        const float is_min = ToFloat(meta[f.MetaOffset(0, c, column)]);
        const float is_max = ToFloat(meta[f.MetaOffset(1, c, column)]);
        if (page >= num_pages) {
          if (!std::isfinite(is_min)) return Differs({"min past the length", layer, head, c, page}, is_min, 0);
          if (!std::isfinite(is_max)) return Differs({"max past the length", layer, head, c, page}, is_max, 0);
          continue;
        }
        float min = inf, max = -inf;
        for (int64_t t = page * f.page_size; t < std::min(n, (page + 1) * f.page_size); ++t) {
          const float x = ToFloat(FromFloat<T>(TokenValue(tokens[t], 0, layer, head, c)));
          min = std::min(min, x);
          max = std::max(max, x);
        }
        if (is_min != min) return Differs({"page min", layer, head, c, page}, is_min, min);
        if (is_max != max) return Differs({"page max", layer, head, c, page}, is_max, max);
        over_min = std::min(over_min, min);
        over_max = std::max(over_max, max);
      }
      const float is_min = ToFloat(over[f.OverOffset(0, c)]), is_max = ToFloat(over[f.OverOffset(1, c)]);
      if (is_min != over_min) return Differs({"group min", layer, head, c, g}, is_min, over_min);
      if (is_max != over_max) return Differs({"group max", layer, head, c, g}, is_max, over_max);
      // A whole group's codes are outside of its pages' bounds, and less than a step away.
      if (n < (g + 1) * kPagesPerGroup * f.page_size || g * kPagesPerGroup < table.first_live_page) continue;
      const uint8_t* codes = pages.codes + table.groups[g] * f.meta_group_stride + head * f.meta_head_stride;
      const double step = CodeStep(is_min, is_max);
      for (int column = 0; column < kPagesPerGroup; ++column) {
        const double min = ToFloat(meta[f.MetaOffset(0, c, column)]), max = ToFloat(meta[f.MetaOffset(1, c, column)]);
        const double below = is_min + step * codes[f.MetaOffset(0, c, column)];
        const double above = is_min + step * codes[f.MetaOffset(1, c, column)];
        const Where where{"code", layer, head, c, g * kPagesPerGroup + column};
        if (below > min || below < min - 1.01 * step) return Differs(where, static_cast<float>(below), static_cast<float>(min));
        if (above < max || above > max + 1.01 * step) return Differs(where, static_cast<float>(above), static_cast<float>(max));
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace

::testing::AssertionResult TestCache::Holds(SeqId seq, const std::vector<uint32_t>& tokens) {
  if (books.Length(seq) != std::ssize(tokens)) {
    return ::testing::AssertionFailure() << "length " << books.Length(seq) << ", should be " << tokens.size();
  }
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    const PageFormat& f = storage.format(g);
    for (int layer : config.groups[g].layers) {
      for (int head = 0; head < f.kv_heads; ++head) {
        const auto result = VisitFloatDType(f.dtype, [&]<typename T>(T) {
          return HeadHolds<T>(storage.Layer(layer), f, books.Table(seq, g), layer, head, tokens, config.metadata);
        });
        if (!result) return result;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

std::vector<int64_t> TestCache::Snapshot() const {
  std::vector<int64_t> all = {books.num_sequences(), std::ssize(books.pending_ops().ops),
                              std::ssize(books.pending_ops().pages)};
  for (int g = 0; g < books.num_cache_groups(); ++g) {
    for (const PagePool* pool : {&books.pages(g), &books.metadata_groups(g)}) {
      all.push_back(pool->free());
      all.push_back(pool->reserved());
      for (int32_t id = 0; id < pool->capacity(); ++id) all.push_back(pool->refs(id));
    }
    int left = books.num_sequences();
    for (SeqId seq = 0; left > 0; ++seq) {
      if (!books.Exists(seq)) continue;
      --left;
      const PageTable& table = books.Table(seq, g);
      all.insert(all.end(), {seq, books.Length(seq), books.max_tokens(seq), table.length, table.first_live_page});
      all.insert(all.end(), table.pages.begin(), table.pages.end());
      all.insert(all.end(), table.groups.begin(), table.groups.end());
    }
  }
  return all;
}

}  // namespace quire
