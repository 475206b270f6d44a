// The program of a build without MPI, as a launcher starts it: it must not take itself for the only process.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace quire {
namespace {

TEST(WithoutMpi, ALaunchedProgramSaysWhatIsMissingOnce) {
  const std::vector<std::string> generate = {"generate", "--model", DataPath("stories260K"), "--prompt", "Once",
                                             "--max-tokens", "3"};
  const auto run = [&](const std::string& rank) {
    return RunQuire(generate, {{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", rank}});
  };
  const ProgramResult first = run("0");
  EXPECT_EQ(first.exit_code, 1);
  EXPECT_EQ(first.out, "");
  EXPECT_NE(first.err.find("this build has no MPI"), std::string::npos) << first.err;
  const ProgramResult second = run("1");
  EXPECT_EQ(second.exit_code, 0);  // mpirun's exit code is the first rank's
  EXPECT_EQ(second.out + second.err, "");
}

TEST(WithoutMpi, RanksAsThreadsNeedNone) {
  const std::vector<std::string> generate = {"generate", "--model", DataPath("stories260K"), "--prompt", "Once",
                                             "--max-tokens", "8", "--dtype", "float32"};
  std::vector<std::string> two = generate;
  two.insert(two.end(), {"-tp", "2"});
  const ProgramResult alone = RunQuire(generate), both = RunQuire(two);
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(both.exit_code, 0) << both.err;
  EXPECT_EQ(both.out, alone.out);
}

}  // namespace
}  // namespace quire
