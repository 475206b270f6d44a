#include "core/model/decoder_graphs.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"

namespace quire {

Status StepGraphs::Capture(DeviceSession& session, const std::function<Status()>& enqueue, OwnedGraph* graph) {
  RETURN_IF_ERROR(session.BeginCapture());
  const Status enqueued = enqueue();
  Result<OwnedGraph> captured = session.EndCapture();
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(captured.status());
  *graph = std::move(captured).value();
  return OkStatus();
}

Status StepGraphs::Run(DeviceSession& session, const Key& key, size_t memory_bytes,
                       const std::function<Status()>& enqueue) {
  if (!session.ok()) return OkStatus();  // it tells when it is waited for
  if (memory_bytes != memory_bytes_) {
    for (Entry& entry : entries_) entry.graph = {};  // their addresses may be others now
    memory_bytes_ = memory_bytes;
  }
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  if (found == entries_.end()) {
    if (entries_.size() == kMost) entries_.pop_back();
    entries_.push_front({key, {}, false});
    return enqueue();
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  if (entry.fails) return enqueue();
  Status status = entry.graph.empty() ? Capture(session, enqueue, &entry.graph) : OkStatus();
  if (status.ok()) status = entry.graph.Launch(session.stream());
  if (status.ok()) return OkStatus();
  entry.fails = true;
  entry.graph = {};
  if (!std::exchange(told_, true)) {
    Log(LogLevel::kWarning, "a decode step could not be run as a CUDA graph and is run launch by launch, as all are with "
                            "--enforce-eager: " + status.ToString());
  }
  return enqueue();
}

}  // namespace quire
