// Whether groups may take over from each other: what must be equal for a request to get the same tokens from any of
// them.
#pragma once

#include <string>

#include "core/base/status.h"
#include "quire/v1/worker.pb.h"

namespace quire::rpc {

// FAILED_PRECONDITION, with what differs and what to do, when `group` may not serve beside groups like `first`.
Status CheckAgreement(const v1::Identity& first, const v1::Identity& group);
// What is worth a line in the log although it is no error: a takeover by this group may change tokens by rounding.
// Empty when there is nothing.
std::string TakeoverWarning(const v1::Identity& first, const v1::Identity& group);

}  // namespace quire::rpc
