// Every kernel that uses shared memory, on tiny shapes with a thread of the system per CUDA thread, under ThreadSanitizer: a
// race is reported and fails the process. Results are compared too, so that the shapes are known to do their work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/hierarchical.h"
#include "kernels/cuda/hybrid.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/missing_mass.h"
#include "kernels/cuda/page_ops.h"
#include "kernels/cuda/page_weights.h"
#include "kernels/cuda/prefill_mass.h"
#include "kernels/cuda/quest.h"
#include "kernels/cuda/reuse.h"
#include "kernels/cuda/slot_map.h"
#include "kernels/cuda/sparq.h"
#include "kernels/cuda/top_candidates.h"
#include "kernels/cuda/top_pages.h"
#include "kernels/metadata_codes.h"
#include "kernels/reference/attention.h"
#include "kernels/reference/attention_mass.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/paged_layer.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

using testing::PagedLayer;
using testing::SeededFloats;

class KernelRaces : public ::testing::Test {
 protected:
  static emulator::Options Threads() {
    emulator::Options options;
    options.os_threads = true;
    return options;
  }
  emulator::ScopedOptions scoped_{Threads()};
};

TEST_F(KernelRaces, RmsNorm) {
  const int64_t width = 512;  // two warps
  const std::vector<float> x = SeededFloats(width, 1), weight(static_cast<size_t>(width), 1.0f);
  std::vector<float> out(x.size());
  cuda::RmsNormParams p;
  p.x = x.data();
  p.weight = weight.data();
  p.out = out.data();
  p.rows = 1;
  p.width = p.x_stride = p.out_stride = width;
  ASSERT_TRUE(cuda::RmsNorm(Stream{}, DType::kF32, DType::kF32, p).ok());
  double squares = 0;
  for (const float v : out) squares += double{v} * v;
  EXPECT_NEAR(squares / static_cast<double>(width), 1.0, 1e-3);
}

TEST_F(KernelRaces, KvAppend) {
  PagedLayer layer(DType::kBF16, 4, 1, 8, 8, {8});
  const testing::Typed k(DType::kBF16, SeededFloats(64, 1));
  const std::vector<int32_t> seq(8, 0), pos{0, 1, 2, 3, 4, 5, 6, 7};
  cuda::KvAppendParams p;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.k = p.v = k.data();
  p.k_stride = p.v_stride = 8;
  p.row_seq = seq.data();
  p.row_pos = pos.data();
  p.rows = 8;
  ASSERT_GT(cuda::KvAppendConfig::For(layer.format, 0, 8, 1).row_lanes, 1);
  ASSERT_TRUE(cuda::KvAppend(Stream{}, DType::kBF16, p).ok());
  for (int c = 0; c < 8; ++c) {
    float most = -1e30f;
    for (int i = 4; i < 8; ++i) most = std::max(most, k.At(static_cast<size_t>(i * 8 + c)));
    EXPECT_EQ(layer.MetaAt(0, 1, 0, 1, c), most);
  }
}

// Two warps encode a group that an append makes whole, and again from the pages' K.
TEST_F(KernelRaces, CodesOfWholeGroups) {
  PagedLayer layer(DType::kF32, 1, 1, 64, 8, {kPagesPerGroup}, true, true);
  const std::vector<float> k = SeededFloats(kPagesPerGroup * 64, 1);
  const std::vector<int32_t> seq(kPagesPerGroup, 0), pos{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  cuda::KvAppendParams p;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.k = p.v = k.data();
  p.k_stride = 64;
  p.v_stride = 8;
  p.row_seq = seq.data();
  p.row_pos = pos.data();
  p.rows = kPagesPerGroup;
  ASSERT_TRUE(cuda::KvAppend(Stream{}, DType::kF32, p).ok());
  PagedLayer cpu = layer;
  EncodeMetadata(cpu.Pages(), cpu.format, cpu.groups[0]);
  EXPECT_TRUE(layer.codes == cpu.codes);
  std::fill(layer.codes.begin(), layer.codes.end(), std::byte{0x11});
  LayersOfPages all;
  all.first = layer.Pages();
  all.format = layer.format;
  cuda::MetadataRecompute recompute;
  recompute.group = layer.groups[0];
  recompute.column = kPagesPerGroup - 1;
  recompute.slots = 1;
  std::copy_n(layer.ids.begin(), kPagesPerGroup, recompute.pages);
  ASSERT_TRUE(cuda::RecomputeMetadata(Stream{}, all, &recompute, 1).ok());
  EXPECT_TRUE(layer.codes == cpu.codes);
}

// Pages of one token, 16 to a metadata group with random bounds; eight are listed.
struct PageSelection {
  explicit PageSelection(int tokens, bool codes = false)
      : length(tokens),
        layer(DType::kF32, 1, 1, 16, 16, {tokens}, true, codes),
        q(SeededFloats(2 * 16, 2)),
        pages(8),
        counts(1) {
    const std::vector<float> bounds = SeededFloats(layer.meta.size() / sizeof(float), 1);
    std::memcpy(layer.meta.data(), bounds.data(), layer.meta.size());
    std::memcpy(layer.over.data(), bounds.data(), layer.over.size());
    if (codes) {
      auto* over = reinterpret_cast<float*>(layer.over.data());
      for (size_t i = 0; i < layer.over.size() / sizeof(float); ++i) over[i] = i / 16 % 2 == 0 ? -10.0f : 10.0f;
      for (int g = 0; g < tokens / kPagesPerGroup; ++g) {
        EncodeMetadata(layer.Pages(), layer.format, layer.groups[static_cast<size_t>(g)]);
      }
    }
    p.q = q.data();
    p.q_stride = 32;
    p.rows = 1;
    p.q_heads = 2;
    p.row_seq = &seq;
    p.row_len = &length;
    p.pages = layer.Pages();
    p.table = layer.Table();
    p.budget = {8, 1, 1};
    p.max_groups = (tokens + kPagesPerGroup - 1) / kPagesPerGroup;
    scores.resize(static_cast<size_t>(p.max_groups * kPagesPerGroup));
    p.scores = scores.data();
    selection.pages = pages.data();
    selection.counts = counts.data();
    selection.max_pages = 8;
  }
  void ExpectAList() const {
    EXPECT_EQ(counts[0], 8);
    EXPECT_EQ(pages[0], 0);
    EXPECT_EQ(pages[7], length - 1);
    EXPECT_TRUE(std::is_sorted(pages.begin(), pages.end()));
  }
  int32_t seq = 0, length;
  PagedLayer layer;
  std::vector<float> q, scores;
  std::vector<int32_t> pages, counts;
  cuda::QuestParams p;
  SelectionView selection;
};

TEST_F(KernelRaces, QuestScoresAndTopPages) {
  PageSelection s(40);  // three groups, three warps
  ASSERT_TRUE(cuda::QuestSelect(Stream{}, DType::kF32, s.p, s.selection).ok());
  s.ExpectAList();
}

TEST_F(KernelRaces, MissingMass) {
  PageSelection s(40);
  s.counts[0] = 0;  // all are left out
  const std::vector<float> lse{5.0f, 6.0f};
  std::vector<float> workspace(cuda::MissingMassWorkspace(s.layer.format, 1, 2, 3) / sizeof(float));
  float sum = -1;
  double want = 0;
  for (size_t h = 0; h < 2; ++h) {
    double left = 0;
    for (int page = 0; page < 40; ++page) {
      double score = 0;
      for (int c = 0; c < 16; ++c) {
        const float q = s.q[h * 16 + static_cast<size_t>(c)];
        score += 0.25 * q * s.layer.MetaAt(0, page, 0, q > 0 ? 1 : 0, c);
      }
      left += std::exp(score - lse[h]);
    }
    want += left / (1 + left);
  }
  cuda::MissingMassParams p;
  p.q = s.q.data();
  p.q_stride = 32;
  p.rows = 1;
  p.q_heads = 2;
  p.row_seq = &s.seq;
  p.row_len = &s.length;
  p.pages = s.layer.Pages();
  p.table = s.layer.Table();
  p.scale = 0.25f;
  p.selection = s.selection;
  p.lse = lse.data();
  p.max_groups = 3;
  p.sums = &sum;
  ASSERT_TRUE(cuda::MissingMass(Stream{}, p, workspace.data()).ok());
  EXPECT_NEAR(sum, want, 1e-5);
}

TEST_F(KernelRaces, HierarchicalSelect) {
  for (const bool codes : {false, true}) {
    PageSelection s(140, codes);  // nine groups, of which one is kept; by codes half of them
    std::vector<float> group_scores(9);
    std::vector<int32_t> kept(9), kept_counts(1);
    cuda::HierarchicalParams h;
    h.quest = s.p;
    h.longest = s.length;
    h.keep_billionths = codes ? GroupCut::kAll / 2 : 1;
    h.codes = codes;
    h.group_scores = group_scores.data();
    h.kept = kept.data();
    h.kept_counts = kept_counts.data();
    ASSERT_TRUE(cuda::HierarchicalSelect(Stream{}, h, s.selection).ok());
    EXPECT_EQ(kept_counts[0], codes ? 5 : 1);
    s.ExpectAList();
  }
}

// A row that selects, whose list is kept, and then one that reads it again with two pages more.
TEST_F(KernelRaces, KeepOrList) {
  PagedLayer layer(DType::kF32, 1, 1, 16, 16, {300}, false);
  std::vector<float> entries(300, 0.0f);
  std::vector<int32_t> list{0, 3, 17, 290, 297}, counts{5}, pages(300), selecting(1);
  std::copy(list.begin(), list.end(), pages.begin());
  const PageHistory history{entries.data(), 300, 1, 300, 1};
  const int32_t seq = 0;
  for (const int32_t length : {298, 300}) {
    cuda::ReuseParams p;
    p.steps = 4;
    p.rows = 1;
    p.row_seq = &seq;
    p.row_len = &length;
    p.table = layer.Table();
    p.history = &history;
    p.selecting = selecting.data();
    p.selection.pages = pages.data();
    p.selection.counts = counts.data();
    p.selection.max_pages = 300;
    ASSERT_TRUE(cuda::RowsThatSelect(Stream{}, p).ok());
    EXPECT_EQ(selecting[0], length == 298 ? 0 : -1);
    ASSERT_TRUE(cuda::KeepOrList(Stream{}, p).ok());
  }
  list.insert(list.end(), {298, 299});
  EXPECT_EQ(counts[0], 7);
  EXPECT_TRUE(std::equal(list.begin(), list.end(), pages.begin()));
}

TEST_F(KernelRaces, PageWeightsAndTopShare) {
  // Two blocks' worth of pages of K, of some words and of all.
  PagedLayer layer(DType::kBF16, 16, 1, 16, 16, {300}, false);
  const testing::Typed k(DType::kBF16, SeededFloats(layer.k.size() / 2, 1));
  layer.k = k.bytes();
  const std::vector<float> q = SeededFloats(2 * 16, 2);
  const int32_t seq = 0, length = 300, count = 19;
  std::vector<float> max(38), sum(38), weights(19);
  std::vector<int32_t> list(19), pages(19), counts(1);
  std::iota(list.begin(), list.end(), 0);
  for (const int words : {0, 3}) {
    ASSERT_TRUE(cuda::PageWeights(Stream{}, {.q = q.data(),
                                             .q_stride = 32,
                                             .rows = 1,
                                             .q_heads = 2,
                                             .row_seq = &seq,
                                             .row_len = &length,
                                             .pages = layer.Pages(),
                                             .table = layer.Table(),
                                             .words = words,
                                             .scale = 0.25f,
                                             .max_pages = 19,
                                             .max = max.data(),
                                             .sum = sum.data(),
                                             .weights = weights.data()})
                    .ok());
    EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.0), 2, 1e-4);
  }
  SelectionView selection;
  selection.pages = pages.data();
  selection.counts = counts.data();
  selection.max_pages = 19;
  ASSERT_TRUE(cuda::TopShare(Stream{}, {.weights = weights.data(),
                                        .lists = list.data(),
                                        .counts = &count,
                                        .list_stride = 19,
                                        .rows = 1,
                                        .kv_heads = 1,
                                        .page_size = 16,
                                        .budget = {19, 1, 1},
                                        .share = 0.9,
                                        .row_seq = &seq,
                                        .row_len = &length,
                                        .selection = selection})
                  .ok());
  EXPECT_GT(counts[0], 2);
  EXPECT_LT(counts[0], 19);
}

// Tokens of pages of four, their list, and the mean of V, whose sums are missing at first and there the second time.
TEST_F(KernelRaces, SparqTokensAndCorrection) {
  constexpr int kLength = 62, kPages = 16, kDim = 40;
  PagedLayer layer(DType::kF32, 4, 1, kDim, kDim, {kLength}, false);
  const std::vector<float> k = SeededFloats(layer.k.size() / 4, 1), v = SeededFloats(layer.v.size() / 4, 3), q = SeededFloats(2 * kDim, 2);
  std::memcpy(layer.k.data(), k.data(), layer.k.size());
  std::memcpy(layer.v.data(), v.data(), layer.v.size());
  const int32_t seq = 0, length = kLength;
  std::vector<float> max(2 * kPages), sum(2 * kPages), weights(kPages), scores(2 * kPages * 4), softmax(4), token_weights(kPages * 4);
  std::vector<float> entries(kPages * (kDim + 1), 0.0f), alpha(2), mean(kDim);
  std::vector<int32_t> tokens(20), token_counts(1), pages(kPages), counts(1);
  std::vector<uint64_t> masks(kPages);
  const PageHistory history{entries.data(), kPages * (kDim + 1), 1, kPages, kDim + 1};
  ASSERT_TRUE(cuda::PageWeights(Stream{}, {.q = q.data(),
                                           .q_stride = 2 * kDim,
                                           .rows = 1,
                                           .q_heads = 2,
                                           .row_seq = &seq,
                                           .row_len = &length,
                                           .pages = layer.Pages(),
                                           .table = layer.Table(),
                                           .words = 5,
                                           .max_pages = kPages,
                                           .max = max.data(),
                                           .sum = sum.data(),
                                           .weights = weights.data(),
                                           .token_scores = scores.data(),
                                           .softmax = softmax.data()})
                  .ok());
  const cuda::SparqRows rows{.rows = 1,
                             .q_heads = 2,
                             .row_seq = &seq,
                             .row_len = &length,
                             .pages = layer.Pages(),
                             .table = layer.Table(),
                             .max_pages = kPages,
                             .shares = sum.data(),
                             .token_scores = scores.data(),
                             .softmax = softmax.data()};
  SelectionView selection;
  selection.pages = pages.data();
  selection.counts = counts.data();
  selection.max_pages = kPages;
  selection.slot_mask = masks.data();
  selection.mask_words = 1;
  selection.alpha = alpha.data();
  selection.v_mean = mean.data();
  ASSERT_TRUE(cuda::TopTokens(Stream{}, {.rows = rows,
                                         .budget = {20, 2, 3},
                                         .weights = token_weights.data(),
                                         .tokens = tokens.data(),
                                         .counts = token_counts.data(),
                                         .max_tokens = 20,
                                         .selection = selection})
                  .ok());
  EXPECT_EQ(token_counts[0], 20);
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(cuda::SparqCorrect(Stream{}, {.rows = rows, .history = &history, .selection = selection}).ok());
    for (int c = 0; c < kDim; ++c) {
      double want = 0;
      for (int pos = 0; pos < kLength; ++pos) want += layer.VAt(0, pos, 0, c);
      EXPECT_NEAR(mean[static_cast<size_t>(c)], want / kLength, 1e-5);
    }
    for (const float a : alpha) EXPECT_TRUE(a > 0 && a <= 1) << a;
  }
}

TEST_F(KernelRaces, HybridSelect) {
  PageSelection s(40);
  ASSERT_TRUE(cuda::HybridSelect(Stream{}, s.p, 5, s.selection).ok());
  s.ExpectAList();
}

TEST_F(KernelRaces, TopCandidates) {
  const std::vector<float> logits = SeededFloats(300, 1);
  std::vector<int32_t> ids(5);
  std::vector<float> values(5), lse(1);
  std::vector<std::byte> workspace(cuda::TopCandidatesConfig::For(1, 300, 5).workspace_bytes);
  ASSERT_TRUE(cuda::TopCandidates(Stream{}, DType::kF32, {logits.data(), 300, 1, 300, 0, 5, ids.data(), values.data(), lse.data(), workspace.data()}).ok());
  EXPECT_EQ(values[0], *std::max_element(logits.begin(), logits.end()));
}

// Edits that other threads' keys are written before.
TEST_F(KernelRaces, TopCandidatesOfAnEditedRow) {
  const std::vector<float> logits = SeededFloats(300, 1);
  std::vector<LogitEdit> edits;
  for (int32_t id = 0; id < 300; id += 3) edits.push_back({299 - id, 100.0f - static_cast<float>(id)});
  const CandidateRow row{0, 2, 0, static_cast<int32_t>(edits.size())};
  std::vector<int32_t> ids(5);
  std::vector<float> values(5), lse(1);
  std::vector<std::byte> workspace(cuda::TopCandidatesConfig::For(1, 300, 5).workspace_bytes);
  ASSERT_TRUE(cuda::TopCandidates(Stream{}, DType::kF32,
                                  {logits.data(), 300, 1, 300, 0, 5, ids.data(), values.data(), lse.data(), workspace.data(), &row,
                                   edits.data()})
                  .ok());
  EXPECT_EQ(ids[0], 299);
  EXPECT_EQ(values[0], (logits[299] + 100) * 2);
}

// Two chunks and their merge.
void DecodeAttention(int group) {
  PagedLayer layer(DType::kBF16, 16, 1, 64, 64, {150}, false);
  const testing::Typed k(DType::kBF16, SeededFloats(layer.k.size() / 2, 1)), v(DType::kBF16, SeededFloats(layer.v.size() / 2, 2));
  layer.k = k.bytes();
  layer.v = v.bytes();
  const std::vector<float> q = SeededFloats(static_cast<size_t>(group) * 64, 3);
  const int32_t seq = 0, length = 150;
  std::vector<float> out(q.size()), want(q.size()), mass(10), want_mass(10);
  AttentionDecodeParams p;
  p.q = q.data();
  p.out = out.data();
  p.q_stride = p.out_stride = group * 64;
  p.rows = 1;
  p.q_heads = group;
  p.row_seq = &seq;
  p.row_len = &length;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.scale = 0.125f;
  p.mass = mass.data();
  p.mass_pages = 10;
  std::vector<float> workspace(cuda::AttentionDecodeWorkspace(p, 10) / sizeof(float));
  ASSERT_FALSE(workspace.empty());
  std::vector<int32_t> counters(cuda::kDecodeCounters);
  ASSERT_TRUE(cuda::AttentionDecode(Stream{}, p, 10, PlainMod{}, workspace.data(), counters.data()).ok());
  p.out = want.data();
  p.mass = want_mass.data();
  reference::AttentionDecode(p, PlainMod{});
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(out[i], want[i], 1e-4);
  for (size_t i = 0; i < mass.size(); ++i) ASSERT_NEAR(mass[i], want_mass[i], 1e-4);
}
TEST_F(KernelRaces, AttentionDecode) { DecodeAttention(2); }
TEST_F(KernelRaces, AttentionDecodeOnTensorCores) { DecodeAttention(4); }

// Three blocks of keys, so that a stage is used again; all warps have rows.
void PrefillAttention(int page_size, int group, double tolerance) {
  PagedLayer layer(DType::kBF16, page_size, 1, 64, 64, {90}, false);
  const testing::Typed k(DType::kBF16, SeededFloats(layer.k.size() / 2, 1)), v(DType::kBF16, SeededFloats(layer.v.size() / 2, 2));
  layer.k = k.bytes();
  layer.v = v.bytes();
  constexpr int kRows = 4;
  const std::vector<float> q = testing::Typed(DType::kBF16, SeededFloats(static_cast<size_t>(group) * kRows * 64, 3)).Floats();
  std::vector<float> out(q.size()), want(q.size());
  const PrefillChunk chunk{0, 0, kRows, 86};
  AttentionPrefillParams p;
  p.q = q.data();
  p.out = out.data();
  p.q_stride = p.out_stride = group * 64;
  p.q_heads = group;
  p.chunks = &chunk;
  p.num_chunks = 1;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.scale = 0.125f;
  ASSERT_TRUE(cuda::AttentionPrefill(Stream{}, p, kRows).ok());
  p.out = want.data();
  reference::AttentionPrefill(p, PlainMod{});
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(out[i], want[i], tolerance);
}
TEST_F(KernelRaces, AttentionPrefill) { PrefillAttention(12, 4, 1e-5); }
TEST_F(KernelRaces, AttentionPrefillOnTensorCores) { PrefillAttention(16, 32, 4e-3); }

// Two heads after one another over the same memory; pages of 12: a run has two.
TEST_F(KernelRaces, PrefillMass) {
  PagedLayer layer(DType::kBF16, 12, 1, 64, 64, {90}, false);
  const testing::Typed k(DType::kBF16, SeededFloats(layer.k.size() / 2, 1));
  layer.k = k.bytes();
  constexpr int kRows = 4;
  const std::vector<float> q = SeededFloats(2 * kRows * 64, 3);
  std::vector<float> out(q.size()), lse(2 * kRows), mass(kRows * 8), want(mass.size());
  const PrefillChunk chunk{0, 0, kRows, 86};
  AttentionPrefillParams attention;
  attention.q = q.data();
  attention.out = out.data();
  attention.lse = lse.data();
  attention.q_stride = attention.out_stride = 2 * 64;
  attention.q_heads = 2;
  attention.chunks = &chunk;
  attention.num_chunks = 1;
  attention.pages = layer.Pages();
  attention.table = layer.Table();
  attention.scale = 0.125f;
  reference::AttentionPrefill(attention, PlainMod{});
  PrefillMassParams p;
  p.q = q.data();
  p.q_stride = 2 * 64;
  p.lse = lse.data();
  p.q_heads = 2;
  p.chunk = chunk;
  p.pages = attention.pages;
  p.table = attention.table;
  p.scale = 0.125f;
  p.mass = mass.data();
  p.mass_pages = 8;
  ASSERT_TRUE(cuda::PrefillMass(Stream{}, p, PlainMod{}).ok());
  p.mass = want.data();
  reference::PrefillMass(p, PlainMod{});
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(mass[i], want[i], 1e-4);
}

// Five heads: two rounds over the same memory.
TEST_F(KernelRaces, SlotMass) {
  PagedLayer layer(DType::kF32, 4, 1, 8, 8, {40}, false);
  const std::vector<float> k = SeededFloats(layer.k.size() / sizeof(float), 1), q = SeededFloats(5 * 8, 2);
  std::memcpy(layer.k.data(), k.data(), layer.k.size());
  const std::vector<float> lse(5, 3.0f);
  const int32_t seq = 0, length = 39;
  std::vector<float> mass(40, -1.0f);
  SlotMassParams p;
  p.q = q.data();
  p.q_stride = 40;
  p.lse = lse.data();
  p.rows = 1;
  p.q_heads = 5;
  p.row_seq = &seq;
  p.row_len = &length;
  p.pages = layer.Pages();
  p.table = layer.Table();
  p.scale = 0.25f;
  p.mass = mass.data();
  p.mass_slots = 40;
  ASSERT_TRUE(cuda::SlotMass(Stream{}, p, PlainMod{}).ok());
  for (int slot = 0; slot < length; ++slot) {
    double want = 0;
    for (int h = 0; h < 5; ++h) {
      double score = 0;
      for (int c = 0; c < 8; ++c) score += 0.25 * q[static_cast<size_t>(h * 8 + c)] * layer.KAt(0, slot, 0, c);
      want += std::exp(std::min(0.0, score - 3));
    }
    ASSERT_NEAR(mass[static_cast<size_t>(slot)], want, 1e-5);
  }
  EXPECT_EQ(mass[39], 0.0f);
}

// The lightest slot is in another warp than the first.
TEST_F(KernelRaces, EvictSlots) {
  std::vector<int32_t> positions(300);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<float> weights(300, 1.0f);
  weights[250] = weights[130] = 0.5f;
  const SlotMap map{positions.data(), weights.data(), 1, 300};
  const int32_t position = 300;
  int32_t taken = -1;
  ASSERT_TRUE(cuda::EvictSlots(Stream{}, 4, 20, {1, 1, &position, &map, &taken}).ok());
  EXPECT_EQ(taken, 130);
  EXPECT_EQ(positions[130], 300);
}

}  // namespace
}  // namespace quire
