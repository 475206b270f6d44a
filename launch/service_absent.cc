// The subcommands of the service in a program that was built without gRPC: each says so.
#include "launch/command.h"

namespace quire::launch {
namespace {

Command Absent(CLI::App& parent, const char* name) {
  CLI::App* app = parent.add_subcommand(name, "(this program was built without gRPC)");
  app->allow_extras();
  return {app, [] {
            return Unimplemented(
                "this program was built without gRPC; install libgrpc++-dev and protobuf-compiler-grpc and build it "
                "with QUIRE_GRPC=ON");
          }};
}

}  // namespace

Command AddServe(CLI::App& parent) { return Absent(parent, "serve"); }
Command AddCoordinator(CLI::App& parent) { return Absent(parent, "coordinator"); }
Command AddClient(CLI::App& parent) { return Absent(parent, "client"); }

}  // namespace quire::launch
