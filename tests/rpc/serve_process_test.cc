// `quire serve` and `quire client` as processes: what they print, how they end, and what a killed client leaves.
#include <signal.h>

#include "rpc/client.h"
#include "tests/launch/quire_process.h"
#include "tests/rpc/service_fixture.h"

namespace quire {
namespace {

std::vector<std::string> ServeArguments(const std::string& model) {
  return {"serve", "--model", DataPath(model), "--port", "0", "--threads", "1", "--dtype", "float32",
          "--kv-cache-memory-bytes", "64M", "--max-num-seqs", "8"};
}

bool PagesFree(const std::string& address) {
  const auto client = Client::Connect({.address = address, .connect_s = 5});
  if (!client.ok()) return false;
  const auto load = (*client)->Load();
  return load.ok() && load->running == 0 && load->pages_free == load->pages_total;
}

TEST(ServeProcess, TheClientPrintsWhatGenerateDoes) {
  QuireProcess serve(ServeArguments("stories260K"));
  const std::string address = serve.address();
  ASSERT_NE(address, "") << serve.err();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  const ProgramResult local = RunQuire({"generate", "--model", DataPath("stories260K"), "--prompt", "Once upon a time",
                                        "--max-tokens", "50", "--dtype", "float32", "--threads", "1"});
  const ProgramResult remote =
      RunQuire({"client", "--address", address, "--prompt", "Once upon a time", "--max-tokens", "50"});
  EXPECT_EQ(remote.exit_code, 0) << remote.err;
  EXPECT_EQ(remote.out, local.out);
  const auto json = RunQuireJson({"client", "--address", address, "--prompt", "The dog", "--prompt", "The cat", "--n",
                                  "2", "--temperature", "1", "--seed", "3", "--max-tokens", "5", "--logprobs", "1"});
  ASSERT_EQ(json["sequences"].size(), 4u);
  EXPECT_EQ(json["sequences"][3]["prompt"], 1);
  EXPECT_EQ(json["sequences"][3]["token_ids"].size(), 5u);
  EXPECT_EQ(json["sequences"][3]["logprobs"].size(), 5u);
  EXPECT_EQ(RunQuireJson({"client", "--address", address, "--info"})["state"], "ready");
  const ProgramResult bad = RunQuire({"client", "--address", address, "--prompt", "a", "--temperature", "-1"});
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_NE(bad.err.find("temperature is -1"), std::string::npos) << bad.err;
  EXPECT_EQ(RunQuire({"client", "--address", address, "--drain"}).exit_code, 0);
  EXPECT_EQ(serve.Wait(20), 0) << serve.err();
}

TEST(ServeProcess, ScorePrintsWhatItPrintsByItself) {
  std::vector<std::string> serve_flags = ServeArguments("stories260K");
  serve_flags.push_back("--batch-invariant");
  QuireProcess serve(serve_flags);
  const std::string address = serve.address();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  const ScratchFolder scratch;
  const std::string ids = scratch.Write("ids", "[1, 403, 407, 261, 378, 400, 99, 7]");
  std::string list = "[\"Once upon a time\", [1]";
  for (int i = 0; i < 40; ++i) list += ", [1, 403, " + std::to_string(i) + "]";
  const std::string texts = scratch.Write("list", list + "]");
  for (const std::vector<std::string>& input : std::vector<std::vector<std::string>>{
           {"--token-ids-file", ids}, {"--list-file", texts}, {"--list-file", texts, "--top", "0"}}) {
    for (const std::string format : {"text", "json"}) {
      std::vector<std::string> here = {"score",     "--model", DataPath("stories260K"), "--dtype", "float32",
                                       "--threads", "1",       "--batch-invariant",     "--format", format};
      std::vector<std::string> there = {"score", "--address", address, "--format", format};
      here.insert(here.end(), input.begin(), input.end());
      there.insert(there.end(), input.begin(), input.end());
      const ProgramResult local = RunQuire(here), remote = RunQuire(there);
      EXPECT_EQ(remote.exit_code, 0) << remote.err;
      EXPECT_EQ(remote.out, local.out);
      EXPECT_EQ(remote.err, "");
    }
  }
  const ProgramResult bad = RunQuire({"score", "--address", address, "--list-file", scratch.Write("bad", "[[1], [512]]")});
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_NE(bad.err.find("text 1"), std::string::npos) << bad.err;
  EXPECT_NE(bad.err.find("512"), std::string::npos) << bad.err;
  const ProgramResult needless =
      RunQuire({"score", "--address", address, "--token-ids-file", ids, "--model", "elsewhere", "--page-size", "3"});
  EXPECT_EQ(needless.exit_code, 0);
  EXPECT_NE(needless.err.find("--model, --page-size does nothing"), std::string::npos) << needless.err;
}

TEST(ServeProcess, BenchServeReportsWhatItSent) {
  QuireProcess serve(ServeArguments("stories260K"));
  const std::string address = serve.address();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  const std::vector<std::string> bench = {"bench", "serve", "--address", address, "--seed", "3"};
  const auto with = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = bench;
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return arguments;
  };
  const auto poisson = RunQuireJson(with({"--num-prompts", "40", "--request-rate", "100", "--input-len", "20", "--output-len",
                                          "10", "--goodput", "ttft:60000,tpot:60000"}));
  EXPECT_EQ(poisson["completed"], 40);
  EXPECT_EQ(poisson["failed"], 0);
  EXPECT_EQ(poisson["total_input_tokens"], 40 * 20);
  EXPECT_EQ(poisson["total_output_tokens"], 40 * 10);
  EXPECT_GT(poisson["duration"].get<double>(), 0.15);  // 39 gaps of 10 ms, as they fall
  EXPECT_EQ(poisson["request_goodput"], poisson["request_throughput"]);
  for (const char* name : {"ttft", "tpot", "itl", "e2el"}) {
    const auto figure = [&](const std::string& which) { return poisson[which + "_" + name + "_ms"].get<double>(); };
    EXPECT_GT(figure("mean"), 0) << name;
    EXPECT_LE(figure("median"), figure("p90")) << name;
    EXPECT_LE(figure("p90"), figure("p99")) << name;
  }
  EXPECT_NEAR(poisson["mean_e2el_ms"].get<double>(),
              poisson["mean_ttft_ms"].get<double>() + 9 * poisson["mean_tpot_ms"].get<double>(), 0.01);
  // The service's own counters, and its pages after it.
  EXPECT_EQ(poisson["service"]["generation_tokens"], 40 * 10);
  EXPECT_EQ(poisson["service"]["prompt_tokens"], 40 * 20);
  EXPECT_EQ(poisson["service"]["pages_free_after"], poisson["service"]["pages_total"]);

  const ScratchFolder scratch;
  const std::string trace = scratch.Write("trace",
                                          "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0,374,44\n"
                                          "2023-11-16 18:15:56.5,396,109\n2023-11-16 18:16:06.0,9000,55\n");
  const auto traced = RunQuireJson(with({"--trace", trace, "--request-rate", "inf", "--length-scale", "0.25", "--max-input-len",
                                         "50", "--max-concurrency", "1"}));
  EXPECT_EQ(traced["completed"], 3);
  EXPECT_EQ(traced["total_input_tokens"], 150);
  EXPECT_EQ(traced["total_output_tokens"], 11 + 27 + 14);
  EXPECT_EQ(traced["max_concurrent_requests"], 1);
  const ProgramResult text = RunQuire(with({"--num-prompts", "2", "--input-len", "8", "--output-len", "2"}));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  for (const char* word : {"TTFT", "output tokens / s", "pages free: "}) EXPECT_NE(text.out.find(word), text.out.npos);

  for (const std::vector<std::string>& bad :
       std::vector<std::vector<std::string>>{{"--input-len", "600"}, {"--trace", trace}, {"--time-scale", "2"},
                                             {"--trace", trace, "--input-len", "3"}, {"--goodput", "x:1"},
                                             {"--request-rate", "0"}, {"--attention", "nosuch"},
                                             {"--served-model-name", "another"}}) {
    const ProgramResult refused = RunQuire(with(bad));
    EXPECT_EQ(refused.exit_code, 1) << bad[0];
    EXPECT_EQ(refused.err.rfind("quire: error: ", 0), 0u) << refused.err;
    EXPECT_EQ(refused.out, "") << bad[0];
  }
}

TEST(ServeProcess, SigtermAndSigusr1DrainIt) {
  const size_t tokens = kSlowness > 1 ? 200 : 1500;  // not at their end before the signal, and within the drain's time
  for (const int signal : {SIGTERM, SIGUSR1}) {
    QuireProcess serve(ServeArguments("retriever-2m"));
    const std::string address = serve.address();
    ASSERT_TRUE(serve.WaitReady()) << serve.err();
    const ScratchFolder scratch;
    std::string ids = "[256";
    for (int i = 0; i < 64; ++i) ids += ",97";
    QuireProcess client({"client", "--address", address, "--token-ids-file", scratch.Write("ids", ids + "]"), "--max-tokens",
                    std::to_string(tokens), "--ignore-eos", "--format", "json"});
    ASSERT_TRUE(Eventually([&] { return !PagesFree(address); }));
    serve.Signal(signal);
    EXPECT_EQ(client.Wait(60), 0) << client.err();  // it was let finish
    EXPECT_EQ(nlohmann::json::parse(client.out())["sequences"][0]["token_ids"].size(), tokens);
    EXPECT_EQ(serve.Wait(20), 0) << serve.err();
    EXPECT_NE(serve.err().find("draining"), std::string::npos);
  }
}

TEST(ServeProcess, AKilledClientLeavesNothing) {
  QuireProcess serve(ServeArguments("retriever-2m"));
  const std::string address = serve.address();
  ASSERT_TRUE(serve.WaitReady()) << serve.err();
  for (int i = 0; i < 3; ++i) {
    QuireProcess client({"client", "--address", address, "--prompt", "some text to go on from", "--max-tokens", "100000",
                    "--ignore-eos", "--retry", "0"});
    ASSERT_TRUE(Eventually([&] { return !PagesFree(address); }));
    client.Signal(SIGKILL);
    client.Wait(10);
    EXPECT_TRUE(Eventually([&] { return PagesFree(address); }));
  }
  serve.Signal(SIGINT);
  EXPECT_EQ(serve.Wait(20), 0) << serve.err();
}

TEST(ServeProcess, ItListensWhileItLoadsAndEndsWhenTheModelIsBad) {
  const ProgramResult missing = RunQuire({"serve", "--model", "/nowhere/at-all", "--port", "0"});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_NE(missing.err.find("/nowhere/at-all"), std::string::npos);
  const ProgramResult port = RunQuire({"serve", "--model", DataPath("stories260K"), "--port", "70000"});
  EXPECT_EQ(port.exit_code, 1);
  EXPECT_NE(port.err.find("--port is 70000"), std::string::npos);
}

}  // namespace
}  // namespace quire
