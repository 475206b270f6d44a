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

// An insecure channel that asks every 10 s whether the peer is still there, for a host that has vanished, and tries again
// within a second where none answers. It has a connection of its own: of channels that share one, which is what gRPC does
// otherwise, some are left waiting for seconds when it is reset while it is being made. Doesn't wait for the connection.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace quire::rpc
