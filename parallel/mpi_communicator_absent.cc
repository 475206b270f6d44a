// A build without MPI: the same functions, which say so.
#include <cstdlib>

#include "parallel/mpi_communicator.h"

namespace quire {
namespace {
Status NoMpi() {
  return Unimplemented("this build has no MPI; install OpenMPI's headers and configure with -DQUIRE_MPI=ON");
}
}  // namespace

bool HasMpi() { return false; }
bool LaunchedByMpi() { return false; }
bool MpiRunning() { return false; }
int LaunchedRank() { return 0; }
Result<std::unique_ptr<MpiEnvironment>> MpiEnvironment::Create() { return NoMpi(); }
MpiEnvironment::~MpiEnvironment() = default;
Result<MpiTopology> QueryMpiTopology() { return NoMpi(); }
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator() { return NoMpi(); }
void AbortMpiJob(int code) { std::exit(code); }

}  // namespace quire
