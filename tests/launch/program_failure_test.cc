// The program under mpirun with ranks that fail for real: killed, stopped or wedged while they load, prefill, decode or
// broadcast, or different from the others at the start. Each ends the whole job in under 10 s with the culprit named.
// What the monitor itself sees is tests/parallel/group_failure_test.cc's.
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

// `model` after --model.
std::vector<std::string> Generate(const std::string& model) {
  return {QUIRE_BINARY_DIR "/bin/quire", "generate", "--model", model, "--prompt", "Once", "--max-tokens", "60"};
}
const std::string kModel = QUIRE_SOURCE_DIR "/tests/data/stories260K";
const MpiJob kJob = {.command = Generate(kModel)};
const std::vector<Breakage> kEverywhere = {
    {"load", 1}, {"prefill", 2}, {"decode", 0, 5}, {"decode", 2, 5}, {"broadcast", 1, 3}, {"broadcast", 0, 3}};

TEST(ProgramFailure, AKilledRankEndsTheJobByName) { ExpectEachEndsByName(kJob, "kill", " died ", kEverywhere); }
TEST(ProgramFailure, AStoppedRankEndsTheJobByName) { ExpectEachEndsByName(kJob, "stop", " is stopped ", kEverywhere); }
TEST(ProgramFailure, AWedgedRankEndsTheJobByName) { ExpectEachEndsByName(kJob, "wedge", " hangs ", kEverywhere); }

TEST(ProgramFailure, WhatOneRankLacksEndsAllWithItsReason) {
  // A path that each rank resolves for itself: on rank 1 it leads nowhere.
  std::vector<std::string> elsewhere = {"sh", "-c", "cd '" QUIRE_SOURCE_DIR "/tests/data'; exec \"$@\"", "sh"};
  for (const std::string& word : DifferOnOneRank(Generate("stories260K"), {.before = "cd /"})) elsewhere.push_back(word);
  std::vector<std::string> large = Generate(kModel);
  large.insert(large.end(), {"--max-num-seqs", "8000", "--max-num-batched-tokens", "8000", "--kv-cache-memory-bytes", "4G"});
  const std::vector<MpiJobResult> results = RunMpiJobs({
      {.command = elsewhere},
      {.command = DifferOnOneRank(large, {.rank = 2, .before = "ulimit -v 1500000"})},
      {.command = Generate(kModel), .environment = {{"QUIRE_FAULT", "rank=1,kind=build"}}},
  });
  const std::string who[] = {"rank 1 (host ", "rank 2 (host ", "rank 1 (host "};
  const std::string why[] = {"there is no model at stories260K", "(RESOURCE_EXHAUSTED)", "another build than on the other ranks"};
  const std::string phase[] = {"in phase load: ", "in phase load: ", "in phase start: "};
  for (size_t i = 0; i < results.size(); ++i) {
    ExpectFailed(results[i], why[i]);
    EXPECT_LT(results[i].seconds, 12);
    EXPECT_NE(results[i].err.find(who[i] + HostName()), std::string::npos) << results[i].err;
    EXPECT_NE(results[i].err.find(why[i]), std::string::npos) << results[i].err;
    EXPECT_NE(results[i].err.find(phase[i]), std::string::npos) << results[i].err;
    // One rank tells it.
    const size_t first = results[i].err.find("quire: error");
    EXPECT_EQ(results[i].err.find("quire: error", first + 1), std::string::npos) << results[i].err;
  }
}

TEST(ProgramFailure, ADisturbanceThatIsNoneChangesNothing) {
  // The same jobs without a fault come to their end: what is tested above fails for its reason alone.
  const std::vector<MpiJobResult> results = RunMpiJobs({kJob, {.command = Generate(kModel), .environment = {{"QUIRE_FAULT", "rank=9,phase=decode,kind=kill"}}}});
  for (const MpiJobResult& result : results) {
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("there was a"), std::string::npos) << result.out;
  }
}

}  // namespace
}  // namespace quire
