// See available_memory.h.
#include "core/engine/available_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>

namespace quire {
namespace {

// The number in a file of one; absent when it isn't one ("max") or the file isn't there.
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// The number behind `key` in a file of lines "key number …".
std::optional<uint64_t> ReadKey(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t value = 0;
    if (words >> word && word == key && words >> value) return value;
  }
  return std::nullopt;
}

// What the files of one version of control groups are called.
struct GroupFiles {
  const char* folder;
  const char* limit;
  const char* usage;
  const char* prefix;  // of the keys in memory.stat that include the groups below
};
constexpr GroupFiles kVersion2 = {"/sys/fs/cgroup", "memory.max", "memory.current", ""};
constexpr GroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"};

// Bytes that the group and those above it leave; absent when none has a limit. In a container the path may be the
// host's while the folder shows the container's part only: then the topmost folder is the process's own group.
std::optional<uint64_t> LeftInGroup(const std::string& root, const GroupFiles& files, std::string path) {
  std::optional<uint64_t> least;
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    const std::string folder = root + files.folder + path + "/";
    const auto limit = ReadNumber(folder + files.limit);
    const auto usage = ReadNumber(folder + files.usage);
    if (limit && usage) {
      const std::string prefix = files.prefix;
      const uint64_t pages = ReadKey(folder + "memory.stat", prefix + "inactive_file").value_or(0) +
                             ReadKey(folder + "memory.stat", prefix + "active_file").value_or(0);
      const uint64_t used = *usage - std::min(*usage, pages);
      const uint64_t left = *limit - std::min(*limit, used);
      least = std::min(left, least.value_or(left));
    }
    if (path.empty()) return least;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

}  // namespace

size_t AvailableMemory(const std::string& root) {
  std::optional<uint64_t> available;
  const auto bound = [&](std::optional<uint64_t> bytes) {
    if (bytes) available = std::min(*bytes, available.value_or(*bytes));
  };
  if (const auto kib = ReadKey(root + "/proc/meminfo", "MemAvailable:")) bound(*kib * 1024);
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") bound(LeftInGroup(root, kVersion2, path));
    if (controllers.find(",memory,") != std::string::npos) bound(LeftInGroup(root, kVersion1, path));
  }
  return static_cast<size_t>(available.value_or(0));
}

}  // namespace quire
