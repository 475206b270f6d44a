// Policies of one's own, from outside the library: a class after AttentionPolicy and a row in the table that specs, flags
// and requests are read by.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "core/base/status.h"
#include "kernels/selection/policy.h"

namespace quire {

// Makes a policy of a spec's options: what it does not know, or a value out of range, is INVALID_ARGUMENT with a sentence.
using PolicyFactory = std::function<Result<std::unique_ptr<AttentionPolicy>>(
    const std::map<std::string, std::string>& options, const PolicyShape& shape)>;

// From now on `info.name` names this policy, as the library's own rows do theirs. The texts of `info` are copied. Thread
// safe; call it before engines are made, and in every process of a group. INVALID_ARGUMENT where the name is not letters,
// digits, '_' and '-' or `make` is empty; ALREADY_EXISTS where it is taken.
Status AddPolicy(const PolicyInfo& info, PolicyFactory make);

}  // namespace quire
