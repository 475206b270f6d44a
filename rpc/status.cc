// See status.h.
#include "rpc/status.h"

#include <string>

namespace quire::rpc {
namespace {

// A status travels in a header, which peers limit to 8 KiB by default; a sentence with a quoted value may be longer.
constexpr size_t kMaxMessage = 2048;

}  // namespace

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = status.message();
  if (message.size() > kMaxMessage) {
    size_t cut = kMaxMessage;
    while (cut > 0 && (static_cast<unsigned char>(message[cut]) & 0xc0) == 0x80) --cut;  // not inside a character
    message.resize(cut);
    message += "…";
  }
  return {static_cast<grpc::StatusCode>(static_cast<int>(status.code())), message};
}

Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return OkStatus();
  const int code = status.error_code();
  const bool known = code > 0 && code <= static_cast<int>(StatusCode::kUnauthenticated);
  return {known ? static_cast<StatusCode>(code) : StatusCode::kUnknown, status.error_message()};
}

}  // namespace quire::rpc
