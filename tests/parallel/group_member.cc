// One rank of an mpirun job that goes through the phases of an engine without being one: start, load (a file, with
// progress), then steps of a broadcast, a prefill or decode with an all-reduce a layer. The tests of failing ranks
// break it by QUIRE_FAULT, by another file on one rank, by less memory; it prints "done" where nothing did.
//   group_member [--stop-at-start 1] [--steps N] [--layers N] [--load-ms N] [--idle-ms N] [--file PATH] [--memory BYTES] [--interface NAME]
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "parallel/end_job.h"
#include "parallel/group_monitor.h"
#include "parallel/group_start.h"
#include "parallel/mpi_communicator.h"
#include "parallel/network_interface.h"
#include "parallel/watched_communicator.h"

namespace quire {
namespace {

using Flags = std::map<std::string, std::string>;

int Number(Flags& flags, const std::string& name, int absent) {
  return flags[name].empty() ? absent : std::atoi(flags[name].c_str());
}

void Sleep(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Some tenths of a second of loading, with a sign of progress every 20 ms.
Status Load(Flags& flags, ProgressMark& mark) {
  mark.Enter(Phase::kLoad);
  if (!flags["--file"].empty() && !std::ifstream(flags["--file"])) {
    return NotFound(flags["--file"] + " can't be opened; copy the model to every host");
  }
  if (const auto buffer = Buffer::Create(static_cast<size_t>(Number(flags, "--memory", 1 << 20))); !buffer.ok()) {
    return buffer.status();
  }
  for (int ms = 0; ms < Number(flags, "--load-ms", 100); ms += 20) {
    Sleep(20);
    mark.Advance();
  }
  return OkStatus();
}

Status Step(Communicator& comm, ProgressMark& mark, int step, int layers) {
  mark.Enter(Phase::kBroadcast);
  int32_t plan = comm.rank() == 0 ? step : -1;
  RETURN_IF_ERROR(comm.Broadcast({&plan, DType::kI32, {1}, {}}, 0));
  if (plan != step) return Internal("step " + std::to_string(step) + " came as " + std::to_string(plan));
  mark.Enter(step % 8 == 0 ? Phase::kPrefill : Phase::kDecode);
  std::vector<float> data(64);
  for (int layer = 0; layer < layers; ++layer) {
    mark.Advance();
    Sleep(1);
    for (float& x : data) x = static_cast<float>(comm.rank() + layer);
    RETURN_IF_ERROR(comm.AllReduce({data.data(), DType::kF32, {64}, {}}));
    if (data[63] != static_cast<float>(comm.size() * (comm.size() - 1) / 2 + comm.size() * layer)) {
      return Internal("a wrong sum");
    }
  }
  mark.Enter(Phase::kIdle);
  return OkStatus();
}

Status Run(Flags& flags) {
  RETURN_IF_ERROR(UseNetworkInterface(flags["--interface"]));
  ASSIGN_OR_RETURN(const auto environment, MpiEnvironment::Create());
  ProgressMark mark;
  ASSIGN_OR_RETURN(auto mpi, MakeMpiCommunicator());
  const auto comm = WatchCommunicator(std::move(mpi), &mark);
  ASSIGN_OR_RETURN(const GroupTopology topology, GatherTopology(*comm));
  if (!flags["--stop-at-start"].empty()) raise(SIGSTOP);
  GroupMonitorOptions options;
  options.interface = flags["--interface"];
  ASSIGN_OR_RETURN(const auto monitor, GroupMonitor::Start(*comm, topology, &mark, options));
  RETURN_IF_ERROR(CheckSameOnAllRanks(*comm, topology, Phase::kStart, std::vector<NamedHash>{BuildIdentity()}));
  ASSIGN_OR_RETURN(const SelfTestReport sums, RunSelfTest(*comm, topology));
  if (Status loaded = AgreeOn(*comm, topology, Phase::kLoad, Load(flags, mark)); !loaded.ok()) {
    // All ranks have the same reason: one tells it. The others end well, as the program's do: mpirun drops what a rank says
    // after another has failed.
    return comm->rank() == 0 ? loaded : OkStatus();
  }
  mark.Enter(Phase::kIdle);
  for (int step = 0; step < Number(flags, "--steps", 4); ++step) {
    if (comm->rank() == 0) Sleep(Number(flags, "--idle-ms", 0));
    RETURN_IF_ERROR(Step(*comm, mark, step, Number(flags, "--layers", 3)));
  }
  mark.Enter(Phase::kStop);
  if (comm->rank() == 0) {
    std::printf("done: %d ranks on %d nodes, a sum takes %.0f us, %.0f MB/s\n", comm->size(), topology.nodes(),
                sums.latency_seconds * 1e6, sums.bytes_per_second / 1e6);
    for (int r = 0; r < topology.size(); ++r) std::printf("%s\n", topology.Name(r).c_str());
  }
  return OkStatus();
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  // As the program quire: the first SIGTERM is no end yet.
  struct sigaction action {};
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGTERM, &action, nullptr);
  quire::Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) flags[argv[i]] = argv[i + 1];
  const quire::Status status = quire::Run(flags);
  if (status.ok()) return 0;
  if (!status.message().empty()) std::fprintf(stderr, "quire: error: %s\n", status.ToString().c_str());
  return quire::kExitGroupFailed;
}
