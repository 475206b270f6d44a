// GroupConnection: keeps one Execute stream to the group at an address, for as long as it lives: asks the group what it
// is, opens the stream, and begins again with back-off when that breaks. A thread of its own does what waits; the stream
// itself is gRPC's. What comes of it is told to a ConnectionOwner. Internal to rpc/.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/status.h"
#include "quire/v1/control.grpc.pb.h"
#include "quire/v1/worker.grpc.pb.h"
#include "rpc/coordinator/dispatcher.h"

namespace quire::rpc {

class ExecuteStream;

// Thread safe.
class ConnectionOwner {
 public:
  virtual ~ConnectionOwner() = default;
  virtual uint64_t NewSession() = 0;  // never the same number twice
  // Whether a group with this model may be used. May ask it more (the tokenizer), and so may block.
  virtual Status Greet(const v1::GetModelInfoResponse& info, v1::Control::Stub* control) = 0;
  // A message has come; the owner calls stream->Next() when it is done with stream->response().
  virtual void OnResponse(std::shared_ptr<ExecuteStream> stream) = 0;
  virtual void OnDown(std::shared_ptr<ExecuteStream> stream, const Status& why) = 0;
};

// One Execute stream. A session, for the Dispatcher.
class ExecuteStream : public GroupLink, public grpc::ClientBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse> {
 public:
  ExecuteStream(uint64_t session, ConnectionOwner* owner) : session_(session), owner_(owner) {}
  void Start(std::shared_ptr<ExecuteStream> self, v1::Worker::Stub* stub, const v1::CoordinatorHello& hello);

  uint64_t session() const { return session_; }
  const v1::ExecuteResponse& response() const { return response_; }
  void Next();  // reads the next message
  // Its owner has taken it up (or has not, and why): for the connection, which knows nothing of hellos.
  void SetUp() { up_ = true; }
  bool up() const { return up_; }
  void Send(v1::ExecuteRequest message) override;
  void Reset(const Status& why) override;
  // Waits until the stream has ended, or for so long.
  bool WaitDone(double seconds, Status* status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  void WriteLocked();

  const uint64_t session_;
  ConnectionOwner* const owner_;
  grpc::ClientContext context_;
  std::atomic<bool> up_ = false;
  v1::ExecuteResponse response_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::shared_ptr<ExecuteStream> self_;  // while gRPC has it
  v1::ExecuteRequest writing_;
  std::deque<v1::ExecuteRequest> pending_;  // in order
  size_t last_bytes_ = 0;                   // of the last of these
  bool is_writing_ = false, closed_ = false, done_ = false;
  Status reset_, status_;
};

class GroupConnection {
 public:
  // coordinator: its name, of which each connection's is made. model_hash and tokenizer_hash as in the hello.
  GroupConnection(std::string address, std::string coordinator, bool fixed, ConnectionOwner* owner);
  ~GroupConnection();  // ends the stream and the thread

  const std::string& address() const { return address_; }
  bool fixed() const { return fixed_; }  // named by the user: never forgotten
  // It said so itself, just now: no need to wait any longer with the next attempt.
  void Poke();
  bool up() const;
  double told_at() const;     // when it was made or poked last
  std::string state() const;  // for people, when it isn't up
  void Stop();                // ends the stream; the thread ends soon
  bool Stopped() const { return stopped_; }

 private:
  void Run();
  Status Connect();  // until the stream has ended
  void Say(const Status& status);

  const std::string address_, name_;
  const bool fixed_;
  ConnectionOwner* const owner_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Control::Stub> control_;
  std::unique_ptr<v1::Worker::Stub> worker_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<ExecuteStream> stream_;
  std::unique_ptr<grpc::ClientContext> asking_;
  std::string state_ = "connecting", said_;
  double told_at_;
  bool stopping_ = false, poked_ = false;
  std::atomic<bool> stopped_ = false;
  std::thread thread_;
};

}  // namespace quire::rpc
