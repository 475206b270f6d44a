// Attention history on the GPU under the emulator: what rows leave, and which pages are chosen by it, bit for bit as the
// policies have it on the CPU.
#include "kernels/cuda/page_history.h"

#include <gtest/gtest.h>

#include "kernels/cuda/top_pages.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using cuda::HistoryRule;
using testing::PagedCache;

constexpr int kPage = 4;

struct Case {
  const char* spec;
  HistoryRule rule;
};
class CudaPageHistory : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<AttentionPolicy> policy_ =
      testing::Make(std::string(GetParam().spec) + "dense_layers=0:token_budget=32:recent_tokens=8", kPage);
};
INSTANTIATE_TEST_SUITE_P(All, CudaPageHistory,
                         ::testing::Values(Case{"h2o:", HistoryRule::kSum}, Case{"tova:", HistoryRule::kLast},
                                           Case{"swa:", HistoryRule::kRing}, Case{"swa:rows=1:", HistoryRule::kRing},
                                           Case{"swa:rows=7:", HistoryRule::kRing}),
                         [](const auto& info) {
                           const std::string spec = info.param.spec;
                           return spec.substr(0, spec.find(':')) + std::to_string(info.index);
                         });

// Histories of rows with entries for so many pages each, and a few floats between KV heads.
struct Memory {
  Memory(const std::vector<int64_t>& pages, int kv_heads, int width) {
    for (const int64_t n : pages) {
      const int64_t stride = n * width + 5;
      std::vector<float>& v = values.emplace_back(static_cast<size_t>(kv_heads * stride), 0.0f);
      views.push_back({v.data(), stride, kv_heads, n, width});
    }
  }
  std::vector<std::vector<float>> values;
  std::vector<PageHistory> views;
};

void ExpectSame(const Memory& a, const Memory& b) {
  for (size_t row = 0; row < a.values.size(); ++row) ASSERT_TRUE(testing::SameBits(a.values[row], b.values[row])) << row;
}

// A prompt's rows in two lots, then steps of two sequences and a row that fills up, each behind a selection.
TEST_P(CudaPageHistory, IsThatOfTheCpu) {
  constexpr int kHeads = 2, kPrompt = 19, kSteps = 23;
  ThreadPool pool(2);
  Context ctx;
  ctx.pool = &pool;
  const int width = policy_->Declare().history;
  const std::vector<int> lengths{150 * kPage, 200 * kPage - 1};  // more pages than a block has threads
  const std::vector<int64_t> pages{150, 200};
  Memory on_cpu(pages, kHeads, width), on_gpu(pages, kHeads, width);
  PagedCache cache(DType::kF32, kPage, kHeads, 4, 4, lengths, 1);
  cache.PageId(1, 7) = -1;
  std::mt19937_64 random(5);
  const auto masses = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& x : values) x = static_cast<float>(random() % 1000) * 1e-3f;
    return values;
  };
  const auto remember = [&](RememberParams p, const Memory& cpu, const Memory& gpu, size_t first) {
    p.history = cpu.views.data() + first;
    policy_->RememberRows(ctx, p);
    p.history = gpu.views.data() + first;
    ASSERT_TRUE(cuda::RememberMass(Stream{}, GetParam().rule, p).ok());
    ExpectSame(cpu, gpu);
  };

  for (size_t seq = 0; seq < 2; ++seq) {
    for (const int begin : {0, 8}) {
      const int rows = begin == 0 ? 8 : kPrompt - 8, from = lengths[seq] - kSteps - kPrompt + begin;
      std::vector<int32_t> pos;
      for (int i = 0; i < rows; ++i) pos.push_back(from + i);
      RememberParams p;
      p.mass_pages = pos.back() / kPage + 1;
      p.rows = rows;
      p.kv_heads = kHeads;
      p.page_size = kPage;
      p.row_pos = pos.data();
      p.one_sequence = true;
      std::vector<float> mass = masses(rows * kHeads * p.mass_pages);
      for (int i = 0; i < rows * kHeads; ++i) {  // nobody pays to what it doesn't see
        for (int64_t page = pos[static_cast<size_t>(i / kHeads)] / kPage + 1; page < p.mass_pages; ++page) {
          mass[static_cast<size_t>(i * p.mass_pages + page)] = 0;
        }
      }
      p.mass = mass.data();
      remember(p, on_cpu, on_gpu, seq);
    }
  }

  for (int i = 0; i < kSteps; ++i) {
    std::vector<int32_t> seq{0, 1}, len{lengths[0] - kSteps + i + 1, lengths[1] - kSteps + i + 1};
    SelectParams s;
    s.rows = 2;
    s.q_heads = kHeads;
    s.row_seq = seq.data();
    s.row_len = len.data();
    s.table = cache.table();
    s.history = on_cpu.views.data();
    const testing::Selected want = testing::Select(*policy_, s, 2);
    // The row that fills up stands behind, where the GPU's lists have a place for it.
    seq.push_back(-1);
    len.push_back(0);
    std::vector<PageHistory> views = on_gpu.views;
    views.emplace_back();
    const int64_t stride = 224;
    std::vector<float> scores(static_cast<size_t>(3 * kHeads * stride), -12345.0f);
    ASSERT_TRUE(cuda::HistoryScores(Stream{}, GetParam().rule,
                                    {views.data(), 3, kHeads, kPage, seq.data(), len.data(), lengths[1], scores.data(), stride})
                    .ok());
    std::vector<int32_t> listed(static_cast<size_t>(3 * kHeads * want.view.max_pages), -7), counts(3 * kHeads, -7);
    SelectionView view;
    view.pages = listed.data();
    view.counts = counts.data();
    view.max_pages = want.view.max_pages;
    cuda::TopPagesParams t;
    t.scores = scores.data();
    t.score_stride = stride;
    t.rows = 3;
    t.kv_heads = kHeads;
    t.page_size = kPage;
    t.budget = PageBudget::Create(32, kPage, 8, kPage);
    t.row_seq = seq.data();
    t.row_len = len.data();
    t.page_ids = s.table.page_ids;
    t.page_begin = s.table.page_begin;
    t.selection = view;
    ASSERT_TRUE(cuda::TopPages(Stream{}, t, static_cast<int>(stride)).ok());
    for (int list = 0; list < 2 * kHeads; ++list) {
      const auto begin = listed.begin() + list * view.max_pages;
      ASSERT_EQ(std::vector<int32_t>(begin, begin + counts[static_cast<size_t>(list)]), want.List(static_cast<size_t>(list)))
          << "step " << i << " list " << list;
    }
    EXPECT_EQ(counts[2 * kHeads], 0);

    const std::vector<int32_t> pos{len[0] - 1, len[1] - 1, -1};
    RememberParams p;
    p.mass_pages = 210;
    p.rows = 2;
    p.kv_heads = kHeads;
    p.page_size = kPage;
    p.row_pos = pos.data();
    p.selection = &view;
    std::vector<float> mass(static_cast<size_t>(3 * kHeads * p.mass_pages));
    for (int list = 0; list < 2 * kHeads; ++list) {
      for (int n = 0; n < counts[static_cast<size_t>(list)]; ++n) {
        const int page = listed[static_cast<size_t>(list * view.max_pages + n)];
        mass[static_cast<size_t>(list * p.mass_pages + page)] = static_cast<float>(random() % 100) * 0.01f;
      }
    }
    p.mass = mass.data();
    p.history = on_cpu.views.data();
    policy_->RememberRows(ctx, p);
    p.rows = 3;
    p.history = views.data();
    ASSERT_TRUE(cuda::RememberMass(Stream{}, GetParam().rule, p).ok());
    ExpectSame(on_cpu, on_gpu);
  }
}

}  // namespace
}  // namespace quire
