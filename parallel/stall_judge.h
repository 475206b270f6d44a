// Who is at fault: from what the ranks of a group report of themselves, tells a rank that hangs from those that wait for
// it, a long step from a hang and an idle engine from both. Arithmetic on reports and times alone; how reports travel and
// what is done about a verdict is group_monitor's business. Not thread safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/progress.h"

namespace quire {

// What one rank says of itself.
struct ProgressReport {
  Phase phase = Phase::kStart;
  uint64_t count = 0;        // ProgressMark::count
  uint64_t collectives = 0;  // ProgressMark::collectives: odd while inside one
  bool inside() const { return collectives % 2 == 1; }
  bool operator==(const ProgressReport&) const = default;
};
inline ProgressReport ReportOf(const ProgressMark& mark) { return {mark.phase(), mark.count(), mark.collectives()}; }

struct GroupFailure {
  enum class Kind {
    kDied,     // its connection closed without a goodbye
    kSilent,   // its connection is open, but nothing is heard: stopped, or its host is unreachable
    kStalled,  // it is heard of, but makes no progress, or all wait in a collective that doesn't end
    kLeft,     // it said goodbye while others wait for it
  };
  Kind kind = Kind::kStalled;
  int rank = -1;        // the culprit; -1: no rank in particular
  ProgressReport last;      // its last report
  double seconds = 0;   // since it was last heard of (kDied, kSilent) or last moved
  std::vector<int> waiting;  // ranks that wait in a collective meanwhile
};

// Seconds are of one monotonic clock (NowSeconds).
class StallJudge {
 public:
  // silence: a rank unheard of so long has stopped. stall: a rank that works but hasn't moved for so long hangs.
  StallJudge(int size, double silence, double stall, double now);

  void Heard(int rank, const ProgressReport& report, double now);
  // The rank's goodbye: it is no longer expected to be heard of.
  void Left(int rank, double now);
  // The judge itself didn't run for `seconds` (a suspended machine, a stopped group): nobody is blamed for that time.
  void Excuse(double seconds);

  // The first verdict there is, worst first; nullopt while all is well. The rules:
  //   a rank unheard of for `silence` is silent;
  //   a rank outside of collectives in load, broadcast, prefill or decode that hasn't moved for `stall` is stalled;
  //   a rank that left `stall` ago, while another hasn't moved inside a collective for as long, left too early;
  //   an idle rank (also: before its first phase, or stopping) is stalled only while another waits inside a collective of
  //   a phase that isn't the wait for the next step;
  //   all ranks inside collectives and none moving: the rank in the earliest one, if one is behind, is stalled.
  std::optional<GroupFailure> Judge(double now) const;

  const ProgressReport& last(int rank) const { return ranks_[rank].report; }
  double SecondsSinceHeard(int rank, double now) const { return now - ranks_[rank].heard; }
  // Ranks now inside a collective, but `except`.
  std::vector<int> Waiting(int except) const;

 private:
  struct Rank {
    ProgressReport report;
    double heard = 0, moved = 0;  // when last heard of; when the report last changed, or the rank left
    bool left = false;
  };

  GroupFailure Fail(GroupFailure::Kind kind, int rank, double seconds) const;

  double silence_, stall_;
  std::vector<Rank> ranks_;
};

}  // namespace quire
