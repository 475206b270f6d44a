#include "parallel/monitor_channel.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/clock.h"

namespace quire::internal {
namespace {

constexpr uint32_t kMagic = 0x314d5251;  // "QRM1"
constexpr uint32_t kMaxPayload = 2048;

struct Header {
  uint32_t magic = kMagic;
  uint32_t type = 0;
  int32_t rank = 0;
  uint32_t phase = 0;
  uint64_t count = 0, collectives = 0;
  uint32_t length = 0, unused = 0;
};
static_assert(sizeof(Header) == 40);

std::string Pack(const Frame& frame) {
  Header header;
  header.type = static_cast<uint32_t>(frame.type);
  header.rank = frame.rank;
  header.phase = static_cast<uint32_t>(frame.report.phase);
  header.count = frame.report.count;
  header.collectives = frame.report.collectives;
  header.length = static_cast<uint32_t>(std::min<size_t>(frame.payload.size(), kMaxPayload));
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
  return bytes.append(frame.payload, 0, header.length);
}

// An address with a port, as the socket calls take it.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

SocketAddress MakeAddress(uint32_t family, const unsigned char* bytes, uint32_t port) {
  SocketAddress address;
  if (family == AF_INET6) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&v6->sin6_addr, bytes, 16);
    address.length = sizeof(*v6);
  } else {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&v4->sin_addr, bytes, 4);
    address.length = sizeof(*v4);
  }
  return address;
}

std::string Errno(const char* what) { return std::string(what) + ": " + std::strerror(errno); }

void NoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// Connects within `seconds`; the reason why not in *error.
Socket ConnectTo(const SocketAddress& address, double seconds, std::string* error) {
  Socket socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.open()) return *error = Errno("socket"), Socket();
  if (connect(socket.fd(), address.get(), address.length) == 0) return socket;
  if (errno != EINPROGRESS) return *error = std::strerror(errno), Socket();
  pollfd poll_fd{socket.fd(), POLLOUT, 0};
  if (poll(&poll_fd, 1, std::max(1, static_cast<int>(seconds * 1000))) != 1) return *error = "no answer", Socket();
  int code = 0;
  socklen_t size = sizeof(code);
  getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &code, &size);
  if (code != 0) return *error = std::strerror(code), Socket();
  return socket;
}

}  // namespace

Result<Token> RandomToken() {
  Token token;
  if (getrandom(token.data(), token.size(), 0) == static_cast<ssize_t>(token.size())) return token;
  return Unavailable(Errno("no random bytes for the monitor's token"));
}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Socket::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void MonitorConnection::Send(const Frame& frame) {
  if (!open() || (frame.type == FrameType::kBeat && wants_to_write())) return;
  out_ += Pack(frame);
  Flush();
}

void MonitorConnection::Flush() {
  while (open() && !out_.empty()) {
    const ssize_t sent = send(fd(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (sent < 0) return out_.clear();  // the peer has gone: Receive will say so
    out_.erase(0, static_cast<size_t>(sent));
  }
}

bool MonitorConnection::Receive() {
  char buffer[4096];
  while (open() && !broken_) {
    const ssize_t got = recv(fd(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (got <= 0) return false;
    in_.append(buffer, static_cast<size_t>(got));
    if (in_.size() > (1u << 16)) return false;  // nobody of ours sends so much at once
  }
  return false;
}

std::optional<Frame> MonitorConnection::Next() {
  if (broken_ || in_.size() < sizeof(Header)) return std::nullopt;
  Header header;
  std::memcpy(&header, in_.data(), sizeof(header));
  if (header.magic != kMagic || header.length > kMaxPayload || header.phase > static_cast<uint32_t>(Phase::kStop)) {
    broken_ = true;
    return std::nullopt;
  }
  if (in_.size() < sizeof(header) + header.length) return std::nullopt;
  Frame frame;
  frame.type = static_cast<FrameType>(header.type);
  frame.rank = header.rank;
  frame.report = {static_cast<Phase>(header.phase), header.count, header.collectives};
  frame.payload = in_.substr(sizeof(header), header.length);
  in_.erase(0, sizeof(header) + header.length);
  return frame;
}

Result<Socket> Listen(bool one_network, const std::string& interface, MonitorAddress* address) {
  std::vector<HostAddress> hosts;
  if (one_network) {
    HostAddress loopback;
    loopback.family = AF_INET;
    loopback.bytes[0] = 127, loopback.bytes[3] = 1;
    hosts.push_back(loopback);
  } else {
    ASSIGN_OR_RETURN(hosts, InterfaceAddresses(interface));
  }
  // One family: that of the first address. A named interface is bound to that address alone.
  const sa_family_t family = hosts.front().family;
  std::erase_if(hosts, [&](const HostAddress& host) { return host.family != family; });
  if (!interface.empty()) hosts.resize(1);
  const unsigned char any[16] = {};
  const SocketAddress bound = MakeAddress(family, hosts.size() == 1 ? hosts[0].bytes : any, 0);
  Socket listener(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.open()) return Unavailable(Errno("the monitor has no socket"));
  if (bind(listener.fd(), bound.get(), bound.length) != 0 || listen(listener.fd(), 128) != 0) {
    return Unavailable(Errno(("the monitor can't listen on " + hosts[0].ToString()).c_str()));
  }
  SocketAddress name;
  name.length = sizeof(name.storage);
  getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&name.storage), &name.length);
  address->port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&name.storage)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&name.storage)->sin_port);
  address->hosts = static_cast<uint32_t>(std::min<size_t>(hosts.size(), MonitorAddress::kMaxHosts));
  for (uint32_t i = 0; i < address->hosts; ++i) {
    address->host[i].family = hosts[i].family;
    std::memcpy(address->host[i].bytes, hosts[i].bytes, 16);
  }
  return listener;
}

Socket Accept(const Socket& listener) {
  Socket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.open()) NoDelay(socket.fd());
  return socket;
}

Result<MonitorConnection> Connect(const MonitorAddress& address, int rank, double deadline) {
  std::string tried;
  for (bool first = true; first || NowSeconds() < deadline; first = false) {
    tried.clear();
    for (uint32_t i = 0; i < address.hosts; ++i) {
      HostAddress host;
      host.family = static_cast<sa_family_t>(address.host[i].family);
      std::memcpy(host.bytes, address.host[i].bytes, 16);
      std::string error;
      Socket socket = ConnectTo(MakeAddress(host.family, host.bytes, address.port), 1.0, &error);
      if (!socket.open()) {
        tried += (tried.empty() ? "" : ", ") + host.ToString() + " (" + error + ")";
        continue;
      }
      NoDelay(socket.fd());
      MonitorConnection connection(std::move(socket));
      Frame hello;
      hello.type = FrameType::kHello;
      hello.rank = rank;
      hello.payload.assign(reinterpret_cast<const char*>(address.token.data()), address.token.size());
      connection.Send(hello);
      // A private address can be another host's: only an answer tells that this is the group's monitor.
      const double until = std::min(deadline, NowSeconds() + 2);
      while (NowSeconds() < until) {
        pollfd poll_fd{connection.fd(), POLLIN, 0};
        poll(&poll_fd, 1, 50);
        const bool alive = connection.Receive();
        const std::optional<Frame> answer = connection.Next();
        if (answer && answer->type == FrameType::kWelcome) return connection;
        if (!alive) break;
      }
      tried += (tried.empty() ? "" : ", ") + host.ToString() + " (it doesn't answer as rank 0's monitor)";
    }
    poll(nullptr, 0, 50);
  }
  return Unavailable("rank 0's monitor can't be reached at port " + std::to_string(address.port) + " of " + tried +
                     "; name the network between the hosts by --interface, and let its firewall pass TCP");
}

}  // namespace quire::internal
