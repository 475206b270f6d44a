// The judge's rules, with made-up times: silence 4 s, stall 6 s.
#include "parallel/stall_judge.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

using Kind = GroupFailure::Kind;
constexpr uint64_t kOutside = 10, kInside = 11;

// Three ranks heard of every 0.2 s until `until` with reports that don't change; rank r's is reports[r].
class Group {
 public:
  explicit Group(std::vector<ProgressReport> reports) : reports_(std::move(reports)) {}
  StallJudge& judge() { return judge_; }
  void HearUntil(double until, int except = -1) {
    for (; now_ < until; now_ += 0.2) {
      for (int r = 0; r < 3; ++r) {
        if (r != except) judge_.Heard(r, reports_[r], now_);
      }
      if (moving_ >= 0) ++reports_[moving_].count;
    }
  }
  void Move(int rank) { moving_ = rank; }
  std::optional<GroupFailure> Judge() { return judge_.Judge(now_); }

 private:
  StallJudge judge_{3, 4, 6, 0};
  std::vector<ProgressReport> reports_;
  double now_ = 0;
  int moving_ = -1;
};

TEST(StallJudge, ARankThatIsNotHeardOfIsSilent) {
  Group group({{Phase::kDecode, 1, kInside}, {Phase::kPrefill, 1, kOutside}, {Phase::kDecode, 1, kInside}});
  group.HearUntil(1);
  group.HearUntil(4.5, /*except=*/1);
  EXPECT_FALSE(group.Judge());
  group.HearUntil(5.2, 1);
  const auto failure = group.Judge();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->kind, Kind::kSilent);
  EXPECT_EQ(failure->rank, 1);
  EXPECT_EQ(failure->last.phase, Phase::kPrefill);
  EXPECT_EQ(failure->waiting, (std::vector<int>{0, 2}));
}

TEST(StallJudge, ARankThatStandsStillInAWorkingPhaseHangsAndThoseThatWaitDoNot) {
  for (Phase phase : {Phase::kLoad, Phase::kBroadcast, Phase::kPrefill, Phase::kDecode}) {
    Group group({{Phase::kDecode, 1, kInside}, {Phase::kDecode, 1, kInside}, {phase, 1, kOutside}});
    group.HearUntil(5.7);
    EXPECT_FALSE(group.Judge());
    group.HearUntil(6.3);
    const auto failure = group.Judge();
    ASSERT_TRUE(failure) << PhaseName(phase);
    EXPECT_EQ(failure->kind, Kind::kStalled);
    EXPECT_EQ(failure->rank, 2);
    EXPECT_EQ(failure->last.phase, phase);
  }
}

TEST(StallJudge, ARankThatHangsWhileNobodyWaitsForItYetHangsToo) {
  Group group({{Phase::kLoad, 1, kOutside}, {Phase::kLoad, 1, kOutside}, {Phase::kLoad, 1, kOutside}});
  group.Move(0);
  group.HearUntil(7);
  const auto failure = group.Judge();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, 1);
}

TEST(StallJudge, ALongStepOrLoadThatAdvancesIsNoHang) {
  for (Phase phase : {Phase::kLoad, Phase::kPrefill}) {
    Group group({{phase, 1, kInside}, {phase, 1, kOutside}, {phase, 1, kInside}});
    group.Move(1);
    group.HearUntil(60);
    EXPECT_FALSE(group.Judge());
  }
}

TEST(StallJudge, AnIdleGroupIsNoHang) {
  Group group({{Phase::kIdle, 9, kOutside}, {Phase::kBroadcast, 3, kInside}, {Phase::kIdle, 3, kInside}});
  group.HearUntil(600);
  EXPECT_FALSE(group.Judge());
}

TEST(StallJudge, AnIdleRankThatAStepWaitsForHangs) {
  for (Phase phase : {Phase::kIdle, Phase::kStart, Phase::kStop}) {
    Group group({{phase, 9, kOutside}, {Phase::kDecode, 3, kInside}, {Phase::kBroadcast, 3, kInside}});
    group.HearUntil(7);
    const auto failure = group.Judge();
    ASSERT_TRUE(failure) << PhaseName(phase);
    EXPECT_EQ(failure->rank, 0);
  }
}

TEST(StallJudge, WhenAllWaitTheOneInTheEarliestCollectiveIsNamed) {
  Group group({{Phase::kDecode, 9, kInside + 2}, {Phase::kDecode, 3, kInside}, {Phase::kDecode, 3, kInside + 2}});
  group.HearUntil(5.5);
  EXPECT_FALSE(group.Judge());
  group.HearUntil(7);
  const auto failure = group.Judge();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, 1);
}

TEST(StallJudge, WhenAllWaitInTheSameCollectiveNobodyIsNamed) {
  Group group({{Phase::kDecode, 9, kInside}, {Phase::kDecode, 3, kInside}, {Phase::kDecode, 3, kInside}});
  group.HearUntil(7);
  const auto failure = group.Judge();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, -1);
}

TEST(StallJudge, ARankMayLeaveUnlessAnotherWaits) {
  Group group({{Phase::kIdle, 9, kOutside}, {Phase::kStop, 3, kOutside}, {Phase::kStop, 3, kOutside}});
  group.judge().Left(1, 0);
  group.HearUntil(60, /*except=*/1);
  EXPECT_FALSE(group.Judge());

  // Those who wait have waited for long already, for rank 0 was idle: that alone is no reason.
  Group waits({{Phase::kIdle, 9, kOutside}, {Phase::kStop, 3, kOutside}, {Phase::kBroadcast, 3, kInside}});
  waits.HearUntil(20);
  waits.judge().Left(1, 20);
  EXPECT_FALSE(waits.Judge());
  waits.HearUntil(25, 1);
  EXPECT_FALSE(waits.Judge());
  waits.HearUntil(27, 1);
  const auto failure = waits.Judge();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->kind, Kind::kLeft);
  EXPECT_EQ(failure->rank, 1);
}

TEST(StallJudge, TimeInWhichTheJudgeItselfDidNotRunIsExcused) {
  StallJudge judge(2, 4, 6, 0);
  judge.Heard(0, {Phase::kDecode, 1, kOutside}, 1);
  judge.Heard(1, {Phase::kDecode, 1, kInside}, 1);
  judge.Excuse(100);
  EXPECT_FALSE(judge.Judge(101.5));
  EXPECT_TRUE(judge.Judge(106));
}

}  // namespace
}  // namespace quire
