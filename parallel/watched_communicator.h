// A communicator that marks when its rank is inside a collective, so that a monitor can tell the rank that is waited for
// from those that wait.
#pragma once

#include <memory>

#include "core/base/progress.h"
#include "parallel/communicator.h"

namespace quire {

// `mark` (not owned, not null) outlives the communicator.
std::unique_ptr<Communicator> WatchCommunicator(std::unique_ptr<Communicator> inner, ProgressMark* mark);

}  // namespace quire
