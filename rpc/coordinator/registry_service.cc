// See registry_service.h.
#include "rpc/coordinator/registry_service.h"

#include <charconv>

#include "rpc/status.h"

namespace quire::rpc {
namespace {

std::string PeerHost(const std::string& peer) {
  const size_t scheme = peer.find(':'), port = peer.rfind(':');
  if (peer.compare(0, 3, "ipv") != 0 || scheme == port) return "";
  std::string host = peer.substr(scheme + 1, port - scheme - 1);
  for (const auto& [code, character] : {std::pair("%5B", "["), std::pair("%5D", "]")}) {
    if (const size_t at = host.find(code); at != std::string::npos) host.replace(at, 3, character);
  }
  return host;
}

}  // namespace

Result<std::string> ResolveAddress(const std::string& address, const std::string& peer) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon != std::string::npos) {
    const char* const end = address.data() + address.size();
    const auto [at, error] = std::from_chars(address.data() + colon + 1, end, port);
    if (error != std::errc() || at != end) port = 0;
  }
  std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
  if (host.empty()) host = PeerHost(peer);
  if (port < 1 || port > 65535 || host.empty() || host.size() > 255 || host.find_first_of("/ \n") != std::string::npos) {
    return InvalidArgument("the group's address is '" + address + "'; it should be HOST:PORT, or :PORT for this host");
  }
  return host + ":" + std::to_string(port);
}

grpc::ServerUnaryReactor* RegistryService::Register(grpc::CallbackServerContext* context,
                                                    const v1::RegisterRequest* request,
                                                    v1::RegisterResponse* response) {
  const Status status = [&]() -> Status {
    ASSIGN_OR_RETURN(const std::string address, ResolveAddress(request->address(), context->peer()));
    ASSIGN_OR_RETURN(*response, backend_->Register(address, request->identity()));
    return OkStatus();
  }();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

}  // namespace quire::rpc
