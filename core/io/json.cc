#include "core/io/json.h"

#include <set>
#include <string>
#include <vector>

namespace quire {

Result<nlohmann::json> ParseJson(std::string_view text, std::string_view what) {
  using Json = nlohmann::json;
  constexpr int kMaxDepth = 64;
  std::string problem;
  std::vector<std::set<std::string>> keys;  // of every object that is open
  int open = 0;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (!problem.empty()) return false;
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        ++open;
        break;
      case Json::parse_event_t::array_start: ++open; break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        --open;
        break;
      case Json::parse_event_t::array_end: --open; break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) {
          problem = "the key '" + parsed.get<std::string>() + "' is there twice in one object";
        }
        break;
      default: break;
    }
    if (open > kMaxDepth) problem = "it is nested more than " + std::to_string(kMaxDepth) + " deep";
    return problem.empty();
  };
  try {
    // Number, string and bracket errors are thrown; the watcher's own are kept in `problem`, and what it refused to
    // keep comes back as a discarded value.
    Json json = Json::parse(text.begin(), text.end(), watch);
    if (problem.empty()) return json;
  } catch (const Json::exception& error) {
    if (problem.empty()) problem = error.what();
  }
  return InvalidArgument(std::string(what) + " is not valid JSON: " + problem);
}

}  // namespace quire
