// Ranks that fail for real: processes of an mpirun job that are killed, stopped, wedged or exit in each phase, or that
// differ from the others at the start. Each must end the whole job in under 10 s, with a non-zero exit and the
// culprit's rank, host and phase on stderr, and leave no process behind. group_member.cc is the program.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/parallel/mpi_job.h"

namespace quire {
namespace {

using testing::DifferOnOneRank;
using testing::MpiJob;
using testing::MpiJobResult;
using testing::OnOneRank;
using testing::RunMpiJob;
using testing::RunMpiJobs;

const std::string kMember = QUIRE_BINARY_DIR "/bin/group_member";

std::string Host() {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  return host;
}

void ExpectEnded(const MpiJobResult& result, const std::string& what) {
  SCOPED_TRACE(what + "\n" + result.err + result.out);
  EXPECT_GT(result.exit_code, 0);
  EXPECT_EQ(result.out.find("done"), std::string::npos);
  EXPECT_TRUE(result.survivors.empty()) << result.survivors.size() << " processes outlived the job";
}

struct Place {
  const char* phase;
  int rank;
};
constexpr Place kPlaces[] = {{"load", 1}, {"prefill", 2}, {"decode", 0}, {"broadcast", 1}, {"broadcast", 0}};

// Breaks a rank in each phase and expects a line with its rank, host, and `says` + its phase.
void BreakEverywhere(const std::string& kind, const std::string& says) {
  std::vector<MpiJob> jobs;
  for (const Place& place : kPlaces) {
    jobs.push_back({.command = {kMember, "--steps", "20"},
                    .environment = {{"QUIRE_FAULT", "rank=" + std::to_string(place.rank) + ",phase=" + place.phase +
                                                        ",kind=" + kind}}});
  }
  const std::vector<MpiJobResult> results = RunMpiJobs(jobs);
  for (size_t i = 0; i < results.size(); ++i) {
    const MpiJobResult& result = results[i];
    const std::string what = kind + " in " + kPlaces[i].phase + " of rank " + std::to_string(kPlaces[i].rank);
    ExpectEnded(result, what);
    EXPECT_GE(result.seconds_after_fault, 0) << what << " did not happen\n" << result.err;
    EXPECT_LT(result.seconds_after_fault, 10) << what;
    const std::string who = "rank " + std::to_string(kPlaces[i].rank) + " (host " + Host() + ", pid ";
    const size_t line = result.err.find("quire: error: " + who);
    ASSERT_NE(line, std::string::npos) << what << "\n" << result.err;
    const std::string sentence = result.err.substr(line, result.err.find('\n', line) - line);
    EXPECT_NE(sentence.find(says), std::string::npos) << what << "\n" << sentence;
    EXPECT_NE(sentence.find(std::string("in phase ") + kPlaces[i].phase), std::string::npos) << what << "\n" << sentence;
    std::printf("%s: over after %.1f s\n", what.c_str(), result.seconds_after_fault);
  }
}

TEST(GroupFailure, AKilledRankEndsTheGroupByName) { BreakEverywhere("kill", " died "); }
TEST(GroupFailure, ARankThatExitsEndsTheGroupByName) { BreakEverywhere("exit", " died "); }
TEST(GroupFailure, AStoppedRankEndsTheGroupByName) { BreakEverywhere("stop", " is stopped "); }
TEST(GroupFailure, AWedgedRankEndsTheGroupByName) { BreakEverywhere("wedge", " hangs "); }

TEST(GroupFailure, IdleGroupsAndLongLoadsAreNoFailures) {
  const auto results = RunMpiJobs({{.command = {kMember, "--steps", "1", "--idle-ms", "7000"}},
                                   {.command = DifferOnOneRank({kMember}, {.suffix = {"--load-ms", "7000"}})}});
  for (const MpiJobResult& result : results) {
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("done: 3 ranks on 1 nodes"), std::string::npos) << result.out;
    EXPECT_GT(result.seconds, 6.9);
    EXPECT_EQ(result.err.find("quire:"), std::string::npos) << result.err;
  }
}

TEST(GroupFailure, WhatOneRankLacksEndsAllWithItsReason) {
  const std::vector<MpiJobResult> results = RunMpiJobs({
      {.command = DifferOnOneRank({kMember}, {.suffix = {"--file", "/nowhere/model.gguf"}})},
      {.command = DifferOnOneRank({kMember, "--memory", "2000000000"}, {.rank = 2, .before = "ulimit -v 1500000"})},
      {.command = DifferOnOneRank({kMember}, {.instead = kMember + "_other"})},
      {.command = {kMember}, .environment = {{"QUIRE_FAULT", "rank=0,kind=build"}}},
  });
  const char* const reasons[] = {"rank 1 (host @): /nowhere/model.gguf can't be opened", "rank 2 (host @): ",
                                 "another build than on the other ranks", "another build than on the other ranks"};
  for (size_t i = 0; i < results.size(); ++i) {
    ExpectEnded(results[i], reasons[i]);
    EXPECT_LT(results[i].seconds, 10);
    std::string reason = reasons[i];
    if (const size_t at = reason.find("@)"); at != std::string::npos) reason.replace(at, 2, Host() + ", pid ");
    reason = reason.substr(0, reason.find(", pid") == std::string::npos ? reason.size() : reason.find(", pid"));
    EXPECT_NE(results[i].err.find(reason), std::string::npos) << results[i].err;
  }
  EXPECT_NE(results[0].err.find("/nowhere/model.gguf can't be opened"), std::string::npos);
  EXPECT_NE(results[1].err.find("RESOURCE_EXHAUSTED"), std::string::npos) << results[1].err;
  EXPECT_NE(results[2].err.find("rank 1 (host "), std::string::npos) << results[2].err;
  EXPECT_NE(results[3].err.find("rank 0 (host "), std::string::npos) << results[3].err;
}

TEST(GroupFailure, ARankThatNeverStartsIsNoSilentHang) {
  const auto results = RunMpiJobs({
      // Never comes to MPI_Init.
      {.command = DifferOnOneRank({kMember}, {.before = "exec sleep 30"}), .environment = {{"QUIRE_START_SECONDS", "3"}}},
      // Comes, and stops before the group is watched.
      {.command = DifferOnOneRank({kMember}, {.suffix = {"--stop-at-start", "1"}})},
  });
  ExpectEnded(results[0], "sleeps before MPI_Init");
  EXPECT_NE(results[0].err.find("MPI_Init has not ended"), std::string::npos) << results[0].err;
  EXPECT_LT(results[0].seconds, 10);
  ExpectEnded(results[1], "stops before the monitor's start");
  EXPECT_NE(results[1].err.find("rank 1 (host " + Host()), std::string::npos) << results[1].err;
  EXPECT_NE(results[1].err.find("phase start"), std::string::npos) << results[1].err;
  EXPECT_LT(results[1].seconds, 11);
}

}  // namespace
}  // namespace quire
