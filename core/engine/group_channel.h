// GroupChannel: what rank 0 tells the other ranks, one broadcast a message: options of an engine to open, a step's
// plan, the end. A message is a header and its bytes; so much of it as all ranks know beforehand travels in one broadcast,
// only what is longer takes a second. That is kFirstBytes, and after a plan what it took, up to kMostFirstBytes: steps of
// many sequences are alike in size, so that the first of them alone takes two; those with long prompts do, too.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/status.h"
#include "parallel/communicator.h"

namespace quire {

enum class GroupMessage : uint32_t {
  kOpen = 1,     // payload: SerializeOptions of the engine that every rank makes now
  kPlan = 2,     // payload: StepPlan::Serialize
  kClose = 3,    // the engine is given up; another may follow
  kRelease = 4,  // nothing follows
};

class GroupChannel {
 public:
  static constexpr int64_t kFirstBytes = 4096, kMostFirstBytes = 64 << 10;

  // comm: not owned.
  explicit GroupChannel(Communicator* comm) : comm_(comm) {}

  // Rank 0 only.
  Status Send(GroupMessage kind, std::span<const uint8_t> payload = {});
  // The other ranks, for each Send. May wait for as long as rank 0 has nothing to say. FAILED_PRECONDITION for bytes
  // that no message of this version starts with.
  Result<GroupMessage> Receive(std::vector<uint8_t>* payload);

 private:
  int64_t FirstBytesAfter(GroupMessage kind, int64_t payload) const;

  Communicator* comm_;
  int64_t first_bytes_ = kFirstBytes;  // of the next message: the same on all ranks
  std::vector<uint8_t> first_;         // of one message; keeps its memory
};

}  // namespace quire
