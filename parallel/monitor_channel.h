// The wire under group_monitor: small frames over TCP between rank 0's monitor and the others'. A listener is open only
// while the group joins; whoever doesn't show the group's token at once is dropped. Ranks of one job share a byte order.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "parallel/network_interface.h"
#include "parallel/stall_judge.h"

namespace quire::internal {

using Token = std::array<unsigned char, 16>;
Result<Token> RandomToken();

enum class FrameType : uint32_t { kHello = 1, kWelcome, kBeat, kBye, kEnd };

struct Frame {
  FrameType type = FrameType::kBeat;
  int rank = 0;
  ProgressReport report;
  std::string payload;  // kHello: the token; kEnd: the sentence that ends the group
};

// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { Close(); }
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

// One peer's connection, non-blocking. Not thread safe.
class MonitorConnection {
 public:
  MonitorConnection() = default;
  explicit MonitorConnection(Socket socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.fd(); }
  bool open() const { return socket_.open(); }
  bool wants_to_write() const { return !out_.empty(); }
  void Close() { socket_.Close(); }

  // Queues a frame and sends what the kernel takes. A beat is left out while older ones still wait.
  void Send(const Frame& frame);
  void Flush();
  // Reads what has come. False once the peer's end is closed or what it sent is no frame of ours.
  bool Receive();
  // The next whole frame received, if there is one.
  std::optional<Frame> Next();

 private:
  Socket socket_;
  std::string in_, out_;
  bool broken_ = false;
};

// Where rank 0's monitor listens; what it tells the others over the group's communicator. Plain bytes.
struct MonitorAddress {
  static constexpr int kMaxHosts = 16;
  uint32_t port = 0;  // 0: it couldn't listen
  uint32_t hosts = 0;
  Token token{};
  struct Host {
    uint32_t family = 0;
    unsigned char bytes[16] = {};
  } host[kMaxHosts];
};

// A listening socket on a free port. one_network: on the loopback interface alone; else on `interface`, or where that is
// empty on all.
Result<Socket> Listen(bool one_network, const std::string& interface, MonitorAddress* address);
// The next connection, or a closed one when none waits.
Socket Accept(const Socket& listener);
// Tries the address's hosts in turn, until `deadline` (NowSeconds), and says hello. UNAVAILABLE names what was tried.
Result<MonitorConnection> Connect(const MonitorAddress& address, int rank, double deadline);

}  // namespace quire::internal
