#include "tests/rpc/tcp_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

namespace quire {
namespace {

constexpr size_t kMostHeld = 1 << 20;  // of one direction; then the other side's sender waits

sockaddr_in Address(const std::string& host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  return address;
}

// Not an orderly end: what is on its way is lost.
void ResetAndClose(int fd) {
  const linger now{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

void Prepare(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, O_NONBLOCK);
}

// False when the peer has gone.
bool ReadInto(int fd, std::string* held) {
  char buffer[65536];
  const ssize_t got = read(fd, buffer, sizeof buffer);
  if (got > 0) held->append(buffer, static_cast<size_t>(got));
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

bool WriteFrom(int fd, std::string* held) {
  if (held->empty()) return true;
  const ssize_t put = send(fd, held->data(), held->size(), MSG_NOSIGNAL);
  if (put > 0) held->erase(0, static_cast<size_t>(put));
  return put >= 0 || errno == EAGAIN || errno == EINTR;
}

short Events(const std::string& to_here, const std::string& from_here) {
  return static_cast<short>((to_here.empty() ? 0 : POLLOUT) | (from_here.size() < kMostHeld ? POLLIN : 0));
}

}  // namespace

TcpProxy::TcpProxy(const std::string& target) : target_(target) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address = Address("127.0.0.1", 0);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(listener_, 64), 0);
  EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
  port_ = ntohs(address.sin_port);
  EXPECT_EQ(pipe2(wake_, O_CLOEXEC | O_NONBLOCK), 0);
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  stopping_ = true;
  EXPECT_EQ(write(wake_[1], "", 1), 1);
  thread_.join();
  close(listener_);
  close(wake_[0]);
  close(wake_[1]);
}

std::string TcpProxy::address() const { return "127.0.0.1:" + std::to_string(port_); }

void TcpProxy::Cut() {
  const int mine = ++cuts_wanted_;
  EXPECT_EQ(write(wake_[1], "", 1), 1);
  while (cuts_done_ < mine) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

void TcpProxy::Close() {
  closed_ = true;
  Cut();
}

void TcpProxy::Open() { closed_ = false; }

void TcpProxy::CutAll() {
  if (!links_.empty()) ++cuts_;
  for (const Link& link : links_) {
    ResetAndClose(link.client);
    ResetAndClose(link.server);
  }
  links_.clear();
}

void TcpProxy::Accept() {
  const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
  if (client < 0) return;
  if (closed_) return ResetAndClose(client);
  const size_t colon = target_.rfind(':');
  const sockaddr_in address = Address(target_.substr(0, colon), std::stoi(target_.substr(colon + 1)));
  const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    ResetAndClose(client);
    close(server);
    return;
  }
  Prepare(client);
  Prepare(server);
  links_.push_back({client, server, "", ""});
  ++connections_;
}

bool TcpProxy::Pass(Link* link, short client_events, short server_events) {
  constexpr short kReadable = POLLIN | POLLHUP | POLLERR;
  if ((client_events & kReadable) != 0 && !ReadInto(link->client, &link->to_server)) return false;
  const size_t before = link->to_client.size();
  if ((server_events & kReadable) != 0 && !ReadInto(link->server, &link->to_client)) return false;
  bytes_left_ -= static_cast<int64_t>(link->to_client.size() - before);
  return WriteFrom(link->client, &link->to_client) && WriteFrom(link->server, &link->to_server);
}

void TcpProxy::Run() {
  while (!stopping_) {
    std::vector<pollfd> polled = {{wake_[0], POLLIN, 0}, {listener_, POLLIN, 0}};
    for (const Link& link : links_) {
      polled.push_back({link.client, Events(link.to_client, link.to_server), 0});
      polled.push_back({link.server, Events(link.to_server, link.to_client), 0});
    }
    poll(polled.data(), polled.size(), -1);
    char bytes[64];
    while (read(wake_[0], bytes, sizeof bytes) > 0) {
    }
    if (const int wanted = cuts_wanted_; wanted > cuts_done_) {
      CutAll();
      cuts_done_ = wanted;
      continue;
    }
    for (size_t i = links_.size(); i-- > 0;) {  // from the back, so that places stay
      if (Pass(&links_[i], polled[2 + 2 * i].revents, polled[3 + 2 * i].revents)) continue;
      ResetAndClose(links_[i].client);
      ResetAndClose(links_[i].server);
      links_.erase(links_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (bytes_left_ < 0) {
      bytes_left_ = period_.load();
      CutAll();
    }
    if ((polled[1].revents & POLLIN) != 0) Accept();
  }
  CutAll();
}

}  // namespace quire
