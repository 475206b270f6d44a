// The program as a function: parses the command line, runs one subcommand, turns its Status into a sentence on stderr
// and an exit code.
#pragma once

namespace quire::launch {

// Exit codes. 0: done. 1: failed, "quire: error: …" says why. 2: the command line is wrong. 130: Ctrl-C.
// 141: whoever read the output went away.
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;
inline constexpr int kExitBrokenPipe = 141;

int RunProgram(int argc, char** argv);

}  // namespace quire::launch
