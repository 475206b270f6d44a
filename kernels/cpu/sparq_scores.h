// SparQ's approximate attention over some channels of every key (Ribar et al., arXiv 2312.04985), summed up by pages.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace quire {

struct SparqScoreParams {
  DType dtype = DType::kBF16;
  const float* q = nullptr;  // [num_words][heads][w]: the query group at the words' channels, softmax's factor included
  int heads = 0;
  const int32_t* words = nullptr;  // [num_words] channel / w; each is [page_size][w] elements of a page's K, one run
  int num_words = 0;
  const void* k = nullptr;            // one layer and KV head: page p at element offset page_ids[p] * page_stride
  int64_t page_stride = 0;            // elements
  const int32_t* page_ids = nullptr;  // [pages]; a negative id's page weighs nothing
  int pages = 0;
  int page_size = 0;
  int last_slots = 0;  // of the last page, 1 … page_size: those that hold tokens; other pages are full
  float* max = nullptr;  // [heads][pages], head stride head_stride: the page's largest score; −inf where nothing is
  float* sum = nullptr;  // the same: Σ exp(score − max); NaN if a score is, and for no words at all
  int64_t head_stride = 0;
  // The tokens' own scores, nullable: [heads][pages * page_size], stride scores_stride; −inf for a page that isn't there.
  float* scores = nullptr;
  int64_t scores_stride = 0;
};

// score = Σ_i q_i · k_i over the words in order, f32. Slots are summed in blocks of 16, so bits don't depend on the
// vectors' width. Bytes: pages * page_size * num_words * 4. Not threaded: callers cut the pages.
void SparqScores(const SparqScoreParams& params);

// A head's softmax over all tokens: exp(score − max) · share is a token's weight.
struct SparqSoftmax {
  float max = 0;
  float share = 0;
};

// From max and sum of one KV head's pages ([heads][pages], stride head_stride): sum becomes the page's share of the head's
// softmax over all pages, and scores[page] = Σ of it over the heads. NaN where sum is; such pages are in no softmax.
// softmax: [heads], nullable.
void SparqMerge(const float* max, float* sum, int heads, int pages, int64_t head_stride, float* scores,
                SparqSoftmax* softmax = nullptr);

// Tokens' scores ([heads][count], stride `stride`) become their weights in each head's softmax, and weights[token] = Σ of
// them over the heads.
void SparqWeigh(float* scores, int heads, int64_t count, int64_t stride, const SparqSoftmax* softmax, float* weights);

}  // namespace quire
