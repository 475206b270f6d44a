// Status ↔ grpc::Status: the codes have the same numbers, so nothing is lost either way.
#pragma once

#include <grpcpp/support/status.h>

#include "core/base/status.h"

namespace quire::rpc {

grpc::Status ToGrpc(const Status& status);
// A code that gRPC doesn't know becomes UNKNOWN.
Status FromGrpc(const grpc::Status& status);

}  // namespace quire::rpc
