// A program that owns MPI itself and generates on all ranks of its job: mpirun -n 2 mpi_program MODEL PROMPT.
// Rank 0 makes the engine and prints; the others follow it. Quire finds MPI initialised and leaves its end to the program.
#include <mpi.h>
#include <quire/core/engine/engine.h>
#include <quire/core/engine/group.h>
#include <quire/parallel/group_monitor.h>
#include <quire/parallel/group_start.h>
#include <quire/parallel/mpi_communicator.h>
#include <quire/parallel/watched_communicator.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <utility>

namespace {

// Rank 0: an engine over all ranks, and one request.
quire::Status Lead(quire::Communicator* comm, quire::ProgressMark* mark, const char* model, const char* prompt) {
  quire::EngineOptions options;
  options.model = model;
  options.dtype = "float32";
  options.comm = comm;
  options.progress_mark = mark;
  ASSIGN_OR_RETURN(const std::unique_ptr<quire::Engine> engine, quire::Engine::Create(options));
  quire::GenerationRequest request;
  ASSIGN_OR_RETURN(request.prompt, engine->tokenizer()->Encode(prompt, {}));
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 40;
  quire::Status failure;
  const auto print = [&](const quire::TokenEvent& event) {
    if (!event.status.ok()) failure = event.status;
    std::cout << event.text << std::flush;
  };
  RETURN_IF_ERROR(engine->Submit(request, print).status());
  RETURN_IF_ERROR(engine->Run());
  std::cout << std::endl;
  return failure;
}

quire::Status Run(const char* model, const char* prompt) {
  ASSIGN_OR_RETURN(const auto environment, quire::MpiEnvironment::Create());  // checks MPI's thread level
  // What this rank is doing; the communicator marks in it when the rank waits for others.
  quire::ProgressMark mark;
  ASSIGN_OR_RETURN(auto mpi, quire::MakeMpiCommunicator());
  const std::unique_ptr<quire::Communicator> comm = quire::WatchCommunicator(std::move(mpi), &mark);
  // From here on a rank that dies, is stopped or hangs ends the job by name. The monitor goes before MPI_Finalize.
  ASSIGN_OR_RETURN(const quire::GroupTopology topology, quire::GatherTopology(*comm));
  ASSIGN_OR_RETURN(const auto monitor, quire::GroupMonitor::Start(*comm, topology, &mark));
  const quire::NamedHash build = quire::BuildIdentity();
  RETURN_IF_ERROR(quire::CheckSameOnAllRanks(*comm, topology, quire::Phase::kStart, {&build, 1}));
  if (comm->rank() != 0) return quire::FollowLeader({.comm = comm.get(), .progress_mark = &mark});
  const quire::Status status = Lead(comm.get(), &mark, model, prompt);
  const quire::Status released = quire::ReleaseFollowers(comm.get());
  return status.ok() ? released : status;
}

}  // namespace

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  quire::Status status;
  if (argc == 3) {
    status = Run(argv[1], argv[2]);
  } else {
    status = quire::InvalidArgument("usage: mpirun -n 2 mpi_program MODEL PROMPT");
  }
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  MPI_Finalize();
  return status.ok() ? 0 : 1;
}
