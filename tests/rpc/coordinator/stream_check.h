// Puts a request's events together and checks that none is lost, repeated or out of order.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/rpc/coordinator/fake_group.h"

namespace quire::rpc {

struct StreamCheck {
  struct Sequence {
    std::vector<int32_t> tokens;
    std::string text;
    bool finished = false;
    TokenEvent last;
  };
  std::map<int, Sequence> sequences;

  EventCallback Callback() {
    return [this](const TokenEvent& event) {
      Sequence& sequence = sequences[event.sequence];
      EXPECT_FALSE(sequence.finished) << "an event after the last";
      if (event.status.ok()) {
        EXPECT_EQ(event.index, static_cast<int>(sequence.tokens.size()));
      }
      sequence.tokens.insert(sequence.tokens.end(), event.token_ids.begin(), event.token_ids.end());
      sequence.text += event.text;
      sequence.finished = event.finished;
      if (event.finished) sequence.last = event;
    };
  }
  bool finished(int n) const {
    int ended = 0;
    for (const auto& [index, sequence] : sequences) ended += sequence.finished ? 1 : 0;
    return ended == n;
  }
  // From `begun` tokens on, which were there before.
  void ExpectWhole(const GenerationRequest& request, uint64_t seed, size_t begun = 0) const {
    const int first = request.resume.has_value() ? request.resume->sequence : 0;
    for (int i = first; i < first + request.sampling.n; ++i) {
      const auto at = sequences.find(i);
      ASSERT_NE(at, sequences.end()) << "sequence " << i << " of " << request.request_id << " has no events";
      FakeOutput expected = ExpectedOutput(request, seed, i);
      expected.tokens.erase(expected.tokens.begin(), expected.tokens.begin() + static_cast<std::ptrdiff_t>(begun));
      EXPECT_EQ(at->second.tokens, expected.tokens) << request.request_id << " sequence " << i;
      if (begun == 0) {
        EXPECT_EQ(at->second.text, expected.text);
      }
      EXPECT_TRUE(at->second.finished);
      EXPECT_TRUE(at->second.last.status.ok()) << at->second.last.status.ToString();
      EXPECT_EQ(static_cast<int>(at->second.last.reason), static_cast<int>(expected.reason));
    }
  }
};

}  // namespace quire::rpc
