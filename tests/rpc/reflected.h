// The reflection service's list of services: enough to see that it is there and knows ours.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/rpc/service_fixture.h"

namespace quire {

void ExpectReflected(const std::shared_ptr<grpc::Channel>& channel, const std::vector<std::string>& names);

}  // namespace quire
