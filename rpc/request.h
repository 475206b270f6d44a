// Request: one accepted request of a client or a coordinator, from its admission until nothing of it is left: the
// backend's events go in at one end, and a reader, where there is one, takes out what is new at the other. The reader
// may be slow, go away, and be replaced by another that goes on where it says. Internal to rpc/.
//
// Lock order: a reader's own mutex before a request's; a request calls nobody while it holds its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "quire/v1/generation.pb.h"
#include "rpc/backend.h"
#include "rpc/sequence_output.h"

namespace quire::rpc {

class Request;
class RequestTable;

// Who takes out what requests have put in. Calls come with no lock held, from the thread that delivers; news may come
// from several at once.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual void OnNews(const std::vector<std::shared_ptr<Request>>& requests) = 0;
  // Another reader has taken over.
  virtual void OnReplaced() = 0;
  // Every so often: to give up on a client that doesn't read.
  virtual void OnTick(double now) = 0;
};

// Thread safe.
class Request : public std::enable_shared_from_this<Request> {
 public:
  struct Options {
    std::string id;
    std::string client;
    int prompts = 1;
    int sequences = 1;       // of each prompt: sampling.n
    int first_sequence = 0;  // their indices begin here
    int64_t first_token = 0;  // and their tokens here
    bool keep = false;       // outlives its reader
    uint64_t message = 0;    // FingerprintOf what was sent, where it is kept
    bool echo = false;       // prompt ids in the first chunk
    bool whole = false;      // read by TakeResponse: the reader wants no news before everything is there
    RequestTable* table = nullptr;  // that it is in; told when it has settled
    size_t max_unread = 0;   // bytes that may wait for the reader, and be held at all when it is kept
  };
  // notify: there is news for the reader (or the request has settled); called often, from the backend's threads.
  Request(Options options, Backend* backend, std::function<void(const std::shared_ptr<Request>&)> notify);

  const std::string& id() const { return options_.id; }
  const Options& options() const { return options_; }

  // Where a sequence stands that another service has begun: `tokens` of it have been read, and its last chunk too when
  // `finished`. Before everything else.
  void Begin(int place, int64_t tokens, bool finished);
  // Hands one prompt on. Nothing is submitted once it has failed or was aborted. The failure becomes the request's.
  void Submit(int prompt, GenerationRequest request);
  // The same of one of a prompt's sequences alone; request.sampling.n is 1. Not both for one prompt.
  void SubmitSequence(int prompt, int sequence, GenerationRequest request);
  // Every prompt was handed on or failed. Before, it never settles.
  void EndOfSubmissions();

  // Ends it with a status: what runs is cancelled, what waits is dropped. The first one counts.
  void Fail(const Status& status);
  // Ends it with final ABORTED chunks; tokens that wait are dropped. False when it had ended already.
  bool Abort();

  // Where a sequence is read on. last: its last chunk has been read, too.
  struct Place {
    int64_t token = 0;
    bool last = false;
  };
  // Makes `reader` the one. `next`: where each sequence goes on, [prompts × sequences], empty: at the beginning.
  // OUT_OF_RANGE for a place that isn't there (yet, or any more); nothing has changed then.
  Status Attach(std::shared_ptr<Reader> reader, const std::vector<Place>& next);
  // The reader leaves; passed over when it is not the one. True when it was.
  bool Detach(const Reader* reader);
  std::shared_ptr<Reader> reader() const;
  // Without a reader it ends then at the latest (NowSeconds): the deadline of its last call.
  void set_deadline(double deadline);
  double deadline() const;
  double unread_since() const;  // when the last reader left, or it was made; 0 while there is one

  // Makes `message` what is new of one sequence, if anything is, for `reader`: nothing when that is not the one (any more). Message:
  // GenerateChunk or TokenEvent.
  template <typename Message>
  bool Take(const Reader* reader, Message* message);
  // All of it has been taken (or it has failed: `status`).
  bool Drained(Status* status) const;
  // The whole, once Complete. RESOURCE_EXHAUSTED when it is larger than `limit` bytes.
  Status TakeResponse(v1::GenerateResponse* response, size_t limit) const;
  bool Complete() const;  // every sequence has ended, or it has failed
  bool Settled() const;   // and the backend is done with it: its id is free

  // For Delivery: whether it is on the list of those with news.
  std::atomic<bool> noted = false;

 private:
  struct Sequence {
    SequenceOutput output;
    int64_t sent = 0;
    bool first_sent = false, last_sent = false;
    bool running = false;  // the backend still owes its last event
    bool elsewhere = false;  // it had ended before it came here
  };

  void OnEvent(int prompt, const TokenEvent& event);
  void SubmitTo(int prompt, int first, int count, GenerationRequest request);
  std::string BackendId(int prompt, int sequence) const;
  void CancelAll(const std::vector<std::string>& ids);
  std::vector<std::string> RunningIds() const;
  bool HasNews(const Sequence& sequence) const;
  void NotifyIfNeeded(std::unique_lock<std::mutex> lock);

  const Options options_;
  Backend* const backend_;
  const std::function<void(const std::shared_ptr<Request>&)> notify_;

  mutable std::mutex mutex_;
  std::vector<Sequence> sequences_;            // [prompts × sequences]
  std::vector<std::vector<int32_t>> prompts_;  // ids, when they are to be echoed
  std::vector<bool> split_;                    // [prompts] each sequence was handed on by itself
  std::shared_ptr<Reader> reader_;
  double unread_since_;
  double deadline_ = std::numeric_limits<double>::infinity();
  size_t next_ = 0;      // sequence that is looked at first
  int unfinished_ = 0;   // sequences without an end
  int running_ = 0;      // sequences that the backend still owes an end
  bool submitting_ = true;
  bool aborted_ = false;
  Status failure_;
};

}  // namespace quire::rpc
