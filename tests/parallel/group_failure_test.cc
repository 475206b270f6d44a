// Ranks that fail for real: processes of an mpirun job that are killed, stopped, wedged or exit in each phase, or that
// differ from the others at the start. Each must end the whole job in under 10 s, with a non-zero exit and the
// culprit's rank, host and phase on stderr, and leave no process behind. group_member.cc is the program.
#include <gtest/gtest.h>

#include "tests/parallel/mpi_job.h"

namespace quire {
namespace {

using testing::Breakage;
using testing::DifferOnOneRank;
using testing::ExpectEachEndsByName;
using testing::ExpectFailed;
using testing::HostName;
using testing::MpiJob;
using testing::MpiJobResult;
using testing::RunMpiJobs;

const std::string kMember = QUIRE_BINARY_DIR "/bin/group_member";

const MpiJob kJob = {.command = {kMember, "--steps", "20"}};
const std::vector<Breakage> kEverywhere = {{"load", 1}, {"prefill", 2}, {"decode", 0}, {"broadcast", 1}, {"broadcast", 0}};

TEST(GroupFailure, AKilledRankEndsTheGroupByName) { ExpectEachEndsByName(kJob, "kill", " died ", kEverywhere); }
TEST(GroupFailure, ARankThatExitsEndsTheGroupByName) { ExpectEachEndsByName(kJob, "exit", " died ", kEverywhere); }
TEST(GroupFailure, AStoppedRankEndsTheGroupByName) { ExpectEachEndsByName(kJob, "stop", " is stopped ", kEverywhere); }
TEST(GroupFailure, AWedgedRankEndsTheGroupByName) { ExpectEachEndsByName(kJob, "wedge", " hangs ", kEverywhere); }

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
  const std::string reasons[] = {"rank 1 (host " + HostName(), "rank 2 (host " + HostName(),
                                 "another build than on the other ranks", "another build than on the other ranks"};
  for (size_t i = 0; i < results.size(); ++i) {
    ExpectFailed(results[i], reasons[i]);
    EXPECT_LT(results[i].seconds, 10);
    EXPECT_NE(results[i].err.find(reasons[i]), std::string::npos) << results[i].err;
  }
  EXPECT_NE(results[0].err.find("/nowhere/model.gguf can't be opened"), std::string::npos) << results[0].err;
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
  ExpectFailed(results[0], "sleeps before MPI_Init");
  EXPECT_NE(results[0].err.find("MPI_Init has not ended"), std::string::npos) << results[0].err;
  EXPECT_LT(results[0].seconds, 10);
  ExpectFailed(results[1], "stops before the monitor's start");
  EXPECT_NE(results[1].err.find("rank 1 (host " + HostName()), std::string::npos) << results[1].err;
  EXPECT_NE(results[1].err.find("phase start"), std::string::npos) << results[1].err;
  EXPECT_LT(results[1].seconds, 11);
}

}  // namespace
}  // namespace quire
