// A TCP connection that can be cut: passes bytes between clients and a server of this machine, until it is told not to.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quire {

class TcpProxy {
 public:
  // Listens on a free port of 127.0.0.1; target: HOST:PORT, HOST in digits.
  explicit TcpProxy(const std::string& target);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  std::string address() const;
  // Resets every connection, whatever is on its way; new ones are taken.
  void Cut();
  // Also resets every new one, until Open.
  void Close();
  void Open();
  // Cuts by itself, once, when so many more bytes have come from the server.
  void CutAfter(int64_t bytes) {
    period_ = INT64_MAX;
    bytes_left_ = bytes;
  }
  // The same again and again, every so many bytes.
  void CutEvery(int64_t bytes) {
    period_ = bytes;
    bytes_left_ = bytes;
  }
  int connections() const { return connections_; }  // taken so far
  int cuts() const { return cuts_; }  // that met at least one connection

 private:
  struct Link {
    int client = -1, server = -1;
    std::string to_client, to_server;  // read, and not yet written
  };

  void Run();
  void Accept();
  bool Pass(Link* link, short client_events, short server_events);  // false: it has ended
  void CutAll();  // on the thread

  const std::string target_;
  int listener_ = -1, port_ = 0;
  int wake_[2] = {-1, -1};
  std::vector<Link> links_;  // of the thread
  std::atomic<bool> stopping_ = false, closed_ = false;
  std::atomic<int> connections_ = 0, cuts_wanted_ = 0, cuts_done_ = 0, cuts_ = 0;
  std::atomic<int64_t> bytes_left_ = INT64_MAX, period_ = INT64_MAX;
  std::thread thread_;
};

}  // namespace quire
