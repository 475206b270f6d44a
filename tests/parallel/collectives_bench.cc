// Times sums of the ranks: of threads of one process, or of the ranks of an mpirun job. Built with QUIRE_BENCHMARKS.
//
//   collectives_bench 2                              two threads
//   mpirun -n 2 --bind-to none collectives_bench     two processes
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "parallel/mpi_communicator.h"
#include "parallel/threads_communicator.h"

namespace quire {
namespace {

constexpr int kRepeats = 9, kSums = 2000;

void Time(Communicator& comm, const char* name) {
  for (const int64_t n : {1, 1024, 4096, 16384}) {
    std::vector<float> data(static_cast<size_t>(n), 1.0f);
    std::vector<double> seconds;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      CHECK(comm.Barrier().ok());
      const double begin = NowSeconds();
      for (int i = 0; i < kSums; ++i) CHECK(comm.AllReduce({data.data(), DType::kF32, {n}, {}}, {}).ok());
      seconds.push_back((NowSeconds() - begin) / kSums);
    }
    std::sort(seconds.begin(), seconds.end());
    if (comm.rank() != 0) continue;
    std::printf("%s, %d ranks: a sum of %lld floats %.2f µs (%.2f–%.2f)\n", name, comm.size(), static_cast<long long>(n),
                1e6 * seconds[kRepeats / 2], 1e6 * seconds.front(), 1e6 * seconds.back());
  }
}

int Main(int argc, char** argv) {
  if (argc > 1) {
    const auto comms = MakeThreadCommunicators(std::max(1, std::atoi(argv[1])));
    std::vector<std::thread> threads;
    for (const auto& comm : comms) threads.emplace_back([&comm] { Time(*comm, "threads"); });
    for (std::thread& thread : threads) thread.join();
    return 0;
  }
  const auto environment = MpiEnvironment::Create();
  const auto comm = MakeMpiCommunicator();
  if (!environment.ok() || !comm.ok()) {
    std::fprintf(stderr, "%s\n", (environment.ok() ? comm.status() : environment.status()).ToString().c_str());
    return 1;
  }
  Time(**comm, "MPI");
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
