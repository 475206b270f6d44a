// A coordinator under many streams at once: what it costs, and that nothing is left behind.
#include <gtest/gtest.h>
#include <sys/types.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "tests/rpc/coordinator/cluster.h"
#include "tests/sanitizers/sanitized.h"

namespace quire {
namespace {

constexpr int kRuns = 5;
constexpr int kStreams = 1000;

// CPU time that a process has used.
double CpuSeconds(pid_t pid) {
  clockid_t clock{};
  EXPECT_EQ(clock_getcpuclockid(pid, &clock), 0);
  timespec time{};
  EXPECT_EQ(clock_gettime(clock, &time), 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A line of /proc/PID/status in bytes: VmRSS is what is resident, VmHWM the most that ever was.
double StatusBytes(pid_t pid, const std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return 1024 * std::stod(line.substr(name.size() + 1));
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Cost {
  double request_s = 0, token_s = 0;  // CPU seconds, medians of the runs
  double first_peak = 0, peak = 0;    // bytes resident at most: up to the end of the first run, and of the last
};

// Of a server that a thousand clients at once ask for streams.
Cost Measure(const char* name, pid_t pid, const std::string& address) {
  const auto run = [&](int streams, int tokens) {
    std::vector<ClientStream> asked = MixedStreams({"dense"}, streams, 20, tokens);
    const double before = CpuSeconds(pid), began = NowSeconds();
    ClientStreams running(address, std::move(asked));
    running.Join();
    const double seconds = NowSeconds() - began, cpu = CpuSeconds(pid) - before;
    for (const ClientStream& stream : running.results()) {
      EXPECT_TRUE(stream.status.ok()) << stream.status.ToString();
      EXPECT_EQ(stream.tokens[0].size(), static_cast<size_t>(tokens));
    }
    printf("%s: %d streams of %d tokens: %.1f s, %.0f tokens/s, %.2f CPU s, %.0f MB resident\n", name, streams, tokens,
           seconds, streams * tokens / seconds, cpu, StatusBytes(pid, "VmRSS") / 1e6);
    return cpu;
  };
  run(100, 10);
  Cost cost;
  std::vector<double> requests, tokens;
  for (int i = 0; i < kRuns; ++i) {
    const double few = run(kStreams, 2), many = run(kStreams, 102);
    tokens.push_back((many - few) / (kStreams * 100));
    requests.push_back(few / kStreams - 2 * tokens.back());
    cost.peak = StatusBytes(pid, "VmHWM");
    if (i == 0) cost.first_peak = cost.peak;
  }
  cost.request_s = Median(requests);
  cost.token_s = Median(tokens);
  const auto range = [](const std::vector<double>& values) {
    return std::minmax_element(values.begin(), values.end());
  };
  printf("%s: %.0f µs of CPU a request (%.0f–%.0f), %.1f µs a token (%.1f–%.1f), %.0f MB resident at most\n", name,
         1e6 * cost.request_s, 1e6 * *range(requests).first, 1e6 * *range(requests).second, 1e6 * cost.token_s,
         1e6 * *range(tokens).first, 1e6 * *range(tokens).second, cost.peak / 1e6);
  return cost;
}

TEST(SlowLoad, AThousandStreamsAtOnce) {
  Cluster cluster(2, "stories260K",
                  {"--dtype", "float32", "--max-num-seqs", "256", "--max-num-batched-tokens", "512", "--kv-cache-memory-bytes",
                   "256M"});
  const pid_t pid = cluster.coordinator().pid();
  const double at_rest = StatusBytes(pid, "VmRSS");
  const Cost cost = Measure("coordinator", pid, cluster.address());
  {
    // They are there at once: none begins behind another's end.
    ClientStreams running(cluster.address(), MixedStreams({"dense"}, kStreams, 20, 300));
    int most = 0;
    while (!running.done() && most < kStreams) {
      const v1::GetLoadResponse load = cluster.Load();
      most = std::max(most, load.total().running() + load.total().waiting());
    }
    running.Join();
    EXPECT_EQ(most, kStreams);
  }
  EXPECT_TRUE(cluster.WaitIdle());
#if defined(QUIRE_RELEASE) && !defined(QUIRE_SANITIZED)
  EXPECT_LE(cost.request_s, 200e-6);
  EXPECT_LE(cost.token_s, 20e-6);
#endif
  // A stream's share while a thousand are there, and what is kept of it for a minute when it has ended.
  EXPECT_LT(cost.peak - at_rest, kStreams * 128e3 * kSlowness);
  EXPECT_LT(cost.peak - cost.first_peak, (kRuns - 1) * 2 * kStreams * 8e3 * kSlowness);
}

// The floor under it: the same chunks from a server that does nothing else.
TEST(SlowLoad, AThousandStreamsOfAServerThatOnlySends) {
  QuireProcess server({}, {QUIRE_BINARY_DIR "/bin/bare_streams"});
  Measure("bare", server.pid(), server.address());
}

}  // namespace
}  // namespace quire
