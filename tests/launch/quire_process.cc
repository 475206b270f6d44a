#include "tests/launch/quire_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/base/clock.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

QuireProcess::QuireProcess(const std::vector<std::string>& arguments, const std::vector<std::string>& launcher)
    : out_(scratch_.Write("out", "")), err_(scratch_.Write("err", "")), launched_(!launcher.empty()) {
  std::vector<std::string> words = launcher;
  words.push_back(QUIRE_BINARY_DIR "/bin/quire");
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, launched_ ? SIGTERM : SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(open(out_.c_str(), O_WRONLY | O_APPEND), STDOUT_FILENO);
    dup2(open(err_.c_str(), O_WRONLY | O_APPEND), STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
}

QuireProcess::~QuireProcess() {
  if (launched_ && pid_ > 0) {
    Signal(SIGTERM);
    Wait(10);
  }
  Kill();
}

const std::string& QuireProcess::address() {
  if (address_.empty()) address_ = Line("listening on ");
  return address_;
}

bool QuireProcess::WaitReady(double seconds) const { return !Line("ready: ", seconds).empty(); }

std::string QuireProcess::Line(const std::string& begin, double seconds) const {
  const double end = NowSeconds() + seconds * kSlowness;
  while (true) {
    std::string rest;
    std::istringstream lines(out());
    for (std::string line; std::getline(lines, line) && !lines.eof();) {
      if (line.starts_with(begin)) rest = line.substr(begin.size());
    }
    // What a process that has ended (and was not waited for yet) says no more needs no waiting for.
    siginfo_t info{};
    const bool ended = pid_ <= 0 || (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                                     info.si_pid == pid_);
    if (!rest.empty() || ended || NowSeconds() > end) return rest;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

pid_t QuireProcess::ProcessOfRank(int rank) const {
  const std::string wanted = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + std::string(1, '\0');
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = ReadFile(entry.path() / "stat");
    std::istringstream fields(stat.substr(std::min(stat.size(), stat.rfind(')') + 2)));
    std::string state;
    pid_t parent = 0;
    fields >> state >> parent;
    if (parent == pid_ && ReadFile(entry.path() / "environ").find(wanted) != std::string::npos) return std::stoi(name);
  }
  return -1;
}

void QuireProcess::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

void QuireProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int QuireProcess::Wait(double seconds) {
  const double end = NowSeconds() + seconds * kSlowness;
  while (pid_ > 0) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    if (NowSeconds() > end) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return -2;
}

std::string QuireProcess::out() const { return ReadFile(out_); }
std::string QuireProcess::err() const { return ReadFile(err_); }

}  // namespace quire
