// A coordinator with groups as processes, and clients that stream from it: what the failover tests disturb.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "quire/v1/control.pb.h"
#include "rpc/client.h"
#include "tests/rpc/coordinator/service_process.h"

namespace quire {

// One client's request, and what has come of it.
struct ClientStream {
  ClientRequest request;
  std::vector<std::vector<int32_t>> tokens;  // [sequences]
  std::vector<std::string> texts;            // [sequences]
  std::vector<FinishReason> reasons;         // [sequences]
  Status status;
};

class Cluster {
 public:
  // Groups register by themselves. `model` is of tests/data; `flags` go to every group.
  Cluster(int groups, const std::string& model, std::vector<std::string> flags);

  const std::string& address() const { return coordinator_->address(); }
  ServiceProcess& coordinator() { return *coordinator_; }
  ServiceProcess& group(int i) { return *groups_[static_cast<size_t>(i)]; }
  void KillGroup(int i) { group(i).Kill(); }
  void StartGroup(int i);  // a new process in its place
  void RestartCoordinator();  // SIGKILL, and another one at the same address
  bool WaitGroups(int available, double seconds = 30);
  v1::GetLoadResponse Load();
  // Waits until nothing is in flight and every page of every group is free.
  bool WaitIdle(double seconds = 10);

 private:
  const std::string model_;
  const std::vector<std::string> flags_;
  std::unique_ptr<ServiceProcess> coordinator_;
  std::vector<std::unique_ptr<ServiceProcess>> groups_;
};

// Runs streams, each on a thread of its own.
class Streams {
 public:
  // retry_s: see ClientOptions.
  Streams(const std::string& address, std::vector<ClientStream> streams, double retry_s = 60);
  ~Streams() { Join(); }
  void Join();
  int64_t tokens() const { return tokens_; }  // that have come so far, of all
  bool done() const { return running_ == 0; }
  // False when they have ended before there were so many.
  bool WaitTokens(int64_t count, double seconds = 60) const;
  const std::vector<ClientStream>& results() const { return streams_; }

 private:
  std::vector<ClientStream> streams_;
  std::vector<std::thread> threads_;
  std::atomic<int64_t> tokens_ = 0;
  std::atomic<int> running_ = 0;
};

// Greedy and seeded, over each of the policies; `tokens` outputs each, prompts of about `prompt` tokens.
std::vector<ClientStream> MixedStreams(const std::vector<std::string>& policies, int per_policy, int prompt, int tokens);
void ExpectEqual(const std::vector<ClientStream>& disturbed, const std::vector<ClientStream>& undisturbed);

}  // namespace quire
