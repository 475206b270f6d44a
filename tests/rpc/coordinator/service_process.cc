// See service_process.h.
#include "tests/rpc/coordinator/service_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "core/base/clock.h"

namespace quire {

ServiceProcess::ServiceProcess(const std::vector<std::string>& arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  const std::string program = QUIRE_BINARY_DIR "/bin/quire";
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(ends[1], STDOUT_FILENO);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  close(ends[1]);
  out_ = ends[0];
  const std::string word = "listening on ";
  if (!ReadUntil("\n", 60)) return;
  if (read_.compare(0, word.size(), word) == 0) address_ = read_.substr(word.size(), read_.find('\n') - word.size());
}

ServiceProcess::~ServiceProcess() {
  Kill();
  if (out_ >= 0) close(out_);
}

bool ServiceProcess::ReadUntil(const std::string& text, double seconds) {
  const double end = NowSeconds() + seconds;
  while (read_.find(text) == std::string::npos) {
    const double left = end - NowSeconds();
    pollfd poller{out_, POLLIN, 0};
    if (left <= 0 || poll(&poller, 1, static_cast<int>(1000 * left) + 1) <= 0) return false;
    char buffer[4096];
    const ssize_t got = read(out_, buffer, sizeof buffer);
    if (got <= 0) return false;
    read_.append(buffer, static_cast<size_t>(got));
  }
  return true;
}

bool ServiceProcess::WaitReady(double seconds) { return ReadUntil("ready", seconds); }

void ServiceProcess::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

void ServiceProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int ServiceProcess::WaitExit(double seconds) {
  const double end = NowSeconds() + seconds;
  while (pid_ > 0 && NowSeconds() < end) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return -1;
}

}  // namespace quire
