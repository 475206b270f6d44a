#include "rpc/coordinator/fair_queue.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace quire::rpc {
namespace {

using Queue = FairQueue<std::string>;

std::string TakeOne(Queue* queue) {
  std::string taken;
  queue->Offer([&](const std::string& value) {
    if (!taken.empty()) return Queue::Verdict::kStop;
    taken = value;
    return Queue::Verdict::kTaken;
  });
  return taken;
}

std::vector<std::string> TakeAll(Queue* queue) {
  std::vector<std::string> all;
  while (queue->size() > 0) all.push_back(TakeOne(queue));
  return all;
}

TEST(FairQueue, OneClientsEntriesComeInOrder) {
  Queue queue(10);
  for (const char* name : {"a", "b", "c"}) queue.Push(name, "client", 0, 5);
  EXPECT_EQ(TakeAll(&queue), (std::vector<std::string>{"a", "b", "c"}));
}

TEST(FairQueue, AClientWithMuchDoesNotHoldUpAnother) {
  Queue queue(100);
  for (int i = 0; i < 50; ++i) queue.Push("flood", "greedy", 0, 100);
  TakeOne(&queue);
  queue.Push("polite", "other", 0, 100);
  // Before the flood's second entry, or beside it; not behind the 49.
  std::vector<std::string> first = {TakeOne(&queue), TakeOne(&queue)};
  EXPECT_TRUE(first[0] == "polite" || first[1] == "polite");
}

TEST(FairQueue, SharesAreByTokensNotByEntries) {
  Queue queue(1000);
  for (int i = 0; i < 100; ++i) queue.Push("large", "a", 0, 1000);
  for (int i = 0; i < 100; ++i) queue.Push("small", "b", 0, 100);
  int large = 0, small = 0;
  for (int i = 0; i < 55; ++i) TakeOne(&queue) == "large" ? ++large : ++small;
  EXPECT_NEAR(large, 5, 1);
  EXPECT_NEAR(small, 50, 1);
}

TEST(FairQueue, LowerPriorityNumbersGoFirst) {
  Queue queue(10, 1024);
  queue.Push("late", "a", 1, 1);
  queue.Push("middle", "b", 0, 1);
  queue.Push("early", "c", -1, 1);
  EXPECT_EQ(TakeAll(&queue), (std::vector<std::string>{"early", "middle", "late"}));
}

TEST(FairQueue, WaitingMakesUpForPriority) {
  Queue queue(1000, 100);
  queue.Push("patient", "a", 5, 1);
  int before = 0;
  // A stream of better ones from others, each with as much service as one step of priority is worth.
  for (int i = 0; i < 100; ++i) {
    queue.Push("urgent", "b", 0, 100);
    if (TakeOne(&queue) == "patient") break;
    ++before;
  }
  EXPECT_NEAR(before, 5, 1);
}

TEST(FairQueue, WhatComesBackGoesBeforeEverythingNew) {
  Queue queue(2);
  queue.Push("urgent", "a", -1000, 1);
  queue.Push("normal", "a", 0, 1);
  EXPECT_TRUE(queue.Full());
  queue.PushAgain("back", 0);  // never refused
  EXPECT_EQ(TakeAll(&queue), (std::vector<std::string>{"back", "urgent", "normal"}));
}

TEST(FairQueue, ARemovedEntryGivesItsShareBack) {
  Queue queue(10);
  const auto ticket = queue.Push("withdrawn", "a", 0, 1000000);
  EXPECT_TRUE(queue.Remove(ticket));
  EXPECT_FALSE(queue.Remove(ticket));
  queue.Push("b", "b", 0, 10);
  queue.Push("a", "a", 0, 10);
  queue.Push("b2", "b", 0, 10);
  EXPECT_EQ(TakeAll(&queue), (std::vector<std::string>{"b", "a", "b2"}));
}

TEST(FairQueue, SkippedEntriesStay) {
  Queue queue(10);
  for (const char* name : {"a", "b", "c"}) queue.Push(name, "client", 0, 5);
  queue.Offer([](const std::string& value) { return value == "b" ? Queue::Verdict::kTaken : Queue::Verdict::kSkipped; });
  EXPECT_EQ(TakeAll(&queue), (std::vector<std::string>{"a", "c"}));
}

}  // namespace
}  // namespace quire::rpc
