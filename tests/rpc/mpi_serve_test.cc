// `mpirun -n 2 quire serve`: a group of two processes as a service. What it answers is what one rank answers, it drains
// by the one signal that mpirun hands on, and a rank that dies ends it by name.
#include <signal.h>
#include <unistd.h>

#include "tests/launch/quire_process.h"
#include "tests/rpc/client_streams.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

const std::vector<std::string> kTwoRanks = {QUIRE_SOURCE_DIR "/tests/mpirun.sh", QUIRE_MPIRUN, "2"};

std::vector<std::string> Serve(const std::string& model) {
  return {"serve",   "--model", DataPath(model), "--port",         "0", "--threads", "1",
          "--dtype", "float32", "--kv-cache-memory-bytes", "64M", "--max-num-seqs", "8"};
}

ClientStream Ask(int tokens, float temperature) {
  ClientStream stream;
  stream.request.prompts.emplace_back().text = "Once upon a time";
  stream.request.parameters = Greedy({}, tokens);
  stream.request.parameters.sampling.temperature = temperature;
  stream.request.parameters.sampling.seed = 11;
  return stream;
}

TEST(MpiServe, AnswersAsOneRankDoesAndDrainsOnSigusr1) {
  QuireProcess serve(Serve("stories260K"), kTwoRanks);
  ASSERT_NE(serve.address(), "") << serve.err();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  std::vector<ClientStream> streams = {Ask(100, 0), Ask(100, 1)};
  streams[1].request.parameters.sampling.n = 2;
  ClientStreams running(serve.address(), streams);
  running.Join();
  const auto engine = MakeEngine(ModelOptions("stories260K"));
  for (const ClientStream& stream : running.results()) {
    ASSERT_TRUE(stream.status.ok()) << stream.status.ToString();
    GenerationRequest own = stream.request.parameters;
    own.prompt = *engine->tokenizer()->Encode("Once upon a time", {});
    Collector collector;
    const auto id = engine->Submit(own, collector.callback());
    ASSERT_TRUE(id.ok() && engine->Run().ok());
    for (int s = 0; s < own.sampling.n; ++s) {
      EXPECT_EQ(stream.tokens[static_cast<size_t>(s)], collector.at(*id, s).ids);
      EXPECT_EQ(stream.texts[static_cast<size_t>(s)], collector.at(*id, s).text);
    }
  }
  const auto client = Client::Connect({.address = serve.address()});
  ASSERT_TRUE(client.ok());
  EXPECT_EQ((*client)->Info()->tensor_parallel_size, 2);

  ClientStreams last(serve.address(), {Ask(400, 0)}, /*retry_s=*/0);
  ASSERT_TRUE(last.WaitTokens(5));
  serve.Signal(SIGUSR1);
  EXPECT_EQ(serve.Wait(30), 0) << serve.err();
  last.Join();
  EXPECT_TRUE(last.results()[0].status.ok()) << last.results()[0].status.ToString();  // it was let finish
  EXPECT_EQ(last.results()[0].tokens[0].size(), 400u);
  EXPECT_NE(serve.err().find("draining"), std::string::npos) << serve.err();
}

TEST(MpiServe, ARankThatIsKilledEndsItWithinSecondsByName) {
  QuireProcess serve(Serve("retriever-2m"), kTwoRanks);
  ASSERT_NE(serve.address(), "") << serve.err();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  ClientStreams running(serve.address(), {Ask(100000, 0)}, /*retry_s=*/0);
  ASSERT_TRUE(running.WaitTokens(20)) << serve.err() << running.results()[0].status.ToString();
  const pid_t victim = serve.ProcessOfRank(1);
  ASSERT_GT(victim, 0);
  ASSERT_EQ(kill(victim, SIGKILL), 0);
  const double killed = NowSeconds();
  const int code = serve.Wait(20);
  EXPECT_LT(NowSeconds() - killed, 10);
  EXPECT_NE(code, 0);
  EXPECT_NE(code, -2) << "it goes on";
  running.Join();
  EXPECT_EQ(running.results()[0].status.code(), StatusCode::kUnavailable) << running.results()[0].status.ToString();
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  EXPECT_NE(serve.err().find("quire: error: rank 1 (host " + std::string(host) + ", pid " + std::to_string(victim)),
            std::string::npos)
      << serve.err();
}

}  // namespace
}  // namespace quire
