// quire coordinator: one gRPC service in front of any number of groups.
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/output.h"
#include "launch/signals.h"
#include "rpc/coordinator.h"

namespace quire::launch {
namespace {

struct CoordinatorFlags {
  std::string host = "127.0.0.1";
  int port = 50050;
  std::vector<std::string> workers;
  std::string model, name;
  int max_queue = 4096;
  double shutdown_timeout = 30, group_timeout = 2.5, group_wait = 2, batch_window_ms = 1;
};

Status CheckSeconds(const std::string& flag, double value, double least, double most) {
  if (value >= least && value <= most) return OkStatus();
  return InvalidArgument(flag + " is " + Fixed(value, 3) + "; it must be " + Fixed(least, 1) + " to " + Fixed(most, 0));
}

Status RunCoordinator(const CoordinatorFlags& flags) {
  if (flags.port < 0 || flags.port > 65535) {
    return InvalidArgument("--port is " + std::to_string(flags.port) + "; it must be 0 (any free one) to 65535");
  }
  if (flags.max_queue < 1) {
    return InvalidArgument("--max-queue is " + std::to_string(flags.max_queue) + "; it must be at least 1");
  }
  RETURN_IF_ERROR(CheckSeconds("--shutdown-timeout", flags.shutdown_timeout, 0, 1e6));
  RETURN_IF_ERROR(CheckSeconds("--group-timeout", flags.group_timeout, 1.5, 600));
  RETURN_IF_ERROR(CheckSeconds("--group-wait", flags.group_wait, 0, 3600));
  RETURN_IF_ERROR(CheckSeconds("--batch-window-ms", flags.batch_window_ms, 0, 1000));
  InstallDrainSignal();

  CoordinatorOptions options;
  options.listen = flags.host + ":" + std::to_string(flags.port);
  options.version = QUIRE_VERSION;
  options.name = flags.name;
  options.workers = flags.workers;
  options.model = flags.model;
  options.max_queue = flags.max_queue;
  options.shutdown_timeout_s = flags.shutdown_timeout;
  options.silent_s = flags.group_timeout;
  options.no_group_s = flags.group_wait;
  options.batch_window_s = flags.batch_window_ms / 1000;
  ASSIGN_OR_RETURN(const auto coordinator, Coordinator::Start(std::move(options)));
  WriteOut("listening on " + coordinator->address() + "\n");

  bool said = false;
  while (!coordinator->Drained()) {
    if ((Interrupted() || DrainRequested()) && !coordinator->draining()) coordinator->Drain();
    if (coordinator->draining() && !std::exchange(said, true)) {
      Log(LogLevel::kInfo, "draining: new requests are refused, running ones have up to " +
                               Fixed(flags.shutdown_timeout, 0) + " seconds");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  coordinator->Stop();
  return OkStatus();
}

}  // namespace

Command AddCoordinator(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand(
      "coordinator", "One service in front of many groups: spreads requests, and takes them over when a group is lost");
  auto flags = std::make_shared<CoordinatorFlags>();
  app->footer(R"(
Examples
  quire coordinator --worker 127.0.0.1:50051 --worker 127.0.0.1:50052
  quire coordinator --port 50050      and groups that register: quire serve --coordinator HOST:50050 …
Clients use it like a group: quire client --address HOST:50050 …
SIGTERM, Ctrl-C, SIGUSR1 or `quire client --drain` end it: running requests have --shutdown-timeout seconds.)");
  AddFlag(*app, "--host", &flags->host, "address to listen on; 0.0.0.0 for every interface (nobody is asked who they "
                                        "are)");
  AddFlag(*app, "--port", &flags->port, "0: any free one");
  app->add_option("--worker", flags->workers, "HOST:PORT of a group; may be repeated; others may register")
      ->delimiter(',')
      ->envname("QUIRE_WORKER");
  AddFlag(*app, "--model,-m", &flags->model, "folder or .gguf file whose tokenizer is taken; empty: a group's own");
  AddFlag(*app, "--name", &flags->name, "its name in groups' logs; empty: host and port");
  AddFlag(*app, "--max-queue", &flags->max_queue, "sequences in flight, running and waiting; more are refused");
  AddFlag(*app, "--shutdown-timeout", &flags->shutdown_timeout, "seconds that running requests have at the end");
  AddFlag(*app, "--group-timeout", &flags->group_timeout,
          "a group that says nothing for so many seconds loses its requests to others");
  AddFlag(*app, "--group-wait", &flags->group_wait, "seconds that requests wait when there is no group");
  AddFlag(*app, "--batch-window-ms", &flags->batch_window_ms,
          "how long a request for a busy group waits for others to go with it; an idle one gets it at once");
  return {app, [flags] { return RunCoordinator(*flags); }};
}

}  // namespace quire::launch
