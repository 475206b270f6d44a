// Which network the ranks of a group talk over: the addresses of this host's interfaces, and the choice of one interface
// for MPI, NCCL and the monitor alike.
#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

#include "core/base/status.h"

namespace quire {

// Makes MPI and NCCL use `interface` (a name as in `ip link`, or several with commas), by setting the variables that they
// read at their start: OMPI_MCA_btl_tcp_if_include, OMPI_MCA_oob_tcp_if_include, NCCL_SOCKET_IFNAME. Call it before
// MPI_Init, and before other threads are started, for it changes the environment. One that is set already stays as the
// user has it. Data between ranks follow it; mpirun itself started earlier, and what it sends to its daemons on other
// hosts needs mpirun --mca oob_tcp_if_include NAME. INVALID_ARGUMENT, naming the interfaces there are, when this host
// has no such interface. Empty: nothing is done.
Status UseNetworkInterface(const std::string& interface);

namespace internal {

// An address without a port.
struct HostAddress {
  sa_family_t family = 0;     // AF_INET or AF_INET6
  unsigned char bytes[16] = {};
  std::string ToString() const;
};

// Addresses of the interfaces that are up: of those named in `interface` (comma-separated), or where it is empty, of all
// but loopback. IPv4 first; no link-local IPv6. INVALID_ARGUMENT as above; UNAVAILABLE when they have no address.
Result<std::vector<HostAddress>> InterfaceAddresses(const std::string& interface);

}  // namespace internal
}  // namespace quire
