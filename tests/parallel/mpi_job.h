// An mpirun job as a process of its own: its output, its end and what it left behind. For tests that break its ranks.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace quire::testing {

struct MpiJobResult {
  int exit_code = -1;  // mpirun's; −1 when a signal ended it, or it had to be ended because the time was up
  std::string out, err;
  double seconds = 0;             // from start to end
  double seconds_after_fault = -1;  // from QUIRE_FAULT's line on stderr to the end; −1: there was none
  std::vector<int> survivors;     // processes of the job that outlived mpirun by more than 2 s; they have been killed
};

struct MpiJob {
  int ranks = 3;
  std::vector<std::string> command = {};                 // program and arguments
  std::map<std::string, std::string> environment = {};   // of all ranks
  int seconds = 60;                                 // after which the job is ended
};

// Runs it by tests/mpirun.sh. Thread safe.
MpiJobResult RunMpiJob(const MpiJob& job);
// A few at once, so that a busy machine has time for all of them; results in the same order.
std::vector<MpiJobResult> RunMpiJobs(const std::vector<MpiJob>& jobs);

// `command`, which differs on one rank. All ranks run it through sh.
struct OnOneRank {
  int rank = 1;
  std::string before = {};               // shell commands, as "ulimit -v 1000000"
  std::string instead = {};              // another program
  std::vector<std::string> suffix = {};  // further arguments
};
std::vector<std::string> DifferOnOneRank(const std::vector<std::string>& command, const OnOneRank& difference);

// Where a rank is to fail: its `after`-th entry into the phase.
struct Breakage {
  std::string phase;
  int rank = 1;
  int after = 1;
};
// Runs `job` once for each breakage with QUIRE_FAULT of this kind, and expects of each: an end in under
// 10 s with a non-zero exit, nothing left behind, and an error line with the culprit's rank, host, `says` and phase.
void ExpectEachEndsByName(const MpiJob& job, const std::string& kind, const std::string& says,
                          const std::vector<Breakage>& breakages);
// A non-zero exit, no "done" on stdout, nothing left behind.
void ExpectFailed(const MpiJobResult& result, const std::string& what);
std::string HostName();

}  // namespace quire::testing
