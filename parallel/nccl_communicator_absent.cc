// A build without NCCL: the same functions, which say so.
#include "parallel/nccl_communicator.h"

namespace quire {

bool HasNccl() { return false; }

Result<std::unique_ptr<NcclCommunicator>> MakeNcclCommunicator(Communicator*, const GroupTopology&, const NcclOptions&) {
  return Unimplemented("this build has no NCCL; install NCCL and the CUDA toolkit and configure with -DQUIRE_NCCL=ON");
}

}  // namespace quire
