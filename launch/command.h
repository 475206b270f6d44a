// A subcommand: its flags on a CLI::App, and what to run once they are parsed. One file each; program.cc lists them.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "core/base/status.h"

namespace quire::launch {

struct Command {
  CLI::App* app = nullptr;  // owned by the parent
  std::function<Status()> run;
};

Command AddGenerate(CLI::App& parent);
Command AddTokenize(CLI::App& parent);
Command AddScore(CLI::App& parent);
Command AddEvalPerplexity(CLI::App& parent);
Command AddEvalPasskey(CLI::App& parent);
Command AddEvalRecall(CLI::App& parent);
Command AddEvalAgreement(CLI::App& parent);
Command AddEvalTasks(CLI::App& parent);
Command AddEvalReport(CLI::App& parent);
Command AddBenchPrefill(CLI::App& parent);
Command AddBenchDecode(CLI::App& parent);
Command AddBenchKernels(CLI::App& parent);
Command AddBenchCrossover(CLI::App& parent);
Command AddInfo(CLI::App& parent);
Command AddBenchServe(CLI::App& parent);  // this and those below say so where the program was built without gRPC
Command AddServe(CLI::App& parent);
Command AddCoordinator(CLI::App& parent);
Command AddClient(CLI::App& parent);

}  // namespace quire::launch
