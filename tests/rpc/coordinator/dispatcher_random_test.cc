// The Dispatcher under a random world: groups that come, die, fall silent with events on their way, wake up, refuse and
// drain, while requests of many shapes come and some are cancelled. Every stream that ends well must be what an
// undisturbed one is; nothing may be left over.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "rpc/coordinator/dispatcher.h"
#include "tests/rpc/coordinator/fake_group.h"
#include "tests/rpc/coordinator/stream_check.h"

namespace quire::rpc {
namespace {

struct World {
  explicit World(uint64_t seed) : random(seed) {
    DispatcherOptions options;
    options.name = "w";
    options.max_queue = 60;
    dispatcher = std::make_unique<Dispatcher>(options);
  }

  int Draw(int below) { return static_cast<int>(random() % static_cast<uint64_t>(below)); }

  struct Member {
    std::unique_ptr<FakeGroup> group;
    bool up = true, asleep = false;
  };
  struct Client {
    GenerationRequest request;
    StreamCheck check;
    bool cancelled = false;
  };

  void Submit() {
    auto client = std::make_unique<Client>();
    GenerationRequest& request = client->request;
    request.request_id = "r" + std::to_string(clients.size());
    const int length = 1 + Draw(Draw(4) == 0 ? 200 : 20);
    for (int i = 0; i < length; ++i) request.prompt.push_back(Draw(3));
    request.sampling.seed = random();
    request.sampling.n = Draw(3) == 0 ? 1 + Draw(5) : 1;
    request.stopping.max_tokens = 1 + Draw(60);
    request.priority = Draw(3) - 1;
    dispatcher->Submit(request, "client" + std::to_string(Draw(3)), client->check.Callback(), now);
    clients.push_back(std::move(client));
  }

  void AddGroup() {
    Member member;
    member.group = std::make_unique<FakeGroup>("g", ++sessions, dispatcher.get(), 1 + Draw(6), 20 + Draw(60));
    member.group->Up(now);
    members.push_back(std::move(member));
  }

  void Turn(bool disturbed) {
    now += 0.01 * Draw(10);
    int up = 0;
    for (const Member& member : members) up += member.up ? 1 : 0;
    if (up == 0 || (disturbed && up < 4 && Draw(30) == 0)) AddGroup();
    if (disturbed && Draw(2) == 0) Submit();
    if (disturbed && Draw(20) == 0 && !clients.empty()) {
      Client& client = *clients[static_cast<size_t>(Draw(static_cast<int>(clients.size())))];
      client.cancelled = true;
      dispatcher->Cancel(client.request.request_id, now);
    }
    for (Member& member : members) {
      if (!member.up) continue;
      if (disturbed && Draw(60) == 0) {
        member.up = false;
        member.group->Down(now);
        ++deaths;
        continue;
      }
      if (disturbed && Draw(60) == 0) member.asleep = true;
      if (!disturbed || Draw(40) == 0) member.asleep = false;
      if (member.asleep) continue;
      member.group->TakeIn();
      if (Draw(3) > 0) member.group->Step(1 + Draw(3));
      if (disturbed && Draw(40) == 0 && member.group->running() > 0) {
        member.group->Deliver(now);
        const std::vector<std::string> names = member.group->Names();
        if (!names.empty()) {
          member.group->Fail(names[static_cast<size_t>(Draw(static_cast<int>(names.size())))], StatusCode::kUnavailable,
                             "refused", now);
        }
      }
      if (Draw(4) > 0) member.group->Deliver(now);
      if (Draw(4) == 0) member.group->Load(now, !disturbed || Draw(8) > 0);
    }
    dispatcher->OnTime(now);
  }

  std::mt19937_64 random;
  double now = 1000;
  uint64_t sessions = 0;
  int deaths = 0;
  std::unique_ptr<Dispatcher> dispatcher;
  std::vector<Member> members;
  std::vector<std::unique_ptr<Client>> clients;
};

// What the worlds of a test came to; a world on its own may have a quiet or a rough time.
struct Totals {
  int clients = 0, whole = 0, deaths = 0;
};

void RunWorld(uint64_t seed, Totals* totals) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  World world(seed);
  for (int i = 0; i < 400; ++i) world.Turn(/*disturbed=*/true);
  for (int i = 0; i < 20000 && world.dispatcher->flights() > 0; ++i) world.Turn(/*disturbed=*/false);
  ASSERT_EQ(world.dispatcher->flights(), 0);
  for (const auto& client : world.clients) {
    ASSERT_TRUE(client->check.finished(client->request.sampling.n)) << client->request.request_id << " never ended";
    bool good = true;
    for (const auto& [index, sequence] : client->check.sequences) {
      const bool aborted = sequence.last.reason == FinishReason::kAborted;
      good = good && sequence.last.status.ok() && !aborted;
      if (!sequence.last.status.ok()) {
        const StatusCode code = sequence.last.status.code();
        EXPECT_TRUE(code == StatusCode::kUnavailable || code == StatusCode::kResourceExhausted)
            << sequence.last.status.ToString();
      } else if (aborted) {
        EXPECT_TRUE(client->cancelled);
      }
      // What came is a beginning of what should come, whatever happened.
      const FakeOutput expected = ExpectedOutput(client->request, *client->request.sampling.seed, index);
      ASSERT_LE(sequence.tokens.size(), expected.tokens.size());
      EXPECT_TRUE(std::equal(sequence.tokens.begin(), sequence.tokens.end(), expected.tokens.begin()));
      EXPECT_EQ(sequence.text, expected.text.substr(0, sequence.text.size()));
    }
    if (!good) continue;
    ++totals->whole;
    client->check.ExpectWhole(client->request, *client->request.sampling.seed);
  }
  // The books are empty, too.
  const v1::GetLoadResponse load = world.dispatcher->Load();
  EXPECT_EQ(load.total().tokens_in_flight(), 0);
  EXPECT_EQ(load.total().waiting(), 0);
  totals->clients += static_cast<int>(world.clients.size());
  totals->deaths += world.deaths;
}

void RunWorlds(uint64_t first, int count) {
  Totals totals;
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(count) && !testing::Test::HasFailure(); ++seed) {
    RunWorld(seed, &totals);
  }
  if (count == 1) return;
  EXPECT_GT(totals.whole, totals.clients / 3);  // else this tests little
  EXPECT_GT(totals.deaths, 3 * count);
}

TEST(DispatcherRandom, StreamsSurviveWhateverGroupsDo) {
  const char* given = std::getenv("QUIRE_TEST_SEED");
  if (given != nullptr) {
    RunWorlds(std::strtoull(given, nullptr, 10), 1);
  } else {
    RunWorlds(1, 20);
  }
}

TEST(SlowDispatcherRandom, StreamsSurviveWhateverGroupsDo) {
  SetLogLevel(LogLevel::kError);
  RunWorlds(std::random_device()(), 1000);
}

}  // namespace
}  // namespace quire::rpc
