// A score_mod and a mask_mod of one's own in the attention kernel, from the installed headers: one sequence of 100 tokens
// in pages of 16, one query and the last three of a prompt, and the same sums written out.
#include <quire/kernels/flex_attention.h>
#include <quire/kernels/kv_append.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  constexpr int kTokens = 100, kPage = 16, kHeads = 2, kDim = 8, kPages = (kTokens + kPage - 1) / kPage;
  quire::ThreadPool pool(1);
  quire::Context ctx;
  ctx.pool = &pool;
  const quire::PageFormat format = *quire::PageFormat::Create(quire::DType::kF32, kPage, 1, kDim, kDim);
  std::vector<float> k(kPages * format.k_page_stride), v(kPages * format.v_page_stride), x(kTokens * kDim), q(kHeads * kDim);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37f * static_cast<float>(i));
  for (size_t i = 0; i < q.size(); ++i) q[i] = std::cos(0.9f * static_cast<float>(i));
  std::vector<int32_t> ids, seq(kTokens, 0), pos;
  for (int i = 0; i < kPages; ++i) ids.push_back(kPages - 1 - i);
  for (int i = 0; i < kTokens; ++i) pos.push_back(i);
  const int32_t begin[] = {0, kPages}, len = kTokens;
  quire::KvAppendParams append;
  append.pages = {k.data(), v.data()};
  append.table = {format, ids.data(), begin, nullptr, nullptr, 1};
  append.k = append.v = x.data();
  append.k_stride = append.v_stride = kDim;
  append.row_seq = seq.data();
  append.row_pos = pos.data();
  append.rows = kTokens;
  quire::KvAppend(ctx, append);

  // What this program is about.
  const auto score_mod = [](float score, int, int head, int64_t q_idx, int64_t kv_idx) {
    return 2.0f * std::tanh(score / 2.0f) - 0.01f * static_cast<float>((head + 1) * (q_idx - kv_idx));
  };
  const auto mask_mod = [](int, int, int64_t q_idx, int64_t kv_idx) { return kv_idx < 20 || q_idx - kv_idx < 40; };
  std::vector<float> out(kHeads * kDim);
  quire::AttentionDecodeParams params;
  params.q = q.data();
  params.out = out.data();
  params.q_stride = params.out_stride = kHeads * kDim;
  params.rows = 1;
  params.q_heads = kHeads;
  params.row_seq = seq.data();
  params.row_len = &len;
  params.pages = append.pages;
  params.table = append.table;
  params.scale = 0.5f;
  auto workspace = quire::Buffer::Create(quire::AttentionDecodeWorkspace(params));
  if (!workspace.ok()) return 1;
  quire::FlexDecode(ctx, params, quire::Flex(score_mod, mask_mod), workspace->data());

  // Of what came out for a query from the sum written out.
  const auto difference_from = [&](const float* query, const float* got, int head, int position) {
    std::vector<double> y(kDim);
    double sum = 0, difference = 0;
    for (int t = 0; t <= position; ++t) {
      if (!mask_mod(0, head, position, t)) continue;
      float dot = 0;
      for (int c = 0; c < kDim; ++c) dot += query[c] * x[t * kDim + c];
      const double w = std::exp(score_mod(dot * params.scale, 0, head, position, t));
      sum += w;
      for (int c = 0; c < kDim; ++c) y[c] += w * x[t * kDim + c];
    }
    for (int c = 0; c < kDim; ++c) difference = std::fmax(difference, std::fabs(y[c] / sum - got[c]));
    return difference;
  };
  double worst = 0;
  for (int h = 0; h < kHeads; ++h) worst = std::fmax(worst, difference_from(&q[h * kDim], &out[h * kDim], h, kTokens - 1));

  // The same functors over the last rows of a prompt.
  constexpr int kRows = 3;
  std::vector<float> prompt_q(kRows * kHeads * kDim), prompt_out(prompt_q.size());
  for (size_t i = 0; i < prompt_q.size(); ++i) prompt_q[i] = std::cos(0.7f * static_cast<float>(i));
  const quire::PrefillChunk chunk{0, 0, kRows, kTokens - kRows};
  quire::AttentionPrefillParams prompt;
  prompt.q = prompt_q.data();
  prompt.out = prompt_out.data();
  prompt.q_stride = prompt.out_stride = kHeads * kDim;
  prompt.q_heads = kHeads;
  prompt.chunks = &chunk;
  prompt.num_chunks = 1;
  prompt.pages = append.pages;
  prompt.table = append.table;
  prompt.scale = params.scale;
  auto prompt_workspace = quire::Buffer::Create(quire::AttentionPrefillWorkspace(ctx, prompt));
  if (!prompt_workspace.ok()) return 1;
  quire::FlexPrefill(ctx, prompt, quire::Flex(score_mod, mask_mod), prompt_workspace->data());
  for (int row = 0; row < kRows; ++row) {
    for (int h = 0; h < kHeads; ++h) {
      worst = std::fmax(worst, difference_from(&prompt_q[(row * kHeads + h) * kDim], &prompt_out[(row * kHeads + h) * kDim], h,
                                          kTokens - kRows + row));
    }
  }
  std::printf("own functors: largest difference %.1e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
