// Checks of collective arguments that every communicator makes alike, so that a wrong size is one sentence and
// not a hang. Each returns INVALID_ARGUMENT naming the call, the sizes and what they should be.
#pragma once

#include <span>

#include "core/base/status.h"
#include "core/base/tensor.h"

namespace quire::internal {

Status CheckSummable(const char* call, TensorView data);
Status CheckAllGather(TensorView send, TensorView recv, int size);
Status CheckAllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, int rank, int size);
Status CheckReduceScatter(TensorView send, TensorView recv, int size);
Status CheckPeer(const char* call, int peer, int rank, int size);  // a peer other than this rank
Status CheckRoot(int root, int size);

}  // namespace quire::internal
