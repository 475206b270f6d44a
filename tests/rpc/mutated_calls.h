// Calls of random and mutated messages to a live service, and what their ends may be.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "quire/v1/generation.pb.h"

namespace quire {

class MutatedCalls {
 public:
  // The seed is QUIRE_TEST_SEED, else drawn; `channel` is the service's.
  explicit MutatedCalls(std::shared_ptr<grpc::Channel> channel);

  uint64_t seed() const { return seed_; }
  uint64_t Draw() { return random_(); }

  // A message like `good`, half of the time scrambled and still readable, half mutated byte by byte, to its end.
  template <typename Message>
  void Spoilt(const std::string& method, const Message& good) {
    std::string bytes = good.SerializeAsString();
    if (random_() % 2 == 0) {
      bytes = Mutated(bytes);
    } else {
      Message message = good;
      for (uint64_t i = random_() % 3 + 1; i > 0; --i) Scramble(&message);
      bytes = message.SerializeAsString();
    }
    Call(method, bytes, Message().ParseFromString(bytes));
  }
  // Bytes of no message.
  template <typename Message>
  void Random(const std::string& method) {
    std::string bytes(random_() % 64, '\0');
    for (char& c : bytes) c = static_cast<char>(random_());
    Call(method, bytes, Message().ParseFromString(bytes));
  }
  // Most of its fields set.
  v1::GenerateRequest GoodRequest();

  // The mutations were neither all harmless nor all garbage.
  void ExpectMixed() const;

 private:
  std::string Mutated(const std::string& bytes);
  void Scramble(google::protobuf::Message* message);
  void Call(const std::string& method, const std::string& bytes, bool readable);

  const uint64_t seed_;
  std::mt19937_64 random_;
  std::shared_ptr<grpc::Channel> channel_;
  std::map<grpc::StatusCode, int> statuses_;
  int read_ = 0, unread_ = 0;
};

}  // namespace quire
