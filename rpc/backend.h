// Backend: what the Generation and Control services stand on. An engine of this process (a group), or a coordinator over
// many groups: the services, their buffers and their drain are written once, against this. Internal to rpc/.
#pragma once

#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/io/tokenizer.h"
#include "quire/v1/control.pb.h"

namespace quire::rpc {

// A file that makes the tokenizer; see Control.GetTokenizer.
struct TokenizerFile {
  std::string name;  // without folders
  std::string data;
};

// Thread safe, and no call blocks for longer than a lock: gRPC's threads make them.
class Backend {
 public:
  virtual ~Backend() = default;

  // OK when requests can be taken; else UNAVAILABLE with what is missing (loading, no group).
  virtual Status Available() const = 0;
  // Requests are running and none has advanced for `seconds`: the service is alive but not ready.
  virtual bool Stalled(double seconds) const = 0;

  // One prompt with its sampling.n sequences, as Engine::Submit; request_id is not empty and unique. `client` is who
  // shares fairly with others. Statuses are those of the Generation service. The callback comes from a thread of the
  // backend, one at a time for a request, in order per sequence, possibly before Submit returns; after OK it comes
  // until each sequence had its finished event, one whose status is not OK included. It only queues.
  virtual Status Submit(GenerationRequest request, const std::string& client, EventCallback callback) = 0;
  // Ends it with a finished event of reason kAborted for each unfinished sequence; unknown ids are passed over.
  virtual void Cancel(const std::string& request_id) = 0;

  // Null while there is none (yet). Stays valid as long as the backend.
  virtual const Tokenizer* tokenizer() const = 0;
  // Valid when Available was OK once; GetModelInfoResponse as Control gives it.
  virtual Result<v1::GetModelInfoResponse> ModelInfo() const = 0;
  virtual v1::GetLoadResponse Load() const = 0;
  // What the front doesn't know: version, role, detail while loading, tensor_parallel_size, page_size, max_num_seqs.
  virtual void FillServerInfo(v1::GetServerInfoResponse* info) const = 0;
  virtual Result<std::vector<TokenizerFile>> TokenizerFiles() const = 0;
};

}  // namespace quire::rpc
