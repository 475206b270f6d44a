#include "core/engine/group_channel.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <string>

#include "core/base/check.h"

namespace quire {
namespace {

constexpr uint32_t kMagic = 0x31475551;  // "QUG1"

struct Header {
  uint32_t magic = kMagic;
  uint32_t kind = 0;
  uint64_t bytes = 0;  // of the payload
};

TensorView Bytes(uint8_t* data, int64_t size) { return {data, DType::kU8, {size}, {}}; }

}  // namespace

// Other messages begin at kFirstBytes again, for a channel made anew sends the next engine's.
int64_t GroupChannel::FirstBytesAfter(GroupMessage kind, int64_t payload) const {
  if (kind != GroupMessage::kPlan) return kFirstBytes;
  const int64_t bytes = payload + static_cast<int64_t>(sizeof(Header));
  return bytes > kMostFirstBytes ? kFirstBytes : (bytes + kFirstBytes - 1) / kFirstBytes * kFirstBytes;
}

Status GroupChannel::Send(GroupMessage kind, std::span<const uint8_t> payload) {
  CHECK_EQ(comm_->rank(), 0);
  CHECK_LE(payload.size(), size_t{INT_MAX});
  first_.assign(static_cast<size_t>(first_bytes_), 0);
  const Header header{kMagic, static_cast<uint32_t>(kind), payload.size()};
  std::memcpy(first_.data(), &header, sizeof(header));
  const size_t head = std::min(payload.size(), first_.size() - sizeof(header));
  if (head > 0) std::memcpy(first_.data() + sizeof(header), payload.data(), head);
  RETURN_IF_ERROR(comm_->Broadcast(Bytes(first_.data(), first_bytes_), 0));
  first_bytes_ = FirstBytesAfter(kind, static_cast<int64_t>(payload.size()));
  if (head == payload.size()) return OkStatus();
  // The root's data are only read.
  auto* rest = const_cast<uint8_t*>(payload.data()) + head;
  return comm_->Broadcast(Bytes(rest, static_cast<int64_t>(payload.size() - head)), 0);
}

Result<GroupMessage> GroupChannel::Receive(std::vector<uint8_t>* payload) {
  CHECK_NE(comm_->rank(), 0);
  first_.resize(static_cast<size_t>(first_bytes_));
  RETURN_IF_ERROR(comm_->Broadcast(Bytes(first_.data(), first_bytes_), 0));
  Header header;
  std::memcpy(&header, first_.data(), sizeof(header));
  const bool known = header.kind >= static_cast<uint32_t>(GroupMessage::kOpen) &&
                     header.kind <= static_cast<uint32_t>(GroupMessage::kRelease);
  if (header.magic != kMagic || !known || header.bytes > INT_MAX) {
    return FailedPrecondition("rank " + std::to_string(comm_->rank()) +
                              " does not understand rank 0; all ranks must run the same build of quire");
  }
  payload->resize(header.bytes);
  const size_t head = std::min<size_t>(header.bytes, first_.size() - sizeof(header));
  if (head > 0) std::memcpy(payload->data(), first_.data() + sizeof(header), head);
  if (head < header.bytes) {
    RETURN_IF_ERROR(comm_->Broadcast(Bytes(payload->data() + head, static_cast<int64_t>(header.bytes - head)), 0));
  }
  first_bytes_ = FirstBytesAfter(static_cast<GroupMessage>(header.kind), static_cast<int64_t>(header.bytes));
  return static_cast<GroupMessage>(header.kind);
}

}  // namespace quire
