// How this library's clients of gRPC reach a server.
#pragma once

#include <memory>
#include <string>

namespace grpc {
class Channel;
}

namespace quire::rpc {

// Bytes of a message, either way.
inline constexpr int kMaxMessageBytes = 256 << 20;

enum class Connection {
  kShared,  // with other channels of the process to the same address
  kOwn,
};

// An insecure channel that asks every 10 s whether the peer is still there, for a host that has vanished, and tries again
// within a second where none answers. Doesn't wait for the connection.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, Connection connection);

}  // namespace quire::rpc
