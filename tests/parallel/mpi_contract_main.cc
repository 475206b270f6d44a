// Runs the communicator contract on the ranks of an mpirun job; exits non-zero with the rank's sentence.
#include <cstdio>

#include "parallel/group_topology.h"
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
  auto comm = MakeMpiCommunicator();
  if (!again.ok() || !comm.ok()) {
    std::fprintf(stderr, "MPI is up, yet no communicator\n");
    AbortMpiJob(1);
  }
  const int rank = (*comm)->rank();
  // All ranks of this job are on one node.
  const auto topology = GatherTopology(**comm);
  if ((*comm)->node_leader() != 0 || !topology.ok() || topology->nodes() != 1 || topology->self().local_rank != rank ||
      topology->self().local_size != (*comm)->size()) {
    std::fprintf(stderr, "rank %d: the topology disagrees with the communicator\n", rank);
    AbortMpiJob(1);
  }
  const std::string error = testing::CheckContract(**comm);
  if (!error.empty()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.c_str());
    AbortMpiJob(1);
  }
  if (rank == 0) std::printf("%d ranks keep the contract\n", topology->size());
  return 0;
}
