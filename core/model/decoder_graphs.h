// StepGraphs: CUDA graphs of the decode steps that come again. A step is known by a key, which holds all that its launches
// depend on: the shape of its rows, and the addresses and numbers that the host passes. The first step with a key is
// enqueued as it is, which also lets all memory grow that it needs; the second is captured; from then on one launch does
// the whole of it. The graphs that were not used for the longest are given up.
//
// Where a capture fails (a library that can't be captured, say), steps with this key are enqueued as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <vector>

#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "kernels/device_session.h"

namespace quire {

class StepGraphs {
 public:
  // Keys that are remembered. A graph of a few hundred launches takes about a megabyte.
  static constexpr size_t kMost = 64;
  using Key = std::vector<uint64_t>;

  // Has `enqueue` put its work on the session's stream, or launches a graph of it. memory_bytes: of all memory that the work
  // touches and that may move: it only grows, so where that is as before, its addresses are.
  Status Run(DeviceSession& session, const Key& key, size_t memory_bytes, const std::function<Status()>& enqueue);

 private:
  struct Entry {
    Key key;
    OwnedGraph graph;  // empty: not captured yet
    bool fails = false;
  };
  static Status Capture(DeviceSession& session, const std::function<Status()>& enqueue, OwnedGraph* graph);

  std::list<Entry> entries_;  // the last used first
  size_t memory_bytes_ = 0;
  bool told_ = false;  // the log, that one failed
};

}  // namespace quire
