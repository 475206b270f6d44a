// The built program, running beside a test that signals, kills and restarts it: a service, mostly. It ends with the
// object, and with the test's own process. RunQuire (program.h) is for programs that end by themselves.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/launch/program.h"

namespace quire {

class QuireProcess {
 public:
  // launcher: what starts the program, as mpirun and its flags; empty: it is started itself.
  explicit QuireProcess(const std::vector<std::string>& arguments, const std::vector<std::string>& launcher = {});
  ~QuireProcess();  // SIGKILL; a launcher, SIGTERM first, so that it ends what it has started
  QuireProcess(const QuireProcess&) = delete;
  QuireProcess& operator=(const QuireProcess&) = delete;

  pid_t pid() const { return pid_; }  // of the launcher where there is one
  pid_t ProcessOfRank(int rank) const;  // where the launcher is mpirun; −1 when there is none
  // Where a service says that it listens, HOST:PORT; waits for it. "" when that doesn't come.
  const std::string& address();
  bool WaitReady(double seconds = 60) const;  // a group: until it says that its model is there
  // The rest of the last line of its output that begins so; waits for one. "" when that doesn't come.
  std::string Line(const std::string& begin, double seconds = 60) const;

  void Signal(int signal) const;
  void Kill();  // SIGKILL, and waits for its end
  // Until it has ended by itself: its exit code; −1 when a signal ended it, −2 when it goes on.
  int Wait(double seconds);
  std::string out() const;
  std::string err() const;

 private:
  ScratchFolder scratch_;
  std::string out_, err_, address_;
  bool launched_;
  pid_t pid_ = -1;
};

}  // namespace quire
