// The standard health check (grpc.health.v1) from the client's side. gRPC's package brings the service without its
// messages, which are two fields: they are written and read here. Internal to rpc/.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "core/base/status.h"

namespace quire::rpc {

// Whether the service of that name is SERVING; "" is the server itself. NOT_FOUND for a name that the server doesn't know.
Result<bool> CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service, double timeout_s);

}  // namespace quire::rpc
