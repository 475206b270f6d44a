// Runs the communicator contract on the ranks of an mpirun job; exits non-zero with the rank's sentence.
#include <cstdio>

#include "parallel/mpi_communicator.h"
#include "tests/parallel/communicator_contract.h"

int main() {
  using namespace quire;
  auto environment = MpiEnvironment::Create();
  if (!environment.ok()) {
    std::fprintf(stderr, "%s\n", environment.status().ToString().c_str());
    return 1;
  }
  auto again = MpiEnvironment::Create();  // a program that owns MPI itself: neither initialised nor finalised twice
  auto topology = QueryMpiTopology();
  auto comm = MakeMpiCommunicator();
  if (!again.ok() || !topology.ok() || !comm.ok()) {
    std::fprintf(stderr, "MPI is up, yet no communicator\n");
    AbortMpiJob(1);
  }
  if (topology->size != (*comm)->size() || topology->local_rank >= topology->local_size || topology->host.empty()) {
    std::fprintf(stderr, "the topology disagrees with the communicator\n");
    AbortMpiJob(1);
  }
  const std::string error = testing::CheckContract(**comm);
  if (!error.empty()) {
    std::fprintf(stderr, "rank %d: %s\n", topology->rank, error.c_str());
    AbortMpiJob(1);
  }
  if (topology->rank == 0) std::printf("%d ranks keep the contract\n", topology->size);
  return 0;
}
