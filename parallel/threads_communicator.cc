// Every collective is: publish one's views, meet, read the peers' memory, meet again (so that nobody reuses a
// buffer that is still read). What a rank publishes includes the call itself: ranks that call different
// things are told so instead of computing nonsense.
#include "parallel/threads_communicator.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/check.h"
#include "parallel/collective_checks.h"

namespace quire {
namespace {

// Looks this often before sleeping, some half a millisecond: peers that have a processor each arrive within that, for a
// layer takes no longer, and waking a sleeper costs more than most of it. Where they have none of their own, the
// processor is better given to a peer at once.
constexpr int kSpins = 20000;
constexpr int kSpinsWhenCrowded = 2;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

struct Published {
  const char* call = "";
  TensorView send;
  TensorView recv;
  int root = 0;
};

// A message from one rank to another, handed over in place: the sender waits until it has been copied.
struct Mailbox {
  TensorView data;
  bool full = false;
};

struct Hub {
  Hub(int size, const ThreadGroupOptions& o)
      : size(size),
        spins(size <= static_cast<int>(std::thread::hardware_concurrency()) ? kSpins : kSpinsWhenCrowded),
        timeout(o.timeout),
        published(size),
        arrived(static_cast<size_t>(size)),
        mailboxes(static_cast<size_t>(size) * size) {}

  const int size;
  const int spins;
  const std::chrono::milliseconds timeout;
  std::vector<Published> published;  // [rank], written before a meeting, read after it

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::atomic<int64_t>> arrived;  // [rank] meetings reached
  std::atomic<int> waiting{0}, sleepers{0};   // of a meeting
  std::atomic<int64_t> meetings{0};
  std::atomic<bool> failed{false};            // set once, after `failure`
  Status failure;                  // why, once failed
  std::vector<Mailbox> mailboxes;  // [from * size + to]

  Mailbox& Box(int from, int to) { return mailboxes[static_cast<size_t>(from) * size + to]; }

  // With the mutex held. The first failure is the one that is told.
  void Fail(Status why) {
    if (failed) return;
    failure = std::move(why);
    failed = true;
    changed.notify_all();
  }

  std::string Missing(int64_t meeting) const {
    std::string names;
    for (int r = 0; r < size; ++r) {
      if (arrived[r] < meeting) names += (names.empty() ? "" : ", ") + std::to_string(r);
    }
    return names;
  }

  // Returns when all ranks are here. UNAVAILABLE once the group has failed. Takes the mutex only to sleep, or to wake those
  // that do: a rank that had to wait for it would be put to sleep by the system.
  Status Meet(int rank) {
    if (failed.load(std::memory_order_acquire)) return failure;
    const int64_t meeting = arrived[rank].load(std::memory_order_relaxed) + 1;
    arrived[rank].store(meeting, std::memory_order_relaxed);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      waiting.store(0, std::memory_order_relaxed);
      // In one order with a sleeper's count and its look at `meetings`: one of the two sees the other.
      meetings.store(meeting);
      if (sleepers.load() > 0) {
        std::lock_guard lock(mutex);
        changed.notify_all();
      }
      return OkStatus();
    }
    for (int i = 0; i < spins; ++i) {
      if (meetings.load(std::memory_order_acquire) >= meeting) return OkStatus();
      if (spins == kSpins && i % 64 != 63) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
    std::unique_lock lock(mutex);
    ++sleepers;
    const bool woken = Sleep(lock, [&] { return meetings.load() >= meeting || failed.load(); });
    --sleepers;
    if (meetings.load(std::memory_order_acquire) >= meeting) return OkStatus();
    if (!woken) {
      Fail(Unavailable("rank " + std::to_string(rank) + " waited " + std::to_string(timeout.count()) +
                       " ms in " + published[rank].call + " for rank " + Missing(meeting)));
    }
    return failure;
  }

  // False when the time is up before `ready`.
  template <typename Predicate>
  bool Sleep(std::unique_lock<std::mutex>& lock, Predicate ready) {
    if (timeout.count() > 0) return changed.wait_for(lock, timeout, ready);
    changed.wait(lock, ready);
    return true;
  }

  template <typename Predicate>
  Status Wait(std::unique_lock<std::mutex>& lock, int rank, const char* call, int peer, Predicate ready) {
    if (Sleep(lock, [&] { return ready() || failed.load(); })) {
      return ready() ? OkStatus() : failure;
    }
    Fail(Unavailable("rank " + std::to_string(rank) + " waited " + std::to_string(timeout.count()) + " ms in " + call +
                     " for rank " + std::to_string(peer)));
    return failure;
  }
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  ~ThreadCommunicator() override {
    std::lock_guard lock(hub_->mutex);
    // Ranks that leave together after their last collective disturb nobody: no peer is waiting, or will.
    hub_->Fail(Unavailable("rank " + std::to_string(rank_) + " has left the group"));
  }

  int rank() const override { return rank_; }
  int size() const override { return hub_->size; }

  Status AllReduce(TensorView data, Stream) override {
    RETURN_IF_ERROR(internal::CheckSummable("AllReduce", data));
    RETURN_IF_ERROR(Start({"AllReduce", data, data, 0}));
    // Each rank sums one slice, in rank order, and writes it to all: nobody else touches that slice.
    const int64_t n = data.elements();
    const int64_t begin = n * rank_ / hub_->size, end = n * (rank_ + 1) / hub_->size;
    float* mine = data.As<float>();
    for (int64_t i = begin; i < end; ++i) {
      float sum = Peer(0).send.As<float>()[i];
      for (int r = 1; r < hub_->size; ++r) sum += Peer(r).send.As<float>()[i];
      mine[i] = sum;
    }
    for (int r = 0; r < hub_->size; ++r) {
      if (r != rank_ && end > begin) {
        std::memcpy(Peer(r).send.As<float>() + begin, mine + begin, static_cast<size_t>(end - begin) * sizeof(float));
      }
    }
    return hub_->Meet(rank_);
  }

  Status AllGather(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGather(send, recv, hub_->size));
    RETURN_IF_ERROR(Start({"AllGather", send, recv, 0}));
    for (int r = 0; r < hub_->size; ++r) Copy(Peer(r).send, recv, r * send.bytes());
    return hub_->Meet(rank_);
  }

  Status AllGatherV(TensorView send, TensorView recv, std::span<const int64_t> counts, Stream) override {
    RETURN_IF_ERROR(internal::CheckAllGatherV(send, recv, counts, rank_, hub_->size));
    Published mine{"AllGatherV", send, recv, 0};
    mine.send.shape = recv.shape;  // the ranks' sends differ in size; what must agree is the whole
    RETURN_IF_ERROR(Start(mine));
    int64_t at = 0;
    for (int r = 0; r < hub_->size; ++r) {
      TensorView part = Peer(r).send;
      part.shape = {counts[r]};
      Copy(part, recv, at);
      at += part.bytes();
    }
    return hub_->Meet(rank_);
  }

  Status ReduceScatter(TensorView send, TensorView recv, Stream) override {
    RETURN_IF_ERROR(internal::CheckReduceScatter(send, recv, hub_->size));
    RETURN_IF_ERROR(Start({"ReduceScatter", send, recv, 0}));
    const int64_t n = recv.elements();
    for (int64_t i = 0; i < n; ++i) {
      float sum = Peer(0).send.As<float>()[rank_ * n + i];
      for (int r = 1; r < hub_->size; ++r) sum += Peer(r).send.As<float>()[rank_ * n + i];
      recv.As<float>()[i] = sum;
    }
    return hub_->Meet(rank_);
  }

  Status Broadcast(TensorView data, int root, Stream) override {
    RETURN_IF_ERROR(internal::CheckRoot(root, hub_->size));
    RETURN_IF_ERROR(Start({"Broadcast", data, data, root}));
    if (rank_ != root) Copy(Peer(root).send, data, 0);
    return hub_->Meet(rank_);
  }

  Status Send(TensorView data, int to, Stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Send to", to, rank_, hub_->size));
    std::unique_lock lock(hub_->mutex);
    if (hub_->failed) return hub_->failure;
    Mailbox& box = hub_->Box(rank_, to);
    box.data = data;
    box.full = true;
    hub_->changed.notify_all();
    return hub_->Wait(lock, rank_, "Send", to, [&] { return !box.full; });
  }

  Status Recv(TensorView data, int from, Stream) override {
    RETURN_IF_ERROR(internal::CheckPeer("Recv from", from, rank_, hub_->size));
    std::unique_lock lock(hub_->mutex);
    Mailbox& box = hub_->Box(from, rank_);
    RETURN_IF_ERROR(hub_->Wait(lock, rank_, "Recv", from, [&] { return box.full; }));
    const bool fits = box.data.dtype == data.dtype && box.data.elements() == data.elements();
    if (fits) {
      Copy(box.data, data, 0);
    } else {
      hub_->Fail(InvalidArgument("rank " + std::to_string(from) + " sent " + std::to_string(box.data.elements()) +
                                 " elements and rank " + std::to_string(rank_) + " expected " +
                                 std::to_string(data.elements())));
    }
    box.full = false;
    hub_->changed.notify_all();
    return fits ? OkStatus() : hub_->failure;
  }

  Status Barrier() override {
    RETURN_IF_ERROR(Start({"Barrier", {}, {}, 0}));
    return hub_->Meet(rank_);  // what was published is read until here
  }

  void Abort(const Status& why) override {
    std::lock_guard lock(hub_->mutex);
    hub_->Fail(why);
  }

 private:
  const Published& Peer(int rank) const { return hub_->published[rank]; }

  static void Copy(TensorView from, TensorView to, int64_t byte_offset) {
    auto* target = static_cast<std::byte*>(to.data) + byte_offset;
    if (from.bytes() > 0 && target != from.data) std::memcpy(target, from.data, static_cast<size_t>(from.bytes()));
  }

  // Publishes this rank's call and meets the others; all must have made the same one.
  Status Start(const Published& mine) {
    hub_->published[rank_] = mine;
    RETURN_IF_ERROR(hub_->Meet(rank_));
    for (int r = 0; r < hub_->size; ++r) {
      const Published& peer = Peer(r);
      if (std::strcmp(peer.call, mine.call) == 0 && peer.root == mine.root && peer.send.dtype == mine.send.dtype &&
          peer.send.elements() == mine.send.elements()) {
        continue;
      }
      const Status why = FailedPrecondition(
          "ranks disagree: rank " + std::to_string(rank_) + " called " + Describe(mine) + ", rank " + std::to_string(r) +
          " called " + Describe(peer));
      std::lock_guard lock(hub_->mutex);
      hub_->Fail(why);
      return why;
    }
    return OkStatus();
  }

  static std::string Describe(const Published& p) {
    return std::string(p.call) + " with root " + std::to_string(p.root) + " and " + std::to_string(p.send.elements()) + " " +
           std::string(DTypeName(p.send.dtype));
  }

  std::shared_ptr<Hub> hub_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int size, const ThreadGroupOptions& options) {
  CHECK_GE(size, 1);
  auto hub = std::make_shared<Hub>(size, options);
  std::vector<std::unique_ptr<Communicator>> group;
  for (int r = 0; r < size; ++r) group.push_back(std::make_unique<ThreadCommunicator>(hub, r));
  return group;
}

}  // namespace quire
