// A build without MPI: the same functions, which say so.
#include <cstdlib>

#include "parallel/mpi_communicator.h"

namespace quire {
namespace {
Status NoMpi() {
  return Unimplemented(
      "this build has no MPI, and can't run as ranks of mpirun; install libopenmpi-dev and configure with -DQUIRE_MPI=ON, "
      "or start one process with --tensor-parallel-size");
}
}  // namespace

bool HasMpi() { return false; }
bool MpiRunning() { return false; }
Result<std::unique_ptr<MpiEnvironment>> MpiEnvironment::Create() { return NoMpi(); }
MpiEnvironment::~MpiEnvironment() = default;
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator() { return NoMpi(); }
void AbortMpiJob(int code) { std::exit(code); }

}  // namespace quire
