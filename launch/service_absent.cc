// What of the program needs a service, in one that was built without gRPC: each says so.
#include "launch/command.h"
#include "launch/score.h"

namespace quire::launch {
namespace {

Status WithoutGrpc() {
  return Unimplemented(
      "this program was built without gRPC; install libgrpc++-dev and protobuf-compiler-grpc and build it with "
      "QUIRE_GRPC=ON");
}

Command Absent(CLI::App& parent, const char* name) {
  CLI::App* app = parent.add_subcommand(name, "(this program was built without gRPC)");
  app->allow_extras();
  app->fallthrough(false);  // or the program itself is offered the flags, and refuses them
  return {app, WithoutGrpc};
}

}  // namespace

Command AddBenchServe(CLI::App& parent) { return Absent(parent, "serve"); }
Command AddServe(CLI::App& parent) { return Absent(parent, "serve"); }
Command AddCoordinator(CLI::App& parent) { return Absent(parent, "coordinator"); }
Command AddClient(CLI::App& parent) { return Absent(parent, "client"); }

Result<std::vector<ScoredText>> ScoreByService(const std::string&, double, double, const std::vector<ScoreText>&, int) {
  return WithoutGrpc();
}

}  // namespace quire::launch
