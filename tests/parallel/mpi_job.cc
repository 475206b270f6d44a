#include "tests/parallel/mpi_job.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/base/clock.h"

namespace quire::testing {
namespace {

// Processes whose environment has this assignment, zombies left out.
std::vector<int> ProcessesWith(const std::string& assignment) {
  std::vector<int> pids;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "environ", std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (text.str().find(assignment) != std::string::npos) pids.push_back(std::stoi(name));
  }
  return pids;
}

void AppendWhatIsThere(int fd, std::string* text) {
  char buffer[4096];
  for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;) text->append(buffer, static_cast<size_t>(got));
}

}  // namespace

MpiJobResult RunMpiJob(const MpiJob& job) {
  static std::atomic<int> jobs{0};
  const std::string mark = std::to_string(getpid()) + "." + std::to_string(++jobs);
  std::vector<std::string> words = {QUIRE_SOURCE_DIR "/tests/mpirun.sh", QUIRE_MPIRUN, std::to_string(job.ranks)};
  words.insert(words.end(), job.command.begin(), job.command.end());
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  argv.push_back(nullptr);

  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return {};
  // The child's environment is made here: between fork and exec a child of many threads must not allocate.
  std::vector<std::string> assignments = {"QUIRE_TEST_JOB=" + mark};
  for (char** e = environ; *e != nullptr; ++e) {
    if (std::string(*e).rfind("QUIRE_", 0) != 0) assignments.push_back(*e);
  }
  for (const auto& [name, value] : job.environment) assignments.push_back(name + "=" + value);
  std::vector<const char*> environment;
  for (const std::string& assignment : assignments) environment.push_back(assignment.c_str());
  environment.push_back(nullptr);

  MpiJobResult result;
  const double begin = NowSeconds();
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    execve(argv[0], const_cast<char* const*>(argv.data()), const_cast<char* const*>(environment.data()));
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  fcntl(err[0], F_SETFL, O_NONBLOCK);
  double fault = -1;
  int status = 0;
  bool late = false;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    AppendWhatIsThere(out[0], &result.out);
    AppendWhatIsThere(err[0], &result.err);
    if (fault < 0 && result.err.find("QUIRE_FAULT happens now") != std::string::npos) fault = NowSeconds();
    if (!late && NowSeconds() - begin > job.seconds) {
      late = true;
      kill(pid, SIGTERM);  // mpirun ends its ranks
    }
    if (late && NowSeconds() - begin > job.seconds + 8) kill(pid, SIGKILL);
    pollfd polled[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    poll(polled, 2, 10);
    if ((polled[0].revents | polled[1].revents) & POLLHUP) usleep(5000);
  }
  const double end = NowSeconds();
  AppendWhatIsThere(out[0], &result.out);
  AppendWhatIsThere(err[0], &result.err);
  close(out[0]);
  close(err[0]);
  result.seconds = end - begin;
  if (fault >= 0) result.seconds_after_fault = end - fault;
  if (WIFEXITED(status) && !late) result.exit_code = WEXITSTATUS(status);
  const std::string assignment = "QUIRE_TEST_JOB=" + mark + std::string(1, '\0');
  do {
    result.survivors = ProcessesWith(assignment);
    if (result.survivors.empty()) break;
    usleep(50000);
  } while (NowSeconds() - end < 2);
  for (int survivor : result.survivors) kill(survivor, SIGKILL);
  return result;
}

std::vector<MpiJobResult> RunMpiJobs(const std::vector<MpiJob>& jobs) {
  std::vector<MpiJobResult> results(jobs.size());
  constexpr size_t kAtOnce = 3;
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < std::min(kAtOnce, jobs.size()); ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next++) < jobs.size();) results[i] = RunMpiJob(jobs[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

std::vector<std::string> DifferOnOneRank(const std::vector<std::string>& command, const OnOneRank& difference) {
  std::string script = "if [ \"$OMPI_COMM_WORLD_RANK\" = " + std::to_string(difference.rank) + " ]; then ";
  if (!difference.before.empty()) script += difference.before + "; ";
  if (!difference.instead.empty()) script += "shift; set -- '" + difference.instead + "' \"$@\"; ";
  for (const std::string& word : difference.suffix) script += "set -- \"$@\" '" + word + "'; ";
  script += "fi; exec \"$@\"";
  std::vector<std::string> words = {"sh", "-c", script, "sh"};
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

std::string HostName() {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  return host;
}

void ExpectFailed(const MpiJobResult& result, const std::string& what) {
  SCOPED_TRACE(what + "\n" + result.err + result.out);
  EXPECT_GT(result.exit_code, 0);
  EXPECT_EQ(result.out.find("done"), std::string::npos);
  EXPECT_TRUE(result.survivors.empty()) << result.survivors.size() << " processes outlived the job";
}

void ExpectEachEndsByName(const MpiJob& job, const std::string& kind, const std::string& says,
                          const std::vector<Breakage>& breakages) {
  std::vector<MpiJob> jobs;
  for (const Breakage& b : breakages) {
    jobs.push_back(job);
    jobs.back().environment["QUIRE_FAULT"] = "rank=" + std::to_string(b.rank) + ",phase=" + b.phase + ",kind=" + kind +
                                             ",after=" + std::to_string(b.after);
  }
  const std::vector<MpiJobResult> results = RunMpiJobs(jobs);
  for (size_t i = 0; i < results.size(); ++i) {
    const MpiJobResult& result = results[i];
    const Breakage& b = breakages[i];
    const std::string what = kind + " in " + b.phase + " of rank " + std::to_string(b.rank);
    ExpectFailed(result, what);
    EXPECT_GE(result.seconds_after_fault, 0) << what << " did not happen\n" << result.err;
    EXPECT_LT(result.seconds_after_fault, 10) << what;
    std::printf("%s: over after %.1f s\n", what.c_str(), result.seconds_after_fault);
    if (result.seconds_after_fault < 0) continue;
    const size_t line =
        result.err.find("quire: error: rank " + std::to_string(b.rank) + " (host " + HostName() + ", pid ");
    if (line == std::string::npos) {
      ADD_FAILURE() << what << ": the culprit is not named\n" << result.err;
      continue;
    }
    const std::string sentence = result.err.substr(line, result.err.find('\n', line) - line);
    EXPECT_NE(sentence.find(says), std::string::npos) << what << "\n" << sentence;
    EXPECT_NE(sentence.find("in phase " + b.phase), std::string::npos) << what << "\n" << sentence;
  }
}

}  // namespace quire::testing
