// A running `quire serve` or `quire coordinator`, as its users start it, for tests that kill, stop and restart such
// processes. Ends with the object, and with the test's own process.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace quire {

class ServiceProcess {
 public:
  // Starts it, and waits until it says where it listens.
  explicit ServiceProcess(const std::vector<std::string>& arguments);
  ~ServiceProcess();
  ServiceProcess(const ServiceProcess&) = delete;
  ServiceProcess& operator=(const ServiceProcess&) = delete;

  bool listening() const { return !address_.empty(); }
  const std::string& address() const { return address_; }  // HOST:PORT
  pid_t pid() const { return pid_; }
  bool WaitReady(double seconds);  // a group: until it says "ready"
  void Signal(int signal) const;
  void Kill();  // SIGKILL, and waits for its end
  // Until it has ended by itself; its exit code, −1 when it hasn't.
  int WaitExit(double seconds);

 private:
  bool ReadUntil(const std::string& text, double seconds);

  pid_t pid_ = -1;
  int out_ = -1;  // its stdout
  std::string read_, address_;
};

}  // namespace quire
