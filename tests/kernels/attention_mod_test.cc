// What Mods promise beside right sums: what is skipped, what is not asked for, what may change while the cache grows.
#include "tests/kernels/flex_fixture.h"

#include <atomic>

namespace quire {
namespace {

using testing::DecodeByMatrix;
using testing::DecodeCall;
using testing::FlexTest;
using testing::kLengths;
using testing::kShapes;
using testing::PagedCache;
using testing::PrefillByMatrix;
using testing::PrefillCall;
using testing::RelativeError;
using testing::SameBits;
using testing::Shape;
using testing::Tables;

class AttentionMod : public FlexTest {
 protected:
  Tables t;
};

TEST_F(AttentionMod, ABlockMaskOfALambdaChangesNothingButWhatIsTested) {
  const auto mask = [](int seq, int head, int64_t q, int64_t kv) {
    return kv / 50 == q / 50 || (kv < 20 + 10 * seq && head % 2 == 0);
  };
  PagedCache cache(DType::kBF16, 16, 2, 32, 32, kLengths, 1);
  cache.Fill(ctx);
  std::vector<BlockMaskSequence> sequences;
  for (const int n : kLengths) sequences.push_back({0, n, n});
  const BlockMask blocks = BlockMask::Derive(mask, sequences, 4, 16);
  PrefillCall with(cache, 4, kLengths, 3), without = with;
  Prefill(with, FlexMask(WithBlocks(mask, blocks)));
  Prefill(without, FlexMask(mask));
  EXPECT_TRUE(SameBits(with.out, without.out));
  EXPECT_TRUE(SameBits(with.lse, without.lse));
  DecodeCall one(cache, 4, {0, 3, 1}, {150, 93, 30}, 2), other = one;
  Decode(one, FlexMask(WithBlocks(mask, blocks)));
  Decode(other, FlexMask(mask));
  EXPECT_TRUE(SameBits(one.out, other.out));
}

TEST_F(AttentionMod, TheLibrarysSoftCapAgreesWithTheFullMatrix) {
  for (const Shape& s : kShapes) {
    PagedCache cache(s.dtype, s.page_size, s.kv_heads, s.dim, s.dim, kLengths, 1);
    cache.Fill(ctx);
    DecodeCall decode(cache, s.q_heads, {0, 1, 2, 3}, {150, 70, 1, 93}, 2), decode_matrix = decode;
    PrefillCall prefill(cache, s.q_heads, {40, 70, 1, 93}, 3), prefill_matrix = prefill;
    const SoftCapMod mod{SoftCap{2.0f}, {}};
    AttentionDecodeParams d = decode.Params();
    auto workspace = Buffer::Create(AttentionDecodeWorkspace(d));
    ASSERT_TRUE(workspace.ok());
    AttentionDecode(ctx, d, mod, workspace->data());
    DecodeByMatrix(cache, decode_matrix, mod);
    EXPECT_LE(RelativeError(decode.out, decode_matrix.out), 1e-5);
    AttentionPrefillParams p = prefill.Params();
    auto scratch = Buffer::Create(AttentionPrefillWorkspace(ctx, p));
    ASSERT_TRUE(scratch.ok());
    AttentionPrefill(ctx, p, mod, scratch->data());
    PrefillByMatrix(cache, prefill_matrix, mod);
    EXPECT_LE(RelativeError(prefill.out, prefill_matrix.out), 1e-5);
  }
}

TEST_F(AttentionMod, AFullyMaskedRowIsZeroAndMinusInfinity) {
  const auto mask = [](int seq, int, int64_t q, int64_t) { return seq != 0 && q % 2 == 1; };
  PagedCache cache(DType::kBF16, 16, 2, 32, 32, {150, 90}, 1);
  cache.Fill(ctx);
  const float kMinusInf = -std::numeric_limits<float>::infinity();
  DecodeCall decode(cache, 4, {0, 1, 1}, {150, 90, 89}, 2);
  Decode(decode, Flex(SoftCap{2.0f}, mask));
  PrefillCall prefill(cache, 4, {150, 90}, 3);
  Prefill(prefill, Flex(SoftCap{2.0f}, mask));
  const auto expect = [&](const std::vector<float>& out, const std::vector<float>& lse, size_t row, bool empty) {
    for (size_t h = 0; h < 4; ++h) {
      EXPECT_EQ(lse[row * 4 + h] == kMinusInf, empty) << row;
      for (size_t c = 0; c < 32; ++c) {
        const float x = out[(row * 4 + h) * 32 + c];
        EXPECT_TRUE(empty ? x == 0.0f : std::isfinite(x) && x != 0.0f) << row;
      }
    }
  };
  expect(decode.out, decode.lse, 0, true);
  expect(decode.out, decode.lse, 1, false);
  expect(decode.out, decode.lse, 2, true);
  for (size_t row = 0; row < 150; ++row) expect(prefill.out, prefill.lse, row, true);
  for (size_t row = 0; row < 90; ++row) expect(prefill.out, prefill.lse, 150 + row, row % 2 == 0);
}

// What models with windows run on is a mask like any other, of which no key need be tested.
TEST_F(AttentionMod, AWindowMaskIsItsTestKeyByKey) {
  for (const Shape& s : kShapes) {
    PagedCache cache(s.dtype, s.page_size, s.kv_heads, s.dim, s.dim, kLengths, 1);
    cache.Fill(ctx);
    for (const int window : {1, 16, 37, 1000}) {
      const auto tested = [window](int, int, int64_t q, int64_t kv) { return q - kv < window; };
      DecodeCall decode(cache, s.q_heads, {0, 1, 2, 3}, {150, 70, 1, 93}, 2), decode_tested = decode, library = decode;
      PrefillCall prefill(cache, s.q_heads, {40, 70, 1, 93}, 3), prefill_tested = prefill, library_prefill = prefill;
      Decode(decode, FlexMask(WindowMask{window}));
      Prefill(prefill, FlexMask(WindowMask{window}));
      Decode(decode_tested, FlexMask(tested));
      Prefill(prefill_tested, FlexMask(tested));
      AttentionDecodeParams d = library.Params();
      auto workspace = Buffer::Create(AttentionDecodeWorkspace(d));
      ASSERT_TRUE(workspace.ok());
      AttentionDecode(ctx, d, workspace->data(), {.window = window});
      AttentionPrefillParams p = library_prefill.Params();
      auto scratch = Buffer::Create(AttentionPrefillWorkspace(ctx, p));
      ASSERT_TRUE(scratch.ok());
      AttentionPrefill(ctx, p, scratch->data(), {.window = window});
      for (const DecodeCall* other : {&decode_tested, &library}) {
        EXPECT_LE(RelativeError(decode.out, other->out), 1e-6) << window;
        EXPECT_LE(RelativeError(decode.lse, other->lse), 1e-6) << window;
      }
      for (const PrefillCall* other : {&prefill_tested, &library_prefill}) {
        EXPECT_LE(RelativeError(prefill.out, other->out), 1e-6) << window;
        EXPECT_LE(RelativeError(prefill.lse, other->lse), 1e-6) << window;
      }
    }
  }
}

// Sees what it sees of the last `span` keys; says where they begin, not that all of them are seen.
struct EveryThirdOfTheLast {
  int64_t span;
  int64_t FirstKey(int64_t q) const { return q >= span ? q - span + 1 : 0; }
  bool operator()(int, int, int64_t q, int64_t kv) const { return q - kv < span && (q - kv) % 3 == 0; }
};

TEST_F(AttentionMod, KernelsBeginAtAMasksFirstKey) {
  for (const Shape& s : kShapes) {
    PagedCache cache(s.dtype, s.page_size, s.kv_heads, s.dim, s.dim, kLengths, 1);
    cache.Fill(ctx);
    const EveryThirdOfTheLast mask{31};
    const auto both = And(mask, WindowMask{80});
    const auto either = Or(mask, [](int, int, int64_t q, int64_t kv) { return q - kv == 33; });
    EXPECT_EQ(both.FirstKey(100), 70);
    EXPECT_EQ(either.FirstKey(100), 0);  // the lambda says nothing
    const auto expect = [&](const auto& with) {
      DecodeCall decode(cache, s.q_heads, {0, 1, 2, 3}, {150, 70, 1, 93}, 2), decode_matrix = decode;
      PrefillCall prefill(cache, s.q_heads, {40, 70, 1, 93}, 3), prefill_matrix = prefill;
      Decode(decode, FlexMask(with));
      Prefill(prefill, FlexMask(with));
      DecodeByMatrix(cache, decode_matrix, FlexMask(with));
      PrefillByMatrix(cache, prefill_matrix, FlexMask(with));
      EXPECT_LE(RelativeError(decode.out, decode_matrix.out), 1e-5);
      EXPECT_LE(RelativeError(prefill.out, prefill_matrix.out), 1e-5);
    };
    expect(mask);
    expect(both);
    expect(either);
  }
}

// Begins behind every query's own key.
struct SeesNothing {
  static constexpr bool kIsRun = true;
  int64_t FirstKey(int64_t q) const { return q + 1; }
  bool operator()(int, int, int64_t, int64_t) const { return false; }
};

TEST_F(AttentionMod, ARowWhoseFirstKeyIsBehindItsOwnSeesNothing) {
  for (const Shape& s : kShapes) {
    PagedCache cache(s.dtype, s.page_size, s.kv_heads, s.dim, s.dim, kLengths, 1);
    cache.Fill(ctx);
    DecodeCall decode(cache, s.q_heads, {0, 1, 2, 3}, {150, 64, 1, 48}, 2);
    PrefillCall prefill(cache, s.q_heads, {40, 70, 1, 93}, 3);
    Decode(decode, FlexMask(SeesNothing{}));
    Prefill(prefill, FlexMask(SeesNothing{}));
    const auto is = [](float value) { return [value](float x) { return x == value; }; };
    EXPECT_TRUE(std::ranges::all_of(decode.out, is(0)) && std::ranges::all_of(prefill.out, is(0)));
    EXPECT_TRUE(std::ranges::all_of(decode.lse, is(-std::numeric_limits<float>::infinity())));
    EXPECT_TRUE(std::ranges::all_of(prefill.lse, is(-std::numeric_limits<float>::infinity())));
  }
}

// NaN in pages that are masked for all queries of the call: never read.
TEST_F(AttentionMod, WhollyMaskedPagesAreNotRead) {
  const auto check = [&](const char* what, int page_size, const auto& mod, int64_t masked_begin, int64_t masked_end) {
    PagedCache cache(DType::kBF16, page_size, 2, 32, 32, {640}, 1);
    cache.Fill(ctx);
    DecodeCall decode(cache, 4, {0}, {640}, 2), clean_decode = decode;
    PrefillCall prefill(cache, 4, {20}, 3), clean_prefill = prefill;
    Decode(clean_decode, mod);
    Prefill(clean_prefill, mod);
    int poisoned = 0;
    for (int page = 0; page < cache.Pages(0); ++page) {
      if (page * page_size < masked_begin || (page + 1) * page_size > masked_end) continue;
      cache.PoisonPage(cache.PageId(0, page));
      ++poisoned;
    }
    EXPECT_GT(poisoned, 3) << what;
    Decode(decode, mod);
    Prefill(prefill, mod);
    EXPECT_TRUE(SameBits(decode.out, clean_decode.out)) << what;
    EXPECT_TRUE(SameBits(prefill.out, clean_prefill.out)) << what;
  };
  const auto lambda = [](int, int, int64_t, int64_t kv) { return kv < 30 || kv >= 600; };
  std::vector<int32_t> document(640, 0);
  std::fill(document.begin() + 615, document.end(), 1);
  for (const int page_size : {3, 16, 40}) {
    check("window", page_size, FlexMask(WindowMask{100}), 0, 521);
    check("documents", page_size, FlexMask(DocumentMask{document.data(), nullptr}), 0, 615);
    check("lambda", page_size, Flex(SoftCap{2.0f}, lambda), 30, 600);
    const BlockMaskSequence rows{600, 640, 640};
    check("block mask", page_size,
          FlexMask(WithBlocks(lambda, BlockMask::Derive(lambda, {&rows, 1}, 4, page_size))), 30, 600);
  }
}

// Counts its calls; its State is another mask's.
template <class Mask>
struct CountedMask {
  Mask mask;
  std::atomic<int64_t>* calls;
  static constexpr bool kPerHead = false;
  bool operator()(int seq, int head, int64_t q, int64_t kv) const {
    ++*calls;
    return mask(seq, head, q, kv);
  }
  MaskState State(int seq, int head, const MaskRange& r) const { return mask.State(seq, head, r); }
};

TEST_F(AttentionMod, OpenAndMaskedPagesRunWithoutTheTest) {
  PagedCache cache(DType::kBF16, 16, 2, 32, 32, {1600}, 1);
  cache.Fill(ctx);
  std::atomic<int64_t> calls = 0;
  DecodeCall decode(cache, 8, {0}, {1600}, 2);
  Decode(decode, FlexMask(CountedMask<WindowMask>{{800}, &calls}));  // 800 is 50 whole pages
  EXPECT_EQ(calls, 0);
  Decode(decode, FlexMask(CountedMask<WindowMask>{{805}, &calls}));  // one page cut: looked at, then tested by 8 heads
  EXPECT_GT(calls, 0);
  EXPECT_LE(calls, 2 * (8 + 1) * 16);
  // A prefill of 64 rows with a window of 800: a block of 64 keys at either end of the window is mixed.
  calls = 0;
  PrefillCall prefill(cache, 2, {64}, 3);
  Prefill(prefill, FlexMask(CountedMask<WindowMask>{{800}, &calls}));
  EXPECT_GT(calls, 0);
  EXPECT_LE(calls, 2 * 3 * 64 * 64);
}

// The question of vLLM's issue 7315: the mask is another one at every step, while the cache grows by a token a step.
TEST_F(AttentionMod, MasksThatChangeAtEveryStepWhileTheCacheGrows) {
  const int n = 150, d = 32, heads = 4;
  for (const int page_size : {5, 16}) {
    PagedCache cache(DType::kBF16, page_size, 2, d, d, {n}, 1), source(DType::kBF16, page_size, 2, d, d, {n}, 2);
    source.Fill(ctx);
    for (int step = 0; step < n; ++step) {
      if (step % page_size == 0) ZeroPage(cache.pages(), cache.table().format, cache.PageId(0, step / page_size));
      const int32_t seq = 0, pos = step;
      KvAppendParams append;
      append.pages = cache.pages();
      append.table = cache.table();
      append.k = source.key().data() + int64_t{step} * 2 * d;
      append.v = source.value().data() + int64_t{step} * 2 * d;
      append.k_stride = append.v_stride = 2 * d;
      append.row_seq = &seq;
      append.row_pos = &pos;
      append.rows = 1;
      KvAppend(ctx, append);

      const auto mask = [step](int, int head, int64_t q, int64_t kv) {
        return kv == q || (kv * 2654435761u + static_cast<uint64_t>(step * 7 + head)) / 1024 % (2 + step % 3) == 0;
      };
      const auto score = [step](float s, int, int, int64_t, int64_t kv) {
        return s + 0.01f * static_cast<float>((kv + step) % 11);
      };
      DecodeCall call(cache, heads, {0}, {step + 1}, static_cast<uint64_t>(step)), blocks = call, matrix = call;
      Decode(call, Flex(score, mask));
      DecodeByMatrix(cache, matrix, Flex(score, mask));
      ASSERT_LE(RelativeError(call.out, matrix.out), 1e-5) << step;
      // A table made anew for this step's query, too.
      const BlockMaskSequence row{step, step + 1, step + 1};
      Decode(blocks, Flex(score, WithBlocks(mask, BlockMask::Derive(mask, {&row, 1}, heads, page_size))));
      ASSERT_TRUE(SameBits(blocks.out, call.out)) << step;
    }
  }
}

TEST_F(AttentionMod, ATableThatTheCacheOutgrewStaysRight) {
  PagedCache cache(DType::kBF16, 16, 2, 32, 32, {300}, 1);
  cache.Fill(ctx);
  const auto mask = [](int, int head, int64_t, int64_t kv) { return kv / 32 % 2 == 0 || (head == 1 && kv % 5 == 0); };
  // Derived for 100 tokens: half of page 6, and for every query to come.
  const BlockMaskSequence then{0, 300, 100};
  const BlockMask blocks = BlockMask::Derive(mask, {&then, 1}, 4, 16, 300);
  for (const int len : {90, 100, 101, 112, 113, 300}) {
    DecodeCall one(cache, 4, {0}, {len}, 2), other = one;
    Decode(one, FlexMask(WithBlocks(mask, blocks)));
    DecodeByMatrix(cache, other, FlexMask(mask));
    EXPECT_LE(RelativeError(one.out, other.out), 1e-5) << len;
  }
}

TEST_F(AttentionMod, ARowsBitsDependOnNoChunkAndNoThreads) {
  PagedCache cache(DType::kF32, 7, 2, 24, 24, {260}, 1);
  cache.Fill(ctx);
  const auto mod = Flex(Then(SoftCap{2.0f}, t.alibi()), Or(WindowMask{70}, And(CausalMask{}, t.documents())));
  PrefillCall whole(cache, 6, {260}, 3), cut = whole;
  Prefill(whole, mod);
  cut.chunks.clear();
  for (int at = 0; at < 260; at += 37) cut.chunks.push_back({0, at, std::min(37, 260 - at), at});
  Prefill(cut, mod);
  EXPECT_TRUE(SameBits(cut.out, whole.out));
  ThreadPool one(1);
  ctx.pool = &one;
  PrefillCall alone = whole;
  alone.Clear();
  Prefill(alone, mod);
  EXPECT_TRUE(SameBits(alone.out, whole.out));
  // A decode row's bits depend on no other row.
  DecodeCall batch(cache, 6, {0, 0, 0}, {260, 99, 31}, 5);
  Decode(batch, mod);
  ctx.pool = &pool;
  DecodeCall again = batch;
  again.out.assign(again.out.size(), -7.0f);
  for (int row = 0; row < 3; ++row) {
    DecodeCall single(cache, 6, {0}, {again.len[static_cast<size_t>(row)]}, 5);
    std::copy_n(batch.q.begin() + row * batch.p.q_stride, batch.p.q_stride, single.q.begin());
    Decode(single, mod);
    std::copy(single.out.begin(), single.out.end(), again.out.begin() + row * again.p.out_stride);
  }
  EXPECT_TRUE(SameBits(again.out, batch.out));
}

TEST_F(AttentionMod, SelectedPagesSlotMasksAndMassGoTogetherWithAMod) {
  PagedCache cache(DType::kBF16, 16, 2, 32, 32, {500}, 1);
  cache.Fill(ctx);
  DecodeCall call(cache, 8, {0}, {500}, 2);
  call.mass.assign(2 * 32, -1.0f);
  call.p.mass_pages = 32;
  testing::Selection selection(1, 2, 12);
  for (size_t h = 0; h < 2; ++h) selection.Set(h, testing::RandomPages(cache.Pages(0), 9, cache.random()));
  std::vector<uint64_t> slots(2 * 12);
  for (uint64_t& m : slots) m = cache.random()();
  selection.view.slot_mask = slots.data();
  selection.view.mask_words = 1;
  call.p.selection = &selection.view;
  DecodeCall expected = call;
  const auto mod = Flex(SoftCap{2.0f}, [](int, int head, int64_t, int64_t kv) { return (kv / 3 + head) % 4 != 0; });
  Decode(call, mod);
  reference::AttentionDecode(expected.Params(), mod);
  EXPECT_LE(RelativeError(call.out, expected.out), 1e-5);
  EXPECT_LE(RelativeError(call.lse, expected.lse), 1e-5);
  EXPECT_LE(RelativeError(call.mass, expected.mass), 1e-5);
  float sum = 0;
  for (const float m : call.mass) sum += m;
  EXPECT_NEAR(sum, 8.0f, 1e-4f);  // a unit of every head
}

TEST(MaskStates, AreTrueOfEveryPairOfTheRangeAndExactForOneQuery) {
  const Tables t;
  std::mt19937_64 random(9);
  int exact = 0;
  const auto check = [&](const char* what, const auto& mask) {
    for (int i = 0; i < 4000; ++i) {
      const int seq = static_cast<int>(random() % 4);
      MaskRange r;
      r.q_begin = static_cast<int64_t>(random() % 300);
      r.q_end = r.q_begin + (i % 2 == 0 ? 1 : 1 + static_cast<int64_t>(random() % 90));
      r.kv_begin = static_cast<int64_t>(random() % 300);
      r.kv_end = r.kv_begin + 1 + static_cast<int64_t>(random() % 90);
      bool any = false, all = true;
      for (int64_t q = r.q_begin; q < r.q_end; ++q) {
        for (int64_t kv = r.kv_begin; kv < r.kv_end; ++kv) (mask(seq, 0, q, kv) ? any : all) = mask(seq, 0, q, kv);
      }
      const MaskState state = mask.State(seq, 0, r);
      const MaskState true_state = !any ? MaskState::kMasked : all ? MaskState::kOpen : MaskState::kMixed;
      if (state != MaskState::kMixed) {
        ASSERT_EQ(state, true_state) << what << ": queries " << r.q_begin << "–" << r.q_end << ", keys " << r.kv_begin
                                     << "–" << r.kv_end;
      } else if (r.q_end == r.q_begin + 1) {
        ASSERT_EQ(true_state, MaskState::kMixed) << what << ": query " << r.q_begin << ", keys " << r.kv_begin << "–"
                                                 << r.kv_end;
      }
      exact += state == true_state && state != MaskState::kMixed;
    }
  };
  check("causal", CausalMask{});
  check("window", WindowMask{60});
  check("prefix lm", t.prefix_lm());
  check("documents", t.documents());
  EXPECT_GT(exact, 8000);  // the answer is rarely "look yourself" where it needn't be
}

TEST(MaskStates, ABlockMaskIsWhatItsMaskSaysOfEveryPage) {
  const auto mask = [](int seq, int head, int64_t q, int64_t kv) { return (kv / 16 + q / 64 + head + seq) % 3 != 0 || kv == 37; };
  const BlockMaskSequence sequences[] = {{0, 130, 130}, {50, 90, 91}};
  const BlockMask blocks = BlockMask::Derive(mask, sequences, 2, 16);
  const BlockMaskView view = blocks.view();
  int counts[3] = {};
  for (int seq = 0; seq < 2; ++seq) {
    for (int head = 0; head < 2; ++head) {
      for (int64_t q = sequences[seq].q_begin; q < sequences[seq].q_end; q += 64) {
        const int64_t q_end = std::min(sequences[seq].q_end, q + 64);
        for (int64_t kv = 0; kv < sequences[seq].kv_end; kv += 16) {
          const int64_t kv_end = std::min(sequences[seq].kv_end, kv + 16);
          bool open = false, masked = false;
          for (int64_t a = q; a < q_end; ++a) {
            for (int64_t b = kv; b < std::min(kv_end, a + 1); ++b) (mask(seq, head, a, b) ? open : masked) = true;
          }
          const MaskState expected = !open ? MaskState::kMasked : masked ? MaskState::kMixed : MaskState::kOpen;
          EXPECT_EQ(view.State(seq, head, {q, q_end, kv, kv_end}), expected) << seq << head << " " << q << " " << kv;
          ++counts[static_cast<int>(expected)];
        }
      }
    }
  }
  for (const int n : counts) EXPECT_GT(n, 0);
  EXPECT_EQ(view.State(0, 0, {0, 1, 112, 131}), MaskState::kMixed);  // a key past the table
  EXPECT_EQ(view.State(1, 0, {0, 64, 0, 16}), MaskState::kMixed);    // a query before it
  EXPECT_EQ(view.State(2, 0, {0, 1, 0, 16}), MaskState::kMixed);     // a sequence it doesn't know
}

TEST(SoftCapRun, IsTanhWithin4e7AtEveryPlaceOfARun) {
  std::vector<float> x, y;
  for (float v = -12.0f; v < 12.0f; v += 0.00091f) x.push_back(v);
  x.push_back(0.0f);
  x.push_back(1e-20f);
  x.push_back(300.0f);
  x.push_back(-std::numeric_limits<float>::infinity());
  y = x;
  HWY_STATIC_DISPATCH(ApplyScore)(SoftCap{1.0f}, y.data(), static_cast<int>(y.size()), 0, 0, 0, 0);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::tanh(static_cast<double>(x[i]));
    if (want != 0) worst = std::max(worst, std::abs(static_cast<double>(y[i]) - want) / std::abs(want));
    float alone = x[i];
    HWY_STATIC_DISPATCH(ApplyScore)(SoftCap{1.0f}, &alone, 1, 0, 0, 0, 0);
    ASSERT_EQ(alone, y[i]);
  }
  EXPECT_LE(worst, 4e-7);
  EXPECT_EQ(y[y.size() - 4], 0.0f);
  EXPECT_EQ(y.back(), -1.0f);
  float nan = std::numeric_limits<float>::quiet_NaN();
  HWY_STATIC_DISPATCH(ApplyScore)(SoftCap{1.0f}, &nan, 1, 0, 0, 0, 0);
  EXPECT_TRUE(std::isnan(nan));
}

// By numbers worked out by hand: what the matrices of the other tests are made with.
TEST(ShippedFunctors, AreTheirFormulas) {
  const float slopes[] = {0.5f, 0.25f};
  EXPECT_EQ((Alibi{slopes}(1.0f, 0, 1, 10, 4)), -0.5f);  // 1 − 0.25 · 6
  const float bias[] = {0, 1, 2, 3, 4, 10, 11, 12, 13, 14};
  const RelativeBias relative{bias, 2};
  EXPECT_EQ(relative(1.0f, 0, 0, 7, 7), 3.0f);
  EXPECT_EQ(relative(1.0f, 0, 1, 7, 6), 14.0f);
  EXPECT_EQ(relative(1.0f, 0, 1, 7, 5), 15.0f);
  EXPECT_EQ(relative(1.0f, 0, 1, 7, 0), 15.0f);
  EXPECT_EQ(relative(1.0f, 0, 1, 7, 8), 12.0f);
  EXPECT_EQ(relative(1.0f, 0, 1, 3, 9), 11.0f);
  EXPECT_NEAR((SoftCap{2.0f}(3.0f, 0, 0, 0, 0)), 1.8102965f, 1e-6f);  // 2 tanh 1.5
  EXPECT_EQ((Then(SoftCap{1.0f}, Alibi{slopes})(100.0f, 0, 0, 4, 0)), -1.0f);

  EXPECT_TRUE((CausalMask{}(0, 0, 5, 5)));
  EXPECT_FALSE((CausalMask{}(0, 0, 5, 6)));
  const WindowMask window{3};
  EXPECT_TRUE(window(0, 0, 5, 5) && window(0, 0, 5, 3));
  EXPECT_FALSE(window(0, 0, 5, 2) || window(0, 0, 5, 6));
  const int32_t prefix[] = {4, 0};
  const PrefixLmMask lm{prefix};
  EXPECT_TRUE(lm(0, 0, 1, 3) && lm(0, 0, 6, 5) && lm(0, 0, 6, 0));
  EXPECT_FALSE(lm(0, 0, 1, 4) || lm(0, 0, 6, 7) || lm(1, 0, 1, 3));
  const int32_t document[] = {0, 0, 1, 1, 5, 5, 5, 6};
  const int64_t begin[] = {0, 4};
  const DocumentMask documents{document, begin};
  EXPECT_TRUE(documents(0, 0, 3, 2) && documents(1, 0, 2, 0));
  EXPECT_FALSE(documents(0, 0, 2, 1) || documents(1, 0, 3, 2));
  EXPECT_TRUE((DocumentMask{document, nullptr}(1, 0, 1, 0)));
  EXPECT_TRUE(And(window, documents)(0, 0, 3, 2) && Or(window, documents)(0, 0, 2, 1));
  EXPECT_FALSE(And(window, documents)(0, 0, 2, 1) || Or(window, documents)(1, 0, 3, 0));

  const auto lambda = [](int, int, int64_t, int64_t) { return true; };
  static_assert(decltype(FlexMask(lm))::kSeesFuture && decltype(FlexMask(And(window, lm)))::kSeesFuture &&
                decltype(FlexMask(Or(lm, window)))::kSeesFuture);
  static_assert(!decltype(FlexMask(window))::kSeesFuture && !decltype(FlexMask(documents))::kSeesFuture &&
                !decltype(FlexMask(lambda))::kSeesFuture);
  static_assert(decltype(FlexMask(lambda))::kPerHead && decltype(FlexMask(And(window, lambda)))::kPerHead &&
                !decltype(FlexMask(Or(window, lm)))::kPerHead);
  static_assert(PlainMod::kIsIdentity && !SoftCapMod::kIsIdentity && !SoftCapMod::kHasMask);
  static_assert(!decltype(FlexMask(And(window, CausalMask{})))::kHasMask && decltype(FlexMask(And(window, lm)))::kHasMask &&
                decltype(FlexMask(Or(window, lambda)))::kHasMask);
}

TEST(AlibiSlopes, AreThoseOfThePaper) {
  for (int h = 0; h < 8; ++h) EXPECT_FLOAT_EQ(AlibiSlope(h, 8), std::pow(2.0f, -static_cast<float>(h + 1)));
  // 12 heads: 8 of them, then every second one of 16.
  EXPECT_FLOAT_EQ(AlibiSlope(7, 12), std::pow(2.0f, -8.0f));
  EXPECT_FLOAT_EQ(AlibiSlope(8, 12), std::pow(2.0f, -0.5f));
  EXPECT_FLOAT_EQ(AlibiSlope(11, 12), std::pow(2.0f, -3.5f));
}

}  // namespace
}  // namespace quire
