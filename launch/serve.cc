// quire serve: one group (this process, or the ranks of an mpirun job behind rank 0) as a gRPC service. Listens before
// it loads, so that whoever waits for it is told how far it is.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "parallel/build_id.h"
#include "rpc/serve.h"

namespace quire::launch {
namespace {

constexpr int kDefaultSeqs = 32;

struct ServeFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string host = "127.0.0.1";
  int port = 50051;
  std::string served_model, group, advertise;
  std::vector<std::string> coordinators;
  int max_queue = 4096;
  double shutdown_timeout = 30;
};

Status CheckFlags(const ServeFlags& flags) {
  if (flags.port < 0 || flags.port > 65535) {
    return InvalidArgument("--port is " + std::to_string(flags.port) + "; it must be 0 (any free one) to 65535");
  }
  if (flags.max_queue < 1) {
    return InvalidArgument("--max-queue is " + std::to_string(flags.max_queue) + "; it must be at least 1");
  }
  if (!(flags.shutdown_timeout >= 0 && flags.shutdown_timeout <= 1e6)) {
    return InvalidArgument("--shutdown-timeout is " + Fixed(flags.shutdown_timeout, 1) +
                           "; it must be 0 to 1000000 seconds");
  }
  for (const std::string& address : flags.coordinators) {
    if (address.find(':') == std::string::npos) {
      return InvalidArgument("--coordinator is \"" + address + "\"; it takes HOST:PORT");
    }
  }
  return OkStatus();
}

Status RunServe(const ServeFlags& flags, const Seat& seat) {
  RETURN_IF_ERROR(CheckFlags(flags));
  ASSIGN_OR_RETURN(auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, std::move(specs), kDefaultSeqs));

  ServeOptions serve;
  serve.listen = flags.host + ":" + std::to_string(flags.port);
  char build[16];
  std::snprintf(build, sizeof build, "+%08x", static_cast<unsigned>(BuildHash()));
  serve.version = std::string(QUIRE_VERSION) + build;
  serve.group = flags.group;
  serve.served_model = flags.served_model;
  serve.tensor_parallel_size = seat.ranks();
  serve.coordinators = flags.coordinators;
  serve.advertise = flags.advertise;
  serve.max_queue = flags.max_queue;
  serve.shutdown_timeout_s = flags.shutdown_timeout;
  ASSIGN_OR_RETURN(const auto server, GroupServer::Start(std::move(serve)));
  WriteOut("listening on " + server->address() + "\n");

  options.progress = [&server](const std::string& phase, double fraction) { server->SetLoading(phase, fraction); };
  auto engine = OpenEngineForTokenIds(seat, std::move(options));
  RETURN_IF_ERROR(engine.status());
  const EngineOptions& made = (*engine)->options();
  const std::string ready = "ready: " + (*engine)->config().name + ", " + made.dtype + ", context " +
                            std::to_string(made.max_model_len) + ", " + std::to_string(made.max_num_seqs) +
                            " sequences at once\n";
  server->Serve(std::move(engine).value());
  WriteOut(ready);  // whoever waits for it sends requests at once

  bool said = false;
  while (!server->Drained()) {
    RETURN_IF_ERROR(server->failure());
    if ((Interrupted() || DrainRequested()) && !server->draining()) server->Drain();
    if (server->draining() && !std::exchange(said, true)) {
      Log(LogLevel::kInfo, "draining: new requests are refused, running ones have up to " +
                               Fixed(flags.shutdown_timeout, 0) + " seconds");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  server->Stop();
  return OkStatus();
}

}  // namespace

Command AddServe(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("serve", "Serves a model over gRPC, alone or as a group behind a coordinator");
  auto flags = std::make_shared<ServeFlags>();
  app->footer(R"(
Examples
  quire serve --model M.gguf --port 50051
  quire serve --model DIR --attention dense,quest:token_budget=1024 --coordinator 127.0.0.1:50050 --port 0
The address comes first on stdout, "ready" once requests are taken. SIGTERM, Ctrl-C, SIGUSR1 or `quire client --drain`
end it: running requests have --shutdown-timeout seconds. A second SIGTERM or Ctrl-C ends it at once.)");
  const std::string group = "Service";
  auto add = [&](CLI::Option* option) { option->group(group); };
  add(AddFlag(*app, "--host", &flags->host, "address to listen on; 0.0.0.0 for every interface (nobody is asked who "
                                            "they are)"));
  add(AddFlag(*app, "--port", &flags->port, "0: any free one"));
  add(AddFlag(*app, "--served-model-name", &flags->served_model, "its name in requests; empty: the model's own"));
  add(AddFlag(*app, "--group-name", &flags->group, "its name in loads and logs; empty: HOST:PORT"));
  add(app->add_option("--coordinator", flags->coordinators, "HOST:PORT to register with; may be repeated")
          ->delimiter(',')
          ->envname("QUIRE_COORDINATOR"));
  add(AddFlag(*app, "--advertise", &flags->advertise,
              "HOST:PORT that coordinators are told; empty: this port at the host they see"));
  add(AddFlag(*app, "--max-queue", &flags->max_queue, "sequences in flight, running and waiting; more are refused"));
  add(AddFlag(*app, "--shutdown-timeout", &flags->shutdown_timeout, "seconds that running requests have at the end"));
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            InstallDrainSignal();  // on every rank: mpirun hands the signal to all of them
            return RunGroup(GroupOf(flags->engine), [&](const Seat& seat) { return RunServe(*flags, seat); });
          }};
}

}  // namespace quire::launch
