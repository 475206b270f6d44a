// See program.h.
#include "tests/launch/program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

}  // namespace

ProgramResult RunQuire(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment,
                       const std::string& input, int seconds) {
  const ScratchFolder scratch;
  const std::string in = scratch.Write("in", input), out = scratch.Write("out", ""), err = scratch.Write("err", "");
  const std::string program = QUIRE_BINARY_DIR "/bin/quire";
  std::vector<const char*> argv = {program.c_str()};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open(in.c_str(), O_RDONLY), STDIN_FILENO);
    dup2(open(out.c_str(), O_WRONLY), STDOUT_FILENO);
    dup2(open(err.c_str(), O_WRONLY), STDERR_FILENO);
    setenv("QUIRE_DEVICE", "cpu", 0);  // what these tests know; a GPU here has tests of its own
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    execv(program.c_str(), const_cast<char* const*>(argv.data()));
    _exit(127);
  }
  int status = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds * kSlowness);
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > end) {
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ProgramResult result;
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  result.out = ReadAll(out);
  result.err = ReadAll(err);
  return result;
}

ProgramResult DisturbQuire(const std::vector<std::string>& arguments, Disturbance disturbance) {
  const ScratchFolder scratch;
  const std::string err = scratch.Write("err", "");
  const std::string program = QUIRE_BINARY_DIR "/bin/quire";
  std::vector<const char*> argv = {program.c_str()};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  argv.push_back(nullptr);
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(open(err.c_str(), O_WRONLY), STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    execv(program.c_str(), const_cast<char* const*>(argv.data()));
    _exit(127);
  }
  close(ends[1]);
  ProgramResult result;
  char buffer[4096];
  ssize_t count = read(ends[0], buffer, sizeof buffer);
  if (count > 0) result.out.append(buffer, count);
  if (disturbance == Disturbance::kInterrupt) {
    kill(pid, SIGINT);
    while ((count = read(ends[0], buffer, sizeof buffer)) > 0) result.out.append(buffer, count);
  }
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  result.err = ReadAll(err);
  return result;
}

nlohmann::json RunQuireJson(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--format", "json"});
  const ProgramResult result = RunQuire(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  nlohmann::json json = nlohmann::json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(json.is_object()) << result.out << result.err;
  return json;
}

std::string DataPath(const std::string& name) { return QUIRE_SOURCE_DIR "/tests/data/" + name; }

std::string ModelPath() {
  const char* cache = std::getenv("QUIRE_CACHE");
  const char* home = std::getenv("HOME");
  const std::string root = cache != nullptr ? cache : std::string(home != nullptr ? home : "") + "/.cache/quire";
  const std::string path = root + "/models/SmolLM2-135M-Instruct.gguf";
  return fs::exists(path) ? path : "";
}

ScratchFolder::ScratchFolder() {
  std::string pattern = (fs::temp_directory_path() / "quire_test_XXXXXX").string();
  root_ = mkdtemp(pattern.data()) != nullptr ? pattern : "";
  EXPECT_NE(root_, "") << "no scratch folder could be made";
}

ScratchFolder::~ScratchFolder() {
  if (!root_.empty()) fs::remove_all(root_);
}

std::string ScratchFolder::Path(const std::string& name) const { return root_ + "/" + name; }

std::string ScratchFolder::Write(const std::string& name, const std::string& bytes) const {
  const fs::path path = Path(name);
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
  return path.string();
}

}  // namespace quire
