#include "parallel/stall_judge.h"

#include <algorithm>

namespace quire {
namespace {

// Phases in which a rank does something of its own accord; in the others it may rest as long as it likes.
bool Works(Phase phase) {
  return phase == Phase::kLoad || phase == Phase::kBroadcast || phase == Phase::kPrefill || phase == Phase::kDecode;
}

// Inside a collective in this phase a rank may just be waiting for the next step of an idle group.
bool MayWaitForAStep(Phase phase) { return phase == Phase::kIdle || phase == Phase::kBroadcast; }

}  // namespace

StallJudge::StallJudge(int size, double silence, double stall, double now)
    : silence_(silence), stall_(stall), ranks_(size) {
  for (Rank& rank : ranks_) rank.heard = rank.moved = now;
}

void StallJudge::Heard(int rank, const ProgressReport& report, double now) {
  Rank& r = ranks_[rank];
  r.heard = now;
  if (r.report == report) return;
  r.report = report;
  r.moved = now;
}

void StallJudge::Left(int rank, double now) {
  ranks_[rank].left = true;
  ranks_[rank].moved = now;
}

void StallJudge::Excuse(double seconds) {
  for (Rank& rank : ranks_) {
    rank.heard += seconds;
    rank.moved += seconds;
  }
}

std::vector<int> StallJudge::Waiting(int except) const {
  std::vector<int> waiting;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (static_cast<int>(r) != except && !ranks_[r].left && ranks_[r].report.inside()) {
      waiting.push_back(static_cast<int>(r));
    }
  }
  return waiting;
}

GroupFailure StallJudge::Fail(GroupFailure::Kind kind, int rank, double seconds) const {
  GroupFailure failure;
  failure.kind = kind;
  failure.rank = rank;
  failure.seconds = seconds;
  if (rank >= 0) failure.last = ranks_[rank].report;
  failure.waiting = Waiting(rank);
  return failure;
}

std::optional<GroupFailure> StallJudge::Judge(double now) const {
  const int size = static_cast<int>(ranks_.size());
  const auto still = [&](const Rank& r) { return now - r.moved >= stall_; };
  bool waits = false, waits_in_a_step = false;  // somebody hasn't moved inside a collective
  int present = 0, stuck_inside = 0;
  for (int r = 0; r < size; ++r) {
    const Rank& rank = ranks_[r];
    if (rank.left) continue;
    if (now - rank.heard >= silence_) return Fail(GroupFailure::Kind::kSilent, r, now - rank.heard);
    ++present;
    if (!still(rank) || !rank.report.inside()) continue;
    ++stuck_inside;
    waits = true;
    waits_in_a_step = waits_in_a_step || !MayWaitForAStep(rank.report.phase);
  }
  for (int r = 0; r < size; ++r) {
    const Rank& rank = ranks_[r];
    // That others wait for one who left is old news only if it is as old as the goodbye: reports lag behind.
    if (still(rank) && (rank.left ? waits : !rank.report.inside() && Works(rank.report.phase))) {
      return Fail(rank.left ? GroupFailure::Kind::kLeft : GroupFailure::Kind::kStalled, r, now - rank.moved);
    }
  }
  for (int r = 0; r < size && waits_in_a_step; ++r) {
    if (still(ranks_[r]) && !ranks_[r].left && !ranks_[r].report.inside()) return Fail(GroupFailure::Kind::kStalled, r, now - ranks_[r].moved);
  }
  if (present > 0 && stuck_inside == present) {
    const auto earlier = [](const Rank& a, const Rank& b) { return a.report.collectives < b.report.collectives; };
    const auto [first, last] = std::minmax_element(ranks_.begin(), ranks_.end(), earlier);
    const int behind = first->report.collectives < last->report.collectives ? static_cast<int>(first - ranks_.begin()) : -1;
    double seconds = now - ranks_[0].moved;
    for (const Rank& rank : ranks_) seconds = std::min(seconds, now - rank.moved);
    return Fail(GroupFailure::Kind::kStalled, behind, seconds);
  }
  return std::nullopt;
}

}  // namespace quire
