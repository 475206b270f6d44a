// Runs the built program as its users do: a process of its own, with its output, errors and exit code caught.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace quire {

struct ProgramResult {
  int exit_code = -1;  // −1 when a signal ended it
  int signal = 0;      // 0 when none did
  std::string out, err;
};

// build/…/bin/quire with these arguments. environment is added to this process's own; input is given on stdin. A
// program that runs longer than `seconds` (more under sanitizers) is killed, which shows as signal SIGKILL.
ProgramResult RunQuire(const std::vector<std::string>& arguments,
                       const std::map<std::string, std::string>& environment = {}, const std::string& input = "",
                       int seconds = 120);

// Runs it until its first output has come, then does what is said, and waits for its end.
enum class Disturbance { kInterrupt, kCloseOutput };
ProgramResult DisturbQuire(const std::vector<std::string>& arguments, Disturbance disturbance);

// RunQuire with --format json; the parsed object. Fails the test when it isn't one, or the exit code isn't 0.
nlohmann::json RunQuireJson(std::vector<std::string> arguments);

std::string DataPath(const std::string& name);  // tests/data/name
// The SmolLM2 GGUF in the cache folder, or "" when it has not been fetched.
std::string ModelPath();

// A folder of this test's own, emptied at both ends.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  // Writes a file and gives its path; folders in between are made.
  std::string Write(const std::string& name, const std::string& bytes) const;
  std::string Path(const std::string& name) const;

 private:
  std::string root_;
};

}  // namespace quire
