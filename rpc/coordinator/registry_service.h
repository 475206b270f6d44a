// The Registry service: groups say where they are. Internal to rpc/.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "core/base/status.h"
#include "quire/v1/worker.grpc.pb.h"
#include "rpc/coordinator/coordinator_backend.h"

namespace quire::rpc {

// `address` with the peer's host where it has none ("" before the colon). INVALID_ARGUMENT when that makes no HOST:PORT.
// peer: as gRPC spells it, "ipv4:127.0.0.1:4711" or "ipv6:%5B::1%5D:4711".
Result<std::string> ResolveAddress(const std::string& address, const std::string& peer);

class RegistryService : public v1::Registry::CallbackService {
 public:
  explicit RegistryService(CoordinatorBackend* backend) : backend_(backend) {}
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override;

 private:
  CoordinatorBackend* const backend_;
};

}  // namespace quire::rpc
