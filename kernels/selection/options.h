// Reads a policy's options one by one, and refuses what is left over.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>

#include "core/base/status.h"
#include "kernels/selection/policies.h"

namespace quire {

class OptionReader {
 public:
  // Both outlive the reader. policy: for messages.
  OptionReader(std::string_view policy, const PolicyOptions& options) : policy_(policy), options_(options) {}

  // Sets *value if the option is there. INVALID_ARGUMENT unless it is an integer in [min, max] (inclusive).
  Status Integer(std::string_view name, int64_t min, int64_t max, int64_t* value);
  // The same for a number in decimal notation.
  Status Number(std::string_view name, double min, double max, double* value);
  // Sets *index to the position of the option's value among `choices`, if the option is there.
  Status Choice(std::string_view name, std::initializer_list<std::string_view> choices, int* index);
  // After the last read: INVALID_ARGUMENT that names an option nobody asked for, and those that exist.
  Status Finish() const;

 private:
  const std::string* Find(std::string_view name);

  std::string_view policy_;
  const PolicyOptions& options_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace quire
