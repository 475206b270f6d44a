// The program of a build without gRPC: what needs a service says what is missing, and the rest works.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace quire {
namespace {

TEST(WithoutGrpc, CommandsOfTheServiceSayWhatIsMissing) {
  const std::vector<std::vector<std::string>> commands = {
      {"serve", "--model", DataPath("stories260K"), "--port", "0"},
      {"coordinator", "--port", "0"},
      {"client", "--prompt", "x"},
      {"bench", "serve", "--address", "127.0.0.1:1"},
  };
  for (const std::vector<std::string>& command : commands) {
    const ProgramResult result = RunQuire(command);
    EXPECT_EQ(result.exit_code, 1) << command[0];
    EXPECT_EQ(result.out, "") << command[0];
    EXPECT_NE(result.err.find("built without gRPC; install libgrpc++-dev"), std::string::npos)
        << command[0] << ": " << result.err;
  }
  const ProgramResult help = RunQuire({"serve", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.out.find("without gRPC"), std::string::npos) << help.out;
}

TEST(WithoutGrpc, ScoreByAServiceSaysWhatIsMissing) {
  const ScratchFolder scratch;
  const ProgramResult result =
      RunQuire({"score", "--address", "127.0.0.1:1", "--token-ids-file", scratch.Write("ids", "[1, 2]")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("built without gRPC"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace quire
