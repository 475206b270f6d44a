// The bound of the attention that a selection leaves out, against a softmax in double precision over K itself.
#include "kernels/selection/missing_mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/attention_decode.h"
#include "kernels/reference/attention.h"
#include "kernels/reference/quest.h"
#include "tests/kernels/selecting.h"

namespace quire {
namespace {

using namespace quire::testing;  // NOLINT: this file tests nothing else

TEST(MissingMass, BoundsAreTheFormulasAndHold) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const auto& [page_size, q_heads, kv_heads, softcap] :
         std::vector<std::tuple<int, int, int, float>>{{16, 8, 2, 0.0f}, {3, 9, 3, 0.0f}, {4, 4, 1, 2.0f}}) {
      const std::vector<int> lengths{60 * page_size + 2, 41 * page_size};
      PagedCache cache(dtype, page_size, kv_heads, 32, 32, lengths, 1, true);
      cache.Fill(TwoThreads());
      Step step(cache, q_heads, {1, 0}, {lengths[1], lengths[0]}, 2);
      step.p.scale = 0.05f;  // flat enough for bounds that say something
      const Selected s =
          Select(*Make("quest:token_budget=" + std::to_string(12 * page_size), page_size), step.p, 2);
      // What was read, with its log-sum-exps.
      AttentionDecodeParams d;
      std::vector<float> out(step.q.size()), lse(static_cast<size_t>(2 * q_heads));
      d.q = step.p.q;
      d.q_stride = d.out_stride = step.p.q_stride;
      d.out = out.data();
      d.lse = lse.data();
      d.rows = 2;
      d.q_heads = q_heads;
      d.row_seq = step.p.row_seq;
      d.row_len = step.p.row_len;
      d.pages = step.p.pages;
      d.table = step.p.table;
      d.selection = &s.view;
      d.scale = step.p.scale;
      const Context ctx = TwoThreads();
      auto workspace = Buffer::Create(AttentionDecodeWorkspace(ctx, d));
      ASSERT_TRUE(workspace.ok());
      AttentionDecode(ctx, d, workspace->data(), {.softcap = softcap});
      std::vector<float> sums(2), alone(2);
      MissingMassBounds(ctx, step.p, s.view, lse.data(), softcap, sums.data(), nullptr);

      const auto capped = [&, cap = softcap](double x) { return cap > 0 ? cap * std::tanh(x / cap) : x; };
      double missing = 0, all = 0;
      for (int row = 0; row < 2; ++row) {
        const int length = step.p.row_len[row];
        const int32_t* ids = step.p.table.page_ids + step.p.table.page_begin[step.p.row_seq[row]];
        double want = 0;
        for (int head = 0; head < q_heads; ++head) {
          const int kv_head = head / (q_heads / kv_heads);
          const std::vector<int32_t> list = s.List(static_cast<size_t>(row * kv_heads + kv_head));
          const std::set<int32_t> read(list.begin(), list.end());
          // Of this head alone: quest's bounds of its group come by reducing over heads.
          SelectParams one = step.p;
          one.q_heads = kv_heads;
          std::vector<float> q(static_cast<size_t>(kv_heads * 32));
          std::copy_n(step.p.q + row * step.p.q_stride + head * 32, 32, q.begin() + kv_head * 32);
          one.q = q.data() - row * step.p.q_stride;
          const std::vector<double> bounds = reference::QuestScores(one, row, kv_head, GroupReduce::kMax);
          double in = 0, left = 0, bound = 0;
          for (int t = 0; t < length; ++t) {
            double dot = 0;
            for (int c = 0; c < 32; ++c) {
              dot += double{step.p.q[row * step.p.q_stride + head * 32 + c]} *
                     reference::KAt(step.p.table, step.p.pages, ids[t / page_size], kv_head, t % page_size, c);
            }
            (read.contains(t / page_size) ? in : left) += std::exp(capped(double{step.p.scale} * dot));
            if (!read.contains(t / page_size)) {
              bound += std::exp(capped(double{step.p.scale} * bounds[static_cast<size_t>(t / page_size)]));
            }
          }
          want += bound / (bound + in);
          EXPECT_LE(left / (left + in), bound / (bound + in) + 1e-6);
          missing += left / (left + in);
          all += bound / (bound + in);
        }
        EXPECT_NEAR(sums[static_cast<size_t>(row)], want, 1e-4 * q_heads) << row;
      }
      EXPECT_GT(missing, 0.1);  // something was left out
      EXPECT_LT(all, 2 * q_heads - 1e-3);  // and the bounds say something
      ThreadPool pool(1);
      Context single;
      single.pool = &pool;
      MissingMassBounds(single, step.p, s.view, lse.data(), softcap, alone.data(), nullptr);
      EXPECT_EQ(sums, alone);
    }
  }
}

}  // namespace
}  // namespace quire
