// A coordinator under many streams at once: what it costs, and that nothing is left behind.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/rpc/coordinator/cluster.h"
#include "core/base/clock.h"

namespace quire {
namespace {

// Of one process: CPU seconds it has used, and bytes resident.
struct Usage {
  double cpu_s = 0;
  double resident = 0;
};
Usage UsageOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream fields(line.substr(line.rfind(')') + 2));
  std::string field;
  Usage usage;
  for (int i = 3; fields >> field; ++i) {
    if (i == 14 || i == 15) usage.cpu_s += std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
    if (i == 24) usage.resident = std::stod(field) * static_cast<double>(sysconf(_SC_PAGESIZE));
  }
  return usage;
}

struct Cost {
  double request_s = 0, token_s = 0;  // CPU seconds
};

// Of a server that a thousand clients at once ask for streams.
Cost Measure(const char* name, pid_t pid, const std::string& address) {
  const auto run = [&](int streams, int tokens) {
    std::vector<ClientStream> asked = MixedStreams({"dense"}, streams, 20, tokens);
    const Usage before = UsageOf(pid);
    const double began = NowSeconds();
    ClientStreams running(address, std::move(asked));
    running.Join();
    const double seconds = NowSeconds() - began;
    const Usage after = UsageOf(pid);
    for (const ClientStream& stream : running.results()) {
      EXPECT_TRUE(stream.status.ok()) << stream.status.ToString();
      EXPECT_EQ(stream.tokens[0].size(), static_cast<size_t>(tokens));
    }
    printf("%s: %d streams of %d tokens: %.1f s, %.0f tokens/s, %.2f CPU s, %.0f MB resident\n", name, streams, tokens,
           seconds, streams * tokens / seconds, after.cpu_s - before.cpu_s, after.resident / 1e6);
    return after.cpu_s - before.cpu_s;
  };
  run(100, 10);
  const double few = run(1000, 2), many = run(1000, 102);
  const double token = (many - few) / (1000 * 100);
  const Cost cost{few / 1000 - 2 * token, token};
  printf("%s: %.0f µs of CPU a request, %.1f µs a token\n", name, 1e6 * cost.request_s, 1e6 * cost.token_s);
  return cost;
}

TEST(SlowLoad, AThousandStreamsAtOnce) {
  Cluster cluster(2, "stories260K",
                  {"--dtype", "float32", "--max-num-seqs", "256", "--max-num-batched-tokens", "512", "--kv-cache-memory-bytes",
                   "256M"});
  Measure("coordinator", cluster.coordinator().pid(), cluster.address());
  EXPECT_TRUE(cluster.WaitIdle());
  EXPECT_LT(UsageOf(cluster.coordinator().pid()).resident, 1e9);
}

// The floor under it: the same chunks from a server that does nothing else.
TEST(SlowLoad, AThousandStreamsOfAServerThatOnlySends) {
  QuireProcess server({}, {QUIRE_BINARY_DIR "/bin/bare_streams"});
  Measure("bare", server.pid(), server.address());
}

}  // namespace
}  // namespace quire
