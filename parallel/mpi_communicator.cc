// Sums are made by exchanging slices and adding them in rank order, not by MPI_Allreduce: every rank then holds
// the same bits, whatever algorithm the MPI library prefers for a size.
#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "parallel/collective_checks.h"
#include "parallel/end_job.h"

namespace quire {
namespace {

// Below this many elements a sum is one all-gather; above it, slices travel twice but each byte only to one rank.
constexpr int64_t kGatherElements = 4096;
// How a rank waits in a broadcast.
constexpr double kYieldAfterSeconds = 100e-6;
constexpr double kSleepAfterSeconds = 20e-3;
constexpr std::chrono::microseconds kSleep{200};

Status FromMpi(const char* call, int code) {
  if (code == MPI_SUCCESS) return OkStatus();
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return Unavailable(std::string(call) + " failed: " + std::string(text, static_cast<size_t>(length)));
}

MPI_Datatype TypeOf(DType dtype) {
  switch (ElementSize(dtype)) {
    case 4: return MPI_UINT32_T;
    case 2: return MPI_UINT16_T;
    default: return MPI_BYTE;
  }
}

Status CheckCount(const char* call, int64_t elements) {
  if (elements <= INT_MAX) return OkStatus();
  return InvalidArgument(std::string(call) + " of " + std::to_string(elements) + " elements; MPI counts to " +
                         std::to_string(INT_MAX) + ", so cut it into parts");
}

// How long MPI_Init may take. Jobs of many hosts need some seconds, so this is no measure of health.
std::chrono::seconds StartLimit() {
  const char* text = std::getenv("QUIRE_START_SECONDS");
  const int seconds = text == nullptr ? 0 : std::atoi(text);
  return std::chrono::seconds(seconds > 0 ? seconds : 60);
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, int rank, int size, int node_leader)
      : comm_(comm), rank_(rank), size_(size), node_leader_(node_leader) {}
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int node_leader() const override { return node_leader_; }

  Status AllReduce(TensorView data, Stream) override {
    RETURN_IF_ERROR(internal::CheckSummable("AllReduce", data));
    const int64_t n = data.elements();
    RETURN_IF_ERROR(CheckCount("AllReduce", n));
    if (n == 0 || size_ == 1) return OkStatus();
    auto* x = data.As<float>();
    if (n <= kGatherElements) {
      scratch_.resize(static_cast<size_t>(n) * size_);
      const int count = static_cast<int>(n);
      RETURN_IF_ERROR(FromMpi("MPI_Allgather",
                              MPI_Allgather(x, count, MPI_FLOAT, scratch_.data(), count, MPI_FLOAT, comm_)));
      SumInRankOrder(n, x);
      return OkStatus();
    }
    std::vector<int> counts(size_), offsets(size_);
    for (int r = 0; r < size_; ++r) {
      offsets[r] = static_cast<int>(n * r / size_);
      counts[r] = static_cast<int>(n * (r + 1) / size_) - offsets[r];
    }
    const int mine = counts[rank_];
    std::vector<int> recv_counts(size_, mine), recv_offsets(size_);
    for (int r = 0; r < size_; ++r) recv_offsets[r] = r * mine;
    scratch_.resize(static_cast<size_t>(mine) * size_);
    RETURN_IF_ERROR(FromMpi("MPI_Alltoallv",
                            MPI_Alltoallv(x, counts.data(), offsets.data(), MPI_FLOAT, scratch_.data(), recv_counts.data(),
                                          recv_offsets.data(), MPI_FLOAT, comm_)));
    SumInRankOrder(mine, x + offsets[rank_]);
    return FromMpi("MPI_Allgatherv", MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_FLOAT, x, counts.data(), offsets.data(), MPI_FLOAT, comm_));
  }

  Status AllGather(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGather(send, recv, size_));
    RETURN_IF_ERROR(CheckCount("AllGather", recv.elements()));
    const bool in_place = static_cast<std::byte*>(recv.data) + rank_ * send.bytes() == send.data;
    const int count = static_cast<int>(send.elements());
    return FromMpi("MPI_Allgather", MPI_Allgather(in_place ? MPI_IN_PLACE : send.data, count, TypeOf(send.dtype), recv.data,
                                                  count, TypeOf(recv.dtype), comm_));
  }

  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGatherV(send, recv, counts, rank_, size_));
    RETURN_IF_ERROR(CheckCount("AllGatherV", recv.elements()));
    std::vector<int> recv_counts(size_), offsets(size_);
    for (int r = 0, at = 0; r < size_; at += recv_counts[r], ++r) {
      recv_counts[r] = static_cast<int>(counts[r]);
      offsets[r] = at;
    }
    return FromMpi("MPI_Allgatherv",
                   MPI_Allgatherv(send.data, static_cast<int>(send.elements()), TypeOf(send.dtype), recv.data,
                                  recv_counts.data(), offsets.data(), TypeOf(recv.dtype), comm_));
  }

  Status ReduceScatter(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckReduceScatter(send, recv, size_));
    RETURN_IF_ERROR(CheckCount("ReduceScatter", send.elements()));
    scratch_.resize(static_cast<size_t>(send.elements()));
    const int count = static_cast<int>(recv.elements());
    RETURN_IF_ERROR(FromMpi("MPI_Alltoall",
                            MPI_Alltoall(send.data, count, MPI_FLOAT, scratch_.data(), count, MPI_FLOAT, comm_)));
    SumInRankOrder(recv.elements(), recv.As<float>());
    return OkStatus();
  }

  Status Broadcast(TensorView data, int root, Stream) override {
    RETURN_IF_ERROR(internal::CheckRoot(root, size_));
    RETURN_IF_ERROR(CheckCount("Broadcast", data.elements()));
    MPI_Request request;
    RETURN_IF_ERROR(FromMpi("MPI_Ibcast", MPI_Ibcast(data.data, static_cast<int>(data.elements()), TypeOf(data.dtype), root,
                                                     comm_, &request)));
    return Wait(&request);
  }

  Status Send(TensorView data, int to, Stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Send to", to, rank_, size_));
    RETURN_IF_ERROR(CheckCount("Send", data.elements()));
    return FromMpi("MPI_Send", MPI_Send(data.data, static_cast<int>(data.elements()), TypeOf(data.dtype), to, 0, comm_));
  }

  Status Recv(TensorView data, int from, Stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Recv from", from, rank_, size_));
    RETURN_IF_ERROR(CheckCount("Recv", data.elements()));
    MPI_Status status;
    RETURN_IF_ERROR(FromMpi("MPI_Recv", MPI_Recv(data.data, static_cast<int>(data.elements()), TypeOf(data.dtype), from, 0,
                                                 comm_, &status)));
    int got = 0;
    MPI_Get_count(&status, TypeOf(data.dtype), &got);
    if (got == data.elements()) return OkStatus();
    return InvalidArgument("rank " + std::to_string(from) + " sent " + std::to_string(got) + " elements and rank " +
                           std::to_string(rank_) + " expected " + std::to_string(data.elements()));
  }

  Status Barrier() override { return FromMpi("MPI_Barrier", MPI_Barrier(comm_)); }

  void Abort(const Status& why) override {
    EndJob(why.message() + " (" + std::string(StatusCodeName(why.code())) + ")");
  }

 private:
  // A broadcast is what ranks wait in while nothing is to be done, perhaps for hours: MPI's own wait would keep a
  // processor busy all that time. At first as quick as that, then giving way to others, at last asleep between looks.
  static Status Wait(MPI_Request* request) {
    const double begin = NowSeconds();
    for (int done = 0;;) {
      RETURN_IF_ERROR(FromMpi("MPI_Test", MPI_Test(request, &done, MPI_STATUS_IGNORE)));
      if (done) return OkStatus();
      const double waited = NowSeconds() - begin;
      if (waited > kSleepAfterSeconds) {
        std::this_thread::sleep_for(kSleep);
      } else if (waited > kYieldAfterSeconds) {
        std::this_thread::yield();
      }
    }
  }

  // out[i] = Σ over ranks of scratch_[rank][i], rank 0 first.
  void SumInRankOrder(int64_t n, float* out) const {
    const float* part = scratch_.data();
    if (n > 0) std::memcpy(out, part, static_cast<size_t>(n) * sizeof(float));
    for (int r = 1; r < size_; ++r) {
      part += n;
      for (int64_t i = 0; i < n; ++i) out[i] += part[i];
    }
  }

  MPI_Comm comm_;
  int rank_, size_, node_leader_;
  std::vector<float> scratch_;
};

}  // namespace

bool HasMpi() { return true; }

bool MpiRunning() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

Result<std::unique_ptr<MpiEnvironment>> MpiEnvironment::Create() {
  int initialized = 0;
  RETURN_IF_ERROR(FromMpi("MPI_Initialized", MPI_Initialized(&initialized)));
  int provided = 0;
  if (initialized) {
    RETURN_IF_ERROR(FromMpi("MPI_Query_thread", MPI_Query_thread(&provided)));
  } else {
    // OpenMPI waits by spinning. A rank that shares its processor, be it with another program, must let that one run while
    // it waits, or each collective takes a turn of the system's scheduler. Who knows better says so in the environment.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
    const std::chrono::seconds limit = StartLimit();
    const Watchdog watchdog(limit, [limit] {
      EndJob("MPI_Init has not ended in " + std::to_string(limit.count()) +
             " s: a rank of the job has not started, or this host can't reach another's; look at the hosts' names and "
             "firewalls, or name the network by --interface (QUIRE_START_SECONDS changes the limit)");
    });
    RETURN_IF_ERROR(FromMpi("MPI_Init_thread", MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided)));
  }
  std::unique_ptr<MpiEnvironment> environment(new MpiEnvironment(!initialized));
  if (provided < MPI_THREAD_SERIALIZED) {
    return FailedPrecondition("MPI gives thread level " + std::to_string(provided) + ", at least MPI_THREAD_SERIALIZED (" +
                              std::to_string(MPI_THREAD_SERIALIZED) +
                              ") is needed; initialise MPI with MPI_Init_thread(…, MPI_THREAD_MULTIPLE, …)");
  }
  return environment;
}

MpiEnvironment::~MpiEnvironment() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (owned_ && !finalized) MPI_Finalize();
}

Result<std::unique_ptr<Communicator>> MakeMpiCommunicator() {
  MPI_Comm comm;
  RETURN_IF_ERROR(FromMpi("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &comm)));
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  int rank = 0, size = 1;
  RETURN_IF_ERROR(FromMpi("MPI_Comm_rank", MPI_Comm_rank(comm, &rank)));
  RETURN_IF_ERROR(FromMpi("MPI_Comm_size", MPI_Comm_size(comm, &size)));
  MPI_Comm node;
  RETURN_IF_ERROR(FromMpi("MPI_Comm_split_type",
                          MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node)));
  int leader = rank;
  const int code = MPI_Bcast(&leader, 1, MPI_INT, 0, node);
  MPI_Comm_free(&node);
  RETURN_IF_ERROR(FromMpi("MPI_Bcast", code));
  return std::unique_ptr<Communicator>(std::make_unique<MpiCommunicator>(comm, rank, size, leader));
}

void AbortMpiJob(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::abort();
}

}  // namespace quire
