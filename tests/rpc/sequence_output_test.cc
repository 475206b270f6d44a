// What a sequence has put out, read in pieces of any size and from any place.
#include "rpc/sequence_output.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "quire/v1/generation.pb.h"
#include "quire/v1/worker.pb.h"
#include "rpc/convert.h"

namespace quire::rpc {
namespace {

// Tokens 100, 101, …; text of some of them empty, as when it is held back; the end brings text of its own.
std::vector<TokenEvent> Events(int tokens, int first = 0) {
  std::vector<TokenEvent> events;
  for (int i = first; i < tokens; ++i) {
    TokenEvent event;
    event.index = i;
    event.token_ids = {100 + i};
    if (i % 3 != 1) event.text = "t" + std::to_string(i) + (i % 3 == 2 ? "+" : "");
    event.logprobs.push_back({{100 + i, -0.5f * i}, {{100 + i, -0.5f * i}, {1, -9.0f}}});
    events.push_back(event);
  }
  TokenEvent last;
  last.index = tokens;
  last.text = "end";
  last.finished = true;
  last.reason = FinishReason::kStop;
  last.matched_stop_id = 2;
  last.completion_tokens = tokens;
  events.push_back(last);
  return events;
}

std::string Text(const std::vector<TokenEvent>& events, int from) {
  std::string text;
  for (const TokenEvent& event : events) {
    if (event.index >= from) text += event.text;
  }
  return text;
}

TEST(SequenceOutput, FromAnyPlaceGivesTheRest) {
  const auto events = Events(20);
  SequenceOutput output;
  for (const TokenEvent& event : events) ASSERT_TRUE(output.Append(event));
  for (int from = 0; from <= 20; ++from) {
    v1::GenerateChunk chunk;
    output.Write(from, &chunk);
    EXPECT_EQ(chunk.token_ids_size(), 20 - from);
    EXPECT_EQ(chunk.logprobs_size(), 20 - from);
    if (from < 20) {
      EXPECT_EQ(chunk.token_ids(0), 100 + from);
      EXPECT_EQ(chunk.logprobs(0).logprob(), -0.5f * from);
    }
    EXPECT_EQ(chunk.text(), Text(events, from)) << from;
    EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_STOP);
    EXPECT_EQ(chunk.stop_token_id(), 2);
  }
}

TEST(SequenceOutput, AnEventThatDoesNotFollowIsRefused) {
  SequenceOutput output;
  const auto events = Events(3);
  EXPECT_FALSE(output.Append(events[1]));
  EXPECT_TRUE(output.Append(events[0]));
  EXPECT_FALSE(output.Append(events[0]));
  EXPECT_EQ(output.end(), 1);
}

TEST(SequenceOutput, ForgettingWhatWasReadChangesNothingOfTheRest) {
  const auto events = Events(1000);
  SequenceOutput output;
  std::mt19937 random(7);
  std::string text;
  std::vector<int32_t> ids;
  int64_t sent = 0;
  size_t most = 0;
  for (const TokenEvent& event : events) {
    ASSERT_TRUE(output.Append(event));
    if (random() % 3 != 0 && !event.finished) continue;
    v1::GenerateChunk chunk;
    output.Write(sent, &chunk);
    text += chunk.text();
    ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    sent = output.end();
    output.Forget(sent);
    most = std::max(most, static_cast<size_t>(output.end() - output.begin()));
  }
  EXPECT_EQ(text, Text(events, 0));
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_LT(most, 200u);  // it did forget
}

TEST(SequenceOutput, AbortDropsWhatWasNotRead) {
  const auto events = Events(10);
  SequenceOutput output;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(output.Append(events[i]));
  output.Abort(5, TokenEvent());
  EXPECT_TRUE(output.finished());
  EXPECT_EQ(output.end(), 5);
  v1::GenerateChunk chunk;
  output.Write(3, &chunk);
  EXPECT_EQ(chunk.token_ids_size(), 2);
  EXPECT_EQ(chunk.logprobs_size(), 2);
  EXPECT_EQ(chunk.text(), "t3");  // token 4's text is held back
  EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_ABORTED);
  EXPECT_EQ(chunk.usage().completion_tokens(), 5);
}

TEST(SequenceOutput, GatheredForAGroupsStreamItIsCutIntoTheSamePiecesAgain) {
  const auto events = Events(12, /*first=*/4);  // an earlier attempt made four
  SequenceOutput output(4);
  for (const TokenEvent& event : events) ASSERT_TRUE(output.Append(event));
  v1::TokenEvent gathered;
  gathered.set_token_index(4);
  output.Write(4, &gathered);
  SequenceOutput again(4);
  ASSERT_TRUE(ReadEvent(gathered, [&](const TokenEvent& event) { ASSERT_TRUE(again.Append(event)); }).ok());
  for (int from = 4; from <= 12; ++from) {
    v1::GenerateChunk a, b;
    output.Write(from, &a);
    again.Write(from, &b);
    EXPECT_EQ(a.SerializeAsString(), b.SerializeAsString()) << from;
  }
}

}  // namespace
}  // namespace quire::rpc
