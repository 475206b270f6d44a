// The list of subcommands, the config file, and what a Status becomes. See program.h.
#include "launch/program.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "launch/command.h"
#include "launch/output.h"
#include "launch/signals.h"
#include "parallel/mpi_communicator.h"

namespace quire::launch {
namespace {

constexpr const char* kExamples = R"(
Examples
  quire generate --model ~/.cache/quire/models/SmolLM2-135M-Instruct.gguf --chat --prompt "What is a quire of paper?"
  quire generate --model DIR --prompt-file book.txt --max-tokens 200 --attention quest:token_budget=1024
  quire eval perplexity --model DIR --text-file book.txt --attention dense,quest --token-budget 256,512
  quire bench decode --model DIR --load-format dummy --depth 0,4096,32768 --attention dense,quest --batch 1,8
  quire info --model DIR
  quire serve --model DIR --port 50051
  quire client --address 127.0.0.1:50051 --prompt "Once upon a time"

Each command has its own --help. Where a flag is missing, its QUIRE_… variable is read (--page-size: QUIRE_PAGE_SIZE);
--config FILE reads flags as lines "page-size = 16", with sections such as [generate] for one command alone.
The command line wins over the config file, and that over the environment.)";

// CLI11 gives keys without a section to the program itself, which has no flags; here they belong to the subcommand that
// runs. Sections of other subcommands are left out.
class SubcommandConfig : public CLI::ConfigTOML {
 public:
  explicit SubcommandConfig(const CLI::App* root) : root_(root) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<std::string> path;
    for (const CLI::App* app = root_; !app->get_subcommands().empty();) {
      app = app->get_subcommands().front();
      path.push_back(app->get_name());
    }
    std::vector<CLI::ConfigItem> items;
    for (CLI::ConfigItem& item : CLI::ConfigTOML::from_config(input)) {
      if (item.name == "++" || item.name == "--") continue;  // section borders, which only callbacks need
      if (item.parents.empty()) item.parents = path;
      if (item.parents == path) items.push_back(std::move(item));
    }
    return items;
  }

 private:
  const CLI::App* root_;
};

int Fail(const Status& status) {
  if (Interrupted()) {
    std::fprintf(stderr, "quire: interrupted\n");
    return kExitInterrupted;
  }
  if (OutputBroken() && OutputStatus().code() == StatusCode::kCancelled) return kExitBrokenPipe;
  std::fprintf(stderr, "quire: error: %s (%s)\n", status.message().c_str(),
               std::string(StatusCodeName(status.code())).c_str());
  return kExitFailed;
}

int Dispatch(std::vector<std::string> arguments) {
  CLI::App app{
      "Quire: language models with long prompts, over a paged cache of which each step reads the pages that matter"};
  app.name("quire");
  app.footer(kExamples);
  app.require_subcommand(1);
  app.set_version_flag("--version", "quire " QUIRE_VERSION);
  app.set_config("--config", "", "file with flags, as lines name = value")->type_name("FILE")->envname("QUIRE_CONFIG");
  app.config_formatter(std::make_shared<SubcommandConfig>(&app));
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.fallthrough();
  app.get_formatter()->column_width(34);

  std::vector<Command> commands;
  commands.push_back(AddGenerate(app));
  commands.push_back(AddTokenize(app));
  commands.push_back(AddScore(app));
  CLI::App* eval = app.add_subcommand("eval", "Accuracy of attention policies against dense: perplexity, passkey, recall, agreement, tasks; report draws them");
  eval->require_subcommand(1);
  commands.push_back(AddEvalPerplexity(*eval));
  commands.push_back(AddEvalPasskey(*eval));
  commands.push_back(AddEvalRecall(*eval));
  commands.push_back(AddEvalAgreement(*eval));
  commands.push_back(AddEvalTasks(*eval));
  commands.push_back(AddEvalReport(*eval));
  CLI::App* bench = app.add_subcommand("bench", "Speed beside what the machine can do: prefill, decode, kernels; and of a service: serve");
  bench->require_subcommand(1);
  commands.push_back(AddBenchPrefill(*bench));
  commands.push_back(AddBenchDecode(*bench));
  commands.push_back(AddBenchKernels(*bench));
  commands.push_back(AddBenchCrossover(*bench));
  commands.push_back(AddBenchServe(*bench));
  commands.push_back(AddInfo(app));
  commands.push_back(AddServe(app));
  commands.push_back(AddCoordinator(app));
  commands.push_back(AddClient(app));

  // CLI11 takes the arguments in reverse order.
  const bool speaks = LaunchedRank() == 0;  // what all ranks of a job have to say is said once
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      if (speaks) app.exit(error);  // --help, --version: prints them
      return 0;
    }
    const CLI::App* where = &app;
    std::string command = "quire";
    while (!where->get_subcommands().empty()) {
      where = where->get_subcommands().front();
      command += " " + where->get_name();
    }
    if (speaks) std::fprintf(stderr, "quire: error: %s. See %s --help\n", error.what(), command.c_str());
    return kExitUsage;
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    Status status = command.run();
    if (status.ok()) status = OutputStatus();
    return status.ok() ? 0 : Fail(status);
  }
  return kExitUsage;  // not reached: a subcommand is required
}

}  // namespace

int RunProgram(int argc, char** argv) {
  InstallSignalHandlers();
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    // vLLM's short name has two letters, which CLI11 has no place for.
    if (argument == "-tp")
      argument = "--tensor-parallel-size";
    else if (argument.rfind("-tp=", 0) == 0)
      argument = "--tensor-parallel-size" + argument.substr(3);
    arguments.push_back(std::move(argument));
  }
  try {
    return Dispatch(std::move(arguments));
  } catch (const std::exception& error) {  // of a third party's, or no memory
    std::fprintf(stderr, "quire: error: %s (INTERNAL)\n", error.what());
    return kExitFailed;
  }
}

}  // namespace quire::launch
