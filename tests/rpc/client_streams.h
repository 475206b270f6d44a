// Clients that stream from a service, each on a thread of its own, and what has come to them: for tests that disturb the
// service meanwhile and compare.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "rpc/client.h"

namespace quire {

// One client's request, and what has come of it.
struct ClientStream {
  ClientRequest request;
  std::vector<std::vector<int32_t>> tokens;  // [sequences]: prompt by prompt, n of each
  std::vector<std::string> texts;            // [sequences]
  std::vector<TokenEvent> last;              // [sequences] how each ended; reason kUnspecified: it has not
  std::vector<std::vector<TokenLogprobs>> logprobs;  // [sequences][tokens] or empty
  std::vector<std::vector<std::optional<TokenLogprobs>>> prompt_logprobs;  // [prompts × n], of each first sequence
  Status status;
};

// Runs streams of one client, each on a thread of its own.
class ClientStreams {
 public:
  // retry_s: see ClientOptions.
  ClientStreams(const std::string& address, std::vector<ClientStream> streams, double retry_s = 60);
  ~ClientStreams() { Join(); }
  void Join();
  int64_t tokens() const { return tokens_; }  // that have come so far, of all
  bool done() const { return running_ == 0; }
  // False when they have ended before there were so many.
  bool WaitTokens(int64_t count, double seconds = 60) const;
  const std::vector<ClientStream>& results() const { return streams_; }

 private:
  std::vector<ClientStream> streams_;
  std::once_flag connect_;  // by the first thread
  std::unique_ptr<Client> client_;
  Status connected_;  // why not, where client_ is null
  std::vector<std::thread> threads_;
  std::atomic<int64_t> tokens_ = 0;
  std::atomic<int> running_ = 0;
};

// Greedy and seeded, over each of the policies; `tokens` outputs each, prompts of about `prompt` tokens.
std::vector<ClientStream> MixedStreams(const std::vector<std::string>& policies, int per_policy, int prompt, int tokens);
// Tokens, texts, log-probabilities (bit by bit) and ends.
void ExpectEqual(const std::vector<ClientStream>& disturbed, const std::vector<ClientStream>& undisturbed);

}  // namespace quire
