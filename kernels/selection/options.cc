#include "kernels/selection/options.h"

#include <charconv>
#include <sstream>

namespace quire {

const std::string* OptionReader::Find(std::string_view name) {
  known_.emplace(name);
  const auto it = options_.find(std::string(name));
  return it == options_.end() ? nullptr : &it->second;
}

Status OptionReader::Integer(std::string_view name, int64_t min, int64_t max, int64_t* value) {
  const std::string* text = Find(name);
  if (text == nullptr) return OkStatus();
  int64_t parsed = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), parsed);
  if (error != std::errc() || end != text->data() + text->size() || parsed < min || parsed > max) {
    return InvalidArgument("attention policy '" + std::string(policy_) + "': " + std::string(name) + "=" + *text +
                           " is not an integer from " + std::to_string(min) + " to " + std::to_string(max));
  }
  *value = parsed;
  return OkStatus();
}

Status OptionReader::Number(std::string_view name, double min, double max, double* value) {
  const std::string* text = Find(name);
  if (text == nullptr) return OkStatus();
  double parsed = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), parsed);
  if (error != std::errc() || end != text->data() + text->size() || !(parsed >= min && parsed <= max)) {
    std::ostringstream range;
    range << min << " to " << max;
    return InvalidArgument("attention policy '" + std::string(policy_) + "': " + std::string(name) + "=" + *text +
                           " is not a number from " + range.str());
  }
  *value = parsed;
  return OkStatus();
}

Status OptionReader::Choice(std::string_view name, std::initializer_list<std::string_view> choices, int* index) {
  const std::string* text = Find(name);
  if (text == nullptr) return OkStatus();
  std::string list;
  int i = 0;
  for (const std::string_view choice : choices) {
    if (*text == choice) {
      *index = i;
      return OkStatus();
    }
    list += (i++ == 0 ? "" : ", ") + std::string(choice);
  }
  return InvalidArgument("attention policy '" + std::string(policy_) + "': " + std::string(name) + "=" + *text +
                         " is unknown; use one of " + list);
}

Status OptionReader::Finish() const {
  for (const auto& [name, value] : options_) {
    if (known_.contains(name)) continue;
    std::string list;
    for (const std::string& known : known_) list += (list.empty() ? "" : ", ") + known;
    return InvalidArgument("attention policy '" + std::string(policy_) + "' has no option '" + name + "'; " +
                           (list.empty() ? "it takes none" : "it takes " + list));
  }
  return OkStatus();
}

}  // namespace quire
