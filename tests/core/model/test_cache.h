// A paged cache for decoder tests: fixed room for each sequence, physical pages and metadata groups
// shuffled, so that a kernel that mixes up logical and physical ids is found out.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "core/base/check.h"
#include "core/model/decoder.h"

namespace quire {

class TestCache {
 public:
  TestCache(const ModelConfig& config, const ShardPlan& plan, DType dtype, int page_size, int sequences,
            int64_t max_tokens) {
    std::mt19937 rng(page_size * 1000 + sequences);
    for (const CacheKind& kind : CacheKinds(config, plan)) {
      const int heads = kind.kv_heads;
      Result<PageFormat> format = PageFormat::Create(dtype, page_size, std::max(1, heads), kind.k_dim, kind.v_dim);
      CHECK(format.ok());
      if (heads == 0) {  // tables without memory behind them, as the engine's
        format->kv_heads = 0;
        format->k_page_stride = format->v_page_stride = format->meta_group_stride = format->over_group_stride = 0;
      }
      kinds_.push_back(std::make_unique<Kind>());
      Kind& k = *kinds_.back();
      const int64_t pages = (max_tokens + page_size - 1) / page_size;
      const int64_t groups = (pages + kPagesPerGroup - 1) / kPagesPerGroup;
      Fill(rng, sequences, pages, k.page_ids, k.page_begin);
      Fill(rng, sequences, groups, k.group_ids, k.group_begin);
      k.view.table = {.format = *format,
                      .page_ids = k.page_ids.data(),
                      .page_begin = k.page_begin.data(),
                      .group_ids = k.group_ids.data(),
                      .group_begin = k.group_begin.data(),
                      .num_seqs = sequences};
      for (size_t layer = 0; layer < kind.layers.size(); ++layer) {
        k.view.layers.push_back({.k = Memory(k, dtype, sequences * pages * format->k_page_stride),
                                 .v = Memory(k, dtype, sequences * pages * format->v_page_stride),
                                 .meta = Memory(k, dtype, sequences * groups * format->meta_group_stride),
                                 .over = Memory(k, dtype, sequences * groups * format->over_group_stride)});
      }
    }
    for (const auto& k : kinds_) views_.push_back(k->view);
  }

  const std::vector<CacheView>& views() const { return views_; }

 private:
  struct Kind {
    std::vector<int32_t> page_ids, page_begin, group_ids, group_begin;
    std::vector<Tensor> memory;
    CacheView view;
  };

  static void Fill(std::mt19937& rng, int sequences, int64_t each, std::vector<int32_t>& ids,
                   std::vector<int32_t>& begin) {
    ids.resize(sequences * each);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng);
    for (int s = 0; s <= sequences; ++s) begin.push_back(static_cast<int32_t>(s * each));
  }

  static void* Memory(Kind& kind, DType dtype, int64_t elements) {
    Result<Tensor> tensor = Tensor::Create(dtype, {elements});
    CHECK(tensor.ok());
    kind.memory.push_back(std::move(*tensor));
    return kind.memory.back().view().data;
  }

  std::vector<std::unique_ptr<Kind>> kinds_;
  std::vector<CacheView> views_;
};

}  // namespace quire
