// The service as a library: a group, a coordinator in front of it and a client of it, in one program outside the tree.
#include <quire/rpc/client.h>
#include <quire/rpc/coordinator.h>
#include <quire/rpc/serve.h>

#include <cstdio>
#include <iostream>
#include <string>

namespace {

int Fail(const quire::Status& status) { return std::fprintf(stderr, "%s\n", status.ToString().c_str()), 1; }

}  // namespace

int main(int argc, char** argv) {
  quire::CoordinatorOptions front;
  front.listen = "127.0.0.1:0";
  auto coordinator = quire::Coordinator::Start(front);
  if (!coordinator.ok()) return Fail(coordinator.status());

  quire::ServeOptions serve;
  serve.listen = "127.0.0.1:0";
  serve.coordinators = {(*coordinator)->address()};
  auto group = quire::GroupServer::Start(serve);
  if (!group.ok()) return Fail(group.status());
  quire::EngineOptions options;
  options.model = argc > 1 ? argv[1] : "";
  options.max_num_seqs = 4;
  auto engine = quire::Engine::Create(options);
  if (!engine.ok()) return Fail(engine.status());
  (*group)->Serve(std::move(*engine));

  auto client = quire::Client::Connect({.address = (*coordinator)->address()});
  if (!client.ok()) return Fail(client.status());
  quire::ClientRequest request;
  request.prompts.emplace_back().text = "Once upon a time";
  request.parameters.sampling.temperature = 0;
  request.parameters.stopping.max_tokens = 40;
  // The group is not registered yet: the client waits for it.
  const quire::Status status = (*client)->Generate(
      request, [](const quire::ClientChunk& chunk) { std::cout << chunk.event.text << std::flush; });
  if (!status.ok()) return Fail(status);
  const auto load = (*client)->Load();
  if (!load.ok()) return Fail(load.status());
  std::cout << "\n" << load->groups << " group, " << load->running << " running\n";
  (*coordinator)->Stop();
  (*group)->Stop();
  return 0;
}
