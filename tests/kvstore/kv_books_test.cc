#include "kvstore/kv_books.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "tests/kvstore/test_cache.h"

namespace quire {
namespace {

using Kind = CacheOp::Kind;

// One cache group, one layer: 4 tokens a page, 64 a metadata group.
CacheConfig Small(int window = 0, bool metadata = true) {
  CacheConfig config;
  config.page_size = 4;
  config.metadata = metadata;
  config.groups = {{.layers = {0}, .kv_heads = 1, .k_dim = 2, .v_dim = 2, .window = window, .dtype = DType::kBF16}};
  return config;
}

KvBooks Books(int32_t pages, int32_t groups, int window = 0, int max_append = 4) {
  return KvBooks::Create(Small(window, groups > 0), {{pages, groups}}, max_append).value();
}

SeqId AddWith(KvBooks& books, int64_t tokens, int64_t max_tokens = 0) {
  const SeqId seq = books.AddSequence(max_tokens).value();
  EXPECT_TRUE(books.Append(seq, tokens).ok());
  (void)books.TakeOps();
  return seq;
}

std::vector<Kind> Kinds(const CacheOps& ops) {
  std::vector<Kind> kinds;
  for (const CacheOp& op : ops.ops) kinds.push_back(op.kind);
  return kinds;
}

TEST(KvBooks, AppendTakesAPageWhenTheLastIsFull) {
  KvBooks books = Books(8, 2);
  const SeqId seq = books.AddSequence(0).value();
  struct Row {
    int64_t append, pages, groups;
    size_t ops;
  };
  for (const Row& row : {Row{0, 0, 0, 0}, Row{3, 1, 1, 2}, Row{1, 1, 1, 0}, Row{1, 2, 1, 1}, Row{9, 4, 1, 2}}) {
    ASSERT_TRUE(books.Append(seq, row.append).ok());
    EXPECT_EQ(std::ssize(books.Table(seq, 0).pages), row.pages);
    EXPECT_EQ(std::ssize(books.Table(seq, 0).groups), row.groups);
    EXPECT_EQ(books.TakeOps().ops.size(), row.ops);
    books.CheckInvariants();
  }
  EXPECT_EQ(books.Length(seq), 14);
  EXPECT_EQ(books.pages(0).used(), 4);
  books.Free(seq);
  EXPECT_EQ(books.pages(0).free(), 8);
  EXPECT_EQ(books.metadata_groups(0).free(), 2);
  EXPECT_FALSE(books.Exists(seq));
}

TEST(KvBooks, SlotsOfFreedSequencesAreUsedAgain) {
  KvBooks books = Books(8, 2);
  EXPECT_EQ(books.AddSequence(0).value(), 0);
  EXPECT_EQ(books.AddSequence(0).value(), 1);
  EXPECT_EQ(books.AddSequence(0).value(), 2);
  books.Free(1);
  EXPECT_EQ(books.num_sequences(), 2);
  EXPECT_EQ(books.AddSequence(0).value(), 1);
}

TEST(KvBooks, MoreSequencesThanSlotsAreRefused) {
  KvBooks books = KvBooks::Create(Small(), {{8, 2}}, 4, 1).value();
  const SeqId seq = AddWith(books, 3);
  EXPECT_EQ(books.AddSequence(0).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(books.Fork(seq, 0).status().code(), StatusCode::kResourceExhausted);
  books.CheckInvariants();
}

TEST(KvBooks, WithoutMetadataThereAreNoGroups) {
  KvBooks books = Books(40, 0);
  const SeqId seq = AddWith(books, 130);
  EXPECT_EQ(books.Table(seq, 0).pages.size(), 33u);
  EXPECT_TRUE(books.Table(seq, 0).groups.empty());
  const SeqId fork = books.Fork(seq, 0).value();
  ASSERT_TRUE(books.Append(fork, 1).ok());
  EXPECT_EQ(Kinds(books.TakeOps()), (std::vector<Kind>{Kind::kCopyPage}));
  ASSERT_TRUE(books.Truncate(seq, 5).ok());
  EXPECT_TRUE(books.TakeOps().empty());
  books.CheckInvariants();
}

TEST(KvBooks, ForkSharesPagesUntilAWrite) {
  KvBooks books = Books(40, 8);
  const SeqId a = AddWith(books, 70);  // 17 full pages, one of 2 tokens; a whole group and one of 2 columns
  const SeqId b = books.Fork(a, 0).value();
  EXPECT_EQ(books.pages(0).used(), 18);
  EXPECT_EQ(books.metadata_groups(0).used(), 2);
  EXPECT_TRUE(books.pending_ops().empty());
  EXPECT_EQ(books.Table(a, 0).pages, books.Table(b, 0).pages);

  const PageTable shared = books.Table(a, 0);
  ASSERT_TRUE(books.Append(b, 1).ok());
  const CacheOps ops = books.TakeOps();
  EXPECT_EQ(Kinds(ops), (std::vector<Kind>{Kind::kCopyPage, Kind::kCopyGroup}));
  EXPECT_EQ(ops.ops[0].from, shared.pages[17]);
  EXPECT_EQ(ops.ops[0].to, books.Table(b, 0).pages[17]);
  EXPECT_EQ(ops.ops[1].from, shared.groups[1]);
  EXPECT_EQ(ops.ops[1].to, books.Table(b, 0).groups[1]);
  EXPECT_EQ(ops.ops[1].columns, 2);
  EXPECT_EQ(books.Table(a, 0).pages, shared.pages);
  EXPECT_EQ(books.Table(b, 0).groups[0], shared.groups[0]);

  // Nobody shares the first sequence's last page any more.
  ASSERT_TRUE(books.Append(a, 1).ok());
  EXPECT_TRUE(books.TakeOps().empty());
  books.CheckInvariants();
}

TEST(KvBooks, WhatAForkCopiesDependsOnWhereItStands) {
  struct Row {
    int64_t length;
    std::vector<Kind> ops;
  };
  const std::vector<Row> rows = {
      {0, {Kind::kZeroPage, Kind::kResetGroup}},
      {3, {Kind::kCopyPage, Kind::kCopyGroup}},
      {4, {Kind::kCopyGroup, Kind::kZeroPage}},  // page full, group not
      {63, {Kind::kCopyPage, Kind::kCopyGroup}},
      {64, {Kind::kZeroPage, Kind::kResetGroup}},  // both full: nothing is copied
      {65, {Kind::kCopyPage, Kind::kCopyGroup}},
      {68, {Kind::kCopyGroup, Kind::kZeroPage}},
  };
  for (const Row& row : rows) {
    KvBooks books = Books(40, 8);
    const SeqId a = AddWith(books, row.length);
    const SeqId b = books.Fork(a, 0).value();
    ASSERT_TRUE(books.Append(b, 1).ok());
    EXPECT_EQ(Kinds(books.TakeOps()), row.ops) << "length " << row.length;
    books.CheckInvariants();
  }
}

TEST(KvBooks, ACopyHasPagesOfItsOwnAndTheContentsOfAnothers) {
  KvBooks books = Books(12, 4);
  const SeqId parent = AddWith(books, 10);
  const SeqId copy = books.Copy(parent, 20).value();
  books.CheckInvariants();
  EXPECT_EQ(books.Length(copy), 10);
  EXPECT_EQ(books.max_tokens(copy), 20);
  EXPECT_EQ(books.pages(0).used(), 6);
  EXPECT_EQ(books.pages(0).available(), 12 - 6 - 2);  // its last two pages are promised
  const PageTable &a = books.Table(parent, 0), &b = books.Table(copy, 0);
  const CacheOps ops = books.TakeOps();
  std::vector<std::pair<int32_t, int32_t>> pages, groups;
  for (const CacheOp& op : ops.ops) {
    if (op.kind == Kind::kCopyPage) pages.emplace_back(op.from, op.to);
    if (op.kind != Kind::kCopyGroup) continue;
    groups.emplace_back(op.from, op.to);
    EXPECT_EQ(op.columns, 3);
  }
  ASSERT_EQ(pages.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(pages[i], std::make_pair(a.pages[i], b.pages[i]));
  EXPECT_EQ(groups, (std::vector<std::pair<int32_t, int32_t>>{{a.groups[0], b.groups[0]}}));
  ASSERT_EQ(ops.ops.back().kind, Kind::kCopyGroup);  // behind what zeroes and resets
  EXPECT_FALSE(books.Copy(parent, 20).ok());         // five pages, and four are to be had
  books.CheckInvariants();
  EXPECT_EQ(books.num_sequences(), 2);
  EXPECT_TRUE(books.pending_ops().ops.empty());
}

TEST(KvBooks, TheLastHolderWritesWithoutACopy) {
  KvBooks books = Books(8, 4);
  const SeqId a = AddWith(books, 6);
  const SeqId b = books.Fork(a, 0).value();
  books.Free(a);
  ASSERT_TRUE(books.Append(b, 1).ok());
  EXPECT_TRUE(books.TakeOps().empty());
}

TEST(KvBooks, TruncateDropsPagesAndRecomputesTheLastColumn) {
  struct Row {
    int64_t to, pages, groups;
    bool recompute;
    int columns, slots;
  };
  for (const Row& row : {Row{70, 18, 2, false, 0, 0}, Row{69, 18, 2, true, 2, 1}, Row{68, 17, 2, true, 1, 4},
                         Row{64, 16, 1, false, 0, 0}, Row{63, 16, 1, true, 16, 3}, Row{1, 1, 1, true, 1, 1},
                         Row{0, 0, 0, false, 0, 0}}) {
    KvBooks books = Books(40, 4);
    const SeqId a = AddWith(books, 70);
    ASSERT_TRUE(books.Truncate(a, row.to).ok());
    const CacheOps ops = books.TakeOps();
    EXPECT_EQ(books.Length(a), row.to);
    EXPECT_EQ(books.pages(0).used(), row.pages);
    EXPECT_EQ(books.metadata_groups(0).used(), row.groups);
    ASSERT_EQ(ops.ops.size(), row.recompute ? 1u : 0u) << row.to;
    if (row.recompute) {
      EXPECT_EQ(ops.ops[0].kind, Kind::kRecomputeMetadata);
      EXPECT_EQ(ops.ops[0].to, books.Table(a, 0).groups.back());
      EXPECT_EQ(ops.ops[0].columns, row.columns);
      EXPECT_EQ(ops.ops[0].slots, row.slots);
      const std::vector<int32_t>& pages = books.Table(a, 0).pages;
      EXPECT_EQ(ops.pages, std::vector<int32_t>(pages.end() - row.columns, pages.end()));
    }
    books.CheckInvariants();
  }
}

TEST(KvBooks, TruncateCopiesASharedGroupAtOnceAndASharedPageAtTheNextWrite) {
  KvBooks books = Books(40, 8);
  const SeqId a = AddWith(books, 70);
  const SeqId b = books.Fork(a, 0).value();
  const PageTable before = books.Table(a, 0);
  ASSERT_TRUE(books.Truncate(b, 30).ok());
  const CacheOps ops = books.TakeOps();
  EXPECT_EQ(Kinds(ops), (std::vector<Kind>{Kind::kCopyGroup, Kind::kRecomputeMetadata}));
  EXPECT_EQ(ops.ops[0].from, before.groups[0]);
  EXPECT_EQ(ops.ops[0].columns, 8);
  EXPECT_EQ(ops.ops[1].to, ops.ops[0].to);
  EXPECT_EQ(ops.ops[1].slots, 2);
  EXPECT_EQ(books.Table(a, 0).groups, before.groups);
  EXPECT_EQ(books.Table(b, 0).pages.back(), before.pages[7]);
  ASSERT_TRUE(books.Append(b, 1).ok());
  EXPECT_EQ(Kinds(books.TakeOps()), (std::vector<Kind>{Kind::kCopyPage}));
  EXPECT_EQ(books.Table(a, 0).pages, before.pages);
  books.CheckInvariants();
}

TEST(KvBooks, AWindowFreesPagesWhollyBehindIt) {
  KvBooks books = Books(40, 8, /*window=*/10);
  const SeqId a = AddWith(books, 13);
  struct Row {
    int64_t append, first_live, live_groups;
  };
  // Page p goes when 4 (p + 1) ≤ length − 10; group 0 when page 15 has gone, at length 74.
  for (const Row& row : {Row{0, 0, 1}, Row{1, 1, 1}, Row{3, 1, 1}, Row{1, 2, 1}, Row{55, 15, 2}, Row{1, 16, 1}}) {
    ASSERT_TRUE(books.Append(a, row.append).ok());
    (void)books.TakeOps();
    books.ReleaseOutOfWindow(a);
    const PageTable& table = books.Table(a, 0);
    EXPECT_EQ(table.first_live_page, row.first_live) << books.Length(a);
    EXPECT_EQ(books.pages(0).used(), std::ssize(table.pages) - row.first_live);
    EXPECT_EQ(books.metadata_groups(0).used(), row.live_groups);
    for (int64_t p = 0; p < std::ssize(table.pages); ++p) EXPECT_EQ(table.pages[p] == -1, p < row.first_live);
    books.CheckInvariants();
  }
  EXPECT_EQ(books.Table(a, 0).groups[0], -1);
}

TEST(KvBooks, ReleaseCountsFromTheLengthBeforeThisStep) {
  KvBooks books = Books(40, 8, /*window=*/4);
  const SeqId a = AddWith(books, 8);
  ASSERT_TRUE(books.Append(a, 12).ok());
  books.ReleaseOutOfWindow(a);  // the step's first query is at position 8 and sees 5 … 8
  EXPECT_EQ(books.Table(a, 0).first_live_page, 1);
  (void)books.TakeOps();
  books.ReleaseOutOfWindow(a);
  EXPECT_EQ(books.Table(a, 0).first_live_page, 4);
}

TEST(KvBooks, AForkKeepsWhatItsParentsWindowReleases) {
  KvBooks books = Books(40, 8, /*window=*/4);
  const SeqId a = AddWith(books, 12);
  const SeqId b = books.Fork(a, 0).value();
  const std::vector<int32_t> pages = books.Table(a, 0).pages;
  books.ReleaseOutOfWindow(a);
  EXPECT_EQ(books.Table(a, 0).first_live_page, 2);
  EXPECT_EQ(books.Table(b, 0).pages, pages);
  EXPECT_EQ(books.pages(0).used(), 3);
  books.Free(b);
  EXPECT_EQ(books.pages(0).used(), 1);
  books.CheckInvariants();
}

TEST(KvBooks, ATruncateBehindTheWindowIsRefused) {
  KvBooks books = Books(40, 8, /*window=*/8);
  const SeqId a = AddWith(books, 32);
  books.ReleaseOutOfWindow(a);  // tokens before 24 are gone
  const Status status = books.Truncate(a, 31);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("before 24"), std::string::npos) << status.message();
  EXPECT_EQ(books.Length(a), 32);
  ASSERT_TRUE(books.Truncate(a, 0).ok());
  EXPECT_EQ(books.pages(0).used(), 0);
  EXPECT_EQ(books.Table(a, 0).first_live_page, 0);
  ASSERT_TRUE(books.Append(a, 3).ok());
  books.CheckInvariants();
}

TEST(KvBooks, AdmissionCannotOvercommit) {
  KvBooks books = Books(10, 10);
  const SeqId a = books.AddSequence(24).value();  // 6 pages
  EXPECT_EQ(books.pages(0).reserved(), 6);
  EXPECT_EQ(books.pages(0).available(), 4);
  EXPECT_EQ(books.AddSequence(17).status().code(), StatusCode::kResourceExhausted);
  const SeqId b = books.AddSequence(0).value();
  ASSERT_TRUE(books.Append(b, 16).ok());
  const Status full = books.Append(b, 1);
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(full.message().find("1 wanted, 0 of 10 available (6 free, 6 reserved"), std::string::npos)
      << full.message();
  for (int i = 0; i < 24; ++i) ASSERT_TRUE(books.Append(a, 1).ok());
  EXPECT_EQ(books.pages(0).reserved(), 0);
  EXPECT_EQ(books.Append(a, 1).code(), StatusCode::kResourceExhausted);
  books.CheckInvariants();
}

TEST(KvBooks, AForkReservesForItsCopies) {
  KvBooks books = Books(10, 10);
  const SeqId a = AddWith(books, 6, 8);  // 2 pages held, none to come
  EXPECT_EQ(books.pages(0).reserved(), 0);
  const SeqId b = books.Fork(a, 8).value();
  // Whoever writes first copies; both may be first.
  EXPECT_EQ(books.pages(0).reserved(), 2);
  EXPECT_EQ(books.metadata_groups(0).reserved(), 2);
  ASSERT_TRUE(books.Append(a, 1).ok());
  EXPECT_EQ(books.pages(0).reserved(), 0);  // the other one's is its own now
  EXPECT_EQ(books.metadata_groups(0).reserved(), 0);
  (void)books.TakeOps();
  ASSERT_TRUE(books.Append(b, 2).ok());
  EXPECT_EQ(books.pages(0).used(), 3);
  books.CheckInvariants();
}

TEST(KvBooks, AForkThatCannotBePromisedIsRefused) {
  KvBooks books = Books(4, 4);
  const SeqId a = AddWith(books, 6, 16);
  const Result<SeqId> fork = books.Fork(a, 16);  // 2 + 1 each, 2 free
  EXPECT_EQ(fork.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(books.num_sequences(), 1);
  EXPECT_EQ(books.pages(0).reserved(), 2);
  books.CheckInvariants();
}

TEST(KvBooks, AWindowedSequenceReservesItsWindowOnly) {
  KvBooks books = Books(8, 8, /*window=*/10, /*max_append=*/4);
  const SeqId a = books.AddSequence(100000).value();
  EXPECT_EQ(books.pages(0).reserved(), 5);  // 13 tokens at any alignment
  EXPECT_EQ(books.metadata_groups(0).reserved(), 2);
  for (int step = 0; step < 2000; ++step) {
    books.ReleaseOutOfWindow(a);
    ASSERT_TRUE(books.Append(a, 1 + step % 4).ok());
    (void)books.TakeOps();
    ASSERT_LE(books.pages(0).used() + books.pages(0).reserved(), 6) << step;
  }
  books.CheckInvariants();
}

TEST(KvBooks, ATruncateGivesBackWhatItMayStillNeedToItsReservation) {
  KvBooks books = Books(10, 4);
  const SeqId a = AddWith(books, 40, 40);
  ASSERT_TRUE(books.Truncate(a, 9).ok());
  EXPECT_EQ(books.pages(0).free(), 7);
  EXPECT_EQ(books.pages(0).available(), 0);
  EXPECT_EQ(books.AddSequence(1).status().code(), StatusCode::kResourceExhausted);
}

TEST(KvBooks, ATruncateOfSharedPagesThatCannotBePromisedIsRefused) {
  KvBooks books = Books(10, 4);
  const SeqId a = AddWith(books, 40, 40);
  const SeqId b = books.Fork(a, 0).value();
  EXPECT_EQ(books.Truncate(a, 8).code(), StatusCode::kResourceExhausted);  // b keeps all ten pages
  EXPECT_EQ(books.Length(a), 40);
  EXPECT_TRUE(books.TakeOps().empty());
  books.Free(b);
  EXPECT_TRUE(books.Truncate(a, 8).ok());
  books.CheckInvariants();
}

TEST(KvBooks, RunningOutOfMetadataGroupsIsAStatusToo) {
  KvBooks books = Books(40, 1);
  const SeqId a = AddWith(books, 64);
  const Status status = books.Append(a, 1);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("metadata groups"), std::string::npos);
  EXPECT_EQ(books.Length(a), 64);
  EXPECT_EQ(books.pages(0).used(), 16);
}

TEST(KvBooks, WhatNeverFitsIsKnownAtTheDoor) {
  KvBooks books = Books(10, 4);
  EXPECT_TRUE(books.CheckFits(40).ok());
  const Status status = books.CheckFits(41);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("11 pages"), std::string::npos);
  EXPECT_TRUE(Books(10, 4, /*window=*/8).CheckFits(1000000).ok());
}

TEST(KvBooks, RefusesWhatCannotBe) {
  EXPECT_EQ(KvBooks::Create(Small(), {}, 4).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(KvBooks::Create(Small(), {{0, 1}}, 4).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(KvBooks::Create(Small(), {{1, 0}}, 4).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(KvBooks::Create(Small(), {{1, 1}}, 0).status().code(), StatusCode::kInvalidArgument);
  KvBooks books = Books(4, 1);
  const SeqId a = AddWith(books, 1);
  EXPECT_EQ(books.Append(a, INT32_MAX).code(), StatusCode::kInvalidArgument);
}

TEST(KvBooksDeathTest, ForkingTokensThatAreNotThereYetIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  KvBooks books = Books(8, 2);
  const SeqId a = books.AddSequence(0).value();
  ASSERT_TRUE(books.Append(a, 3).ok());
  EXPECT_DEATH((void)books.Fork(a, 0), "CHECK");
  EXPECT_DEATH((void)books.Truncate(a, 1), "CHECK");
  EXPECT_DEATH((void)books.Append(5, 1), "CHECK");
}

TEST(KvBooks, AFailedCallChangesNothing) {
  // Cache group 0 has room for what is asked, group 1 has not: the first must be left alone as well.
  const CacheConfig config = TestCache::Config(/*page_size=*/4, /*window=*/0);
  for (const GroupCapacity& scarce : {GroupCapacity{5, 5}, GroupCapacity{40, 1}}) {
    TestCache cache(config, {{40, 8}, scarce}, /*max_append=*/64);
    const SeqId a = cache.books.AddSequence(0).value();
    const std::vector<uint32_t> tokens = cache.NewTokens(18);
    ASSERT_TRUE(cache.Append(a, tokens).ok());
    cache.Run();
    const SeqId b = cache.books.Fork(a, 0).value();
    const std::vector<int64_t> before = cache.Snapshot();
    EXPECT_EQ(cache.books.Append(b, 60).code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(cache.books.AddSequence(200).status().code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(cache.books.Fork(a, 200).status().code(), StatusCode::kResourceExhausted);
    if (scarce.metadata_groups == 1) {
      EXPECT_EQ(cache.books.Truncate(b, 17).code(), StatusCode::kResourceExhausted);
    }
    EXPECT_EQ(cache.Snapshot(), before);
    cache.Run();
    EXPECT_TRUE(cache.Holds(a, tokens));
    EXPECT_TRUE(cache.Holds(b, tokens));
    cache.books.CheckInvariants();
  }
}

}  // namespace
}  // namespace quire
