// The monitors of ranks that are processes. Rank 0's thread (the hub) accepts the others' connections, hears their beats,
// judges all ranks, itself included, and beats back; another rank's thread (a leaf) beats, and judges rank 0 only. A
// verdict is printed where it falls, sent to all who can still hear it, and carried out by each on its own.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "parallel/end_job.h"
#include "parallel/fault.h"
#include "parallel/group_monitor.h"
#include "parallel/group_start.h"
#include "parallel/monitor_channel.h"

namespace quire::internal {
namespace {

// How often a monitor looks at its mark: a change of phase is sent at once, so that peers know the phase of a rank that
// dies.
constexpr double kTick = 0.05;
// A monitor that ran so much later than it meant to excuses the others for that time.
constexpr double kLate = 1.0;
// How long a goodbye waits for the peers' own.
constexpr double kFarewell = 0.3;
constexpr size_t kMaxStrangers = 64;
constexpr double kHelloSeconds = 2;

double Seconds(std::chrono::milliseconds time) { return static_cast<double>(time.count()) / 1000; }

bool SameToken(const std::string& shown, const Token& token) {
  if (shown.size() != token.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < token.size(); ++i) difference |= static_cast<unsigned char>(shown[i]) ^ token[i];
  return difference == 0;
}

class SocketMonitor : public GroupMonitor {
 public:
  SocketMonitor(const GroupTopology& topology, ProgressMark* mark, const GroupMonitorOptions& options)
      : topology_(topology), mark_(mark), options_(options) {}

  void set_fault(std::unique_ptr<FaultSeam> fault) { fault_ = std::move(fault); }

 protected:
  Status StartThread() {
    int ends[2];
    if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return Unavailable("the monitor has no pipe: too many open files?");
    wake_read_ = Socket(ends[0]);
    wake_write_ = Socket(ends[1]);
    thread_ = std::thread([this] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, nullptr);  // signals are the program's threads' business
      Run();
    });
    return OkStatus();
  }

  // Ends the thread. Called by the destructors of those classes whose members the thread uses.
  void Leave() {
    leaving_ = true;
    if (wake_write_.open()) {
      const char byte = 0;
      [[maybe_unused]] const auto written = write(wake_write_.fd(), &byte, 1);
    }
    if (thread_.joinable()) thread_.join();
  }

  virtual void Run() = 0;

  // Waits for any of `polled`, the wake-up, or a tick.
  void Poll(std::vector<pollfd>* polled) {
    polled->push_back({wake_read_.fd(), POLLIN, 0});
    poll(polled->data(), polled->size(), static_cast<int>(kTick * 1000));
    polled->pop_back();
  }

  // True when a beat is due: the phase or the mark's place inside or outside a collective changed, or time is up.
  bool BeatDue(double now) {
    const ProgressReport report = ReportOf(*mark_);
    const bool due = now - last_beat_ >= Seconds(options_.heartbeat) || report.phase != beat_.phase;
    if (!due) return false;
    last_beat_ = now;
    beat_ = report;
    return true;
  }
  Frame Make(FrameType type) const {
    Frame frame;
    frame.type = type;
    frame.rank = topology_.rank;
    frame.report = type == FrameType::kBeat ? beat_ : ReportOf(*mark_);
    return frame;
  }

  // Seconds by which this thread ran late since the last call, where that is remarkable.
  double Lateness(double now) {
    const double late = now - last_look_ - kTick;
    last_look_ = now;
    return late > kLate ? late : 0;
  }

  // The end of the group, as this monitor has judged it.
  void CarryOut(const GroupFailure& failure, const std::string& message) {
    if (options_.on_failure) return options_.on_failure(failure, message);
    EndJob("");  // the sentence is on stderr already, or on the judging rank's
  }

  const GroupTopology topology_;
  ProgressMark* const mark_;
  const GroupMonitorOptions options_;
  std::atomic<bool> leaving_{false};

 private:
  std::unique_ptr<FaultSeam> fault_;
  Socket wake_read_, wake_write_;
  std::thread thread_;
  ProgressReport beat_;
  double last_beat_ = 0, last_look_ = NowSeconds();
};

class HubMonitor final : public SocketMonitor {
 public:
  HubMonitor(const GroupTopology& topology, ProgressMark* mark, const GroupMonitorOptions& options, Socket listener,
             const Token& token)
      : SocketMonitor(topology, mark, options),
        listener_(std::move(listener)),
        token_(token),
        peers_(topology.size()),
        judge_(topology.size(), Seconds(options.silence), Seconds(options.stall), NowSeconds()) {}

  ~HubMonitor() override { Leave(); }

  Status Open() { return StartThread(); }

  // Waits until all ranks have joined; the ranks that haven't by then.
  std::vector<int> Await(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [this] { return missing_ == 0; });
    return Missing();
  }
  std::vector<int> MissingNow() {
    std::lock_guard lock(mutex_);
    return Missing();
  }

 private:
  struct Peer {
    MonitorConnection connection;
    bool joined = false, left = false;
  };
  struct Stranger {  // has not shown its token yet
    MonitorConnection connection;
    double since = 0;
  };

  std::vector<int> Missing() const {
    std::vector<int> ranks;
    for (int r = 1; r < topology_.size(); ++r) {
      if (!joined_[r]) ranks.push_back(r);
    }
    return ranks;
  }

  void Run() override {
    while (!leaving_) {
      std::vector<pollfd> polled;
      if (listener_.open()) polled.push_back({listener_.fd(), POLLIN, 0});
      for (Stranger& s : strangers_) polled.push_back({s.connection.fd(), POLLIN, 0});
      AddPeers(&polled);
      Poll(&polled);
      const double now = NowSeconds();
      if (const double late = Lateness(now); late > 0) judge_.Excuse(late);
      Welcome(now);
      std::optional<GroupFailure> failure = Hear(now);
      judge_.Heard(0, ReportOf(*mark_), now);
      // Ranks that still join say nothing yet: their start has a limit of its own.
      for (int r = 1; r < topology_.size(); ++r) {
        if (!peers_[r].joined) judge_.Heard(r, judge_.last(r), now);
      }
      if (!failure) failure = judge_.Judge(now);
      if (failure && !leaving_) return End(*failure);
      if (BeatDue(now)) Tell(Make(FrameType::kBeat));
      for (Peer& peer : peers_) peer.connection.Flush();
    }
    SayGoodbye();
  }

  void AddPeers(std::vector<pollfd>* polled) {
    for (Peer& peer : peers_) {
      if (!peer.connection.open()) continue;
      polled->push_back({peer.connection.fd(), static_cast<short>(POLLIN | (peer.connection.wants_to_write() ? POLLOUT : 0)), 0});
    }
  }

  void Tell(const Frame& frame) {
    for (Peer& peer : peers_) peer.connection.Send(frame);
  }

  // Lets in who shows the token and closes the door after the last rank.
  void Welcome(double now) {
    while (listener_.open() && strangers_.size() < kMaxStrangers) {
      Socket socket = Accept(listener_);
      if (!socket.open()) break;
      strangers_.push_back({MonitorConnection(std::move(socket)), now});
    }
    for (size_t i = 0; i < strangers_.size();) {
      Stranger& s = strangers_[i];
      const bool alive = s.connection.Receive();
      if (const std::optional<Frame> hello = s.connection.Next(); hello) {
        const int r = hello->rank;
        if (hello->type == FrameType::kHello && r > 0 && r < topology_.size() && !peers_[r].joined &&
            SameToken(hello->payload, token_)) {
          peers_[r].connection = std::move(s.connection);
          peers_[r].joined = true;
          judge_.Heard(r, hello->report, now);
          peers_[r].connection.Send(Make(FrameType::kWelcome));
          std::lock_guard lock(mutex_);
          joined_[r] = true;
          if (--missing_ == 0) changed_.notify_all();
        }
      } else if (alive && now - s.since < kHelloSeconds) {
        ++i;
        continue;
      }
      strangers_.erase(strangers_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    std::lock_guard lock(mutex_);
    if (missing_ == 0) {
      listener_.Close();
      strangers_.clear();
    }
  }

  // What the peers say. The first that died, if one did.
  std::optional<GroupFailure> Hear(double now) {
    std::optional<GroupFailure> failure;
    for (int r = 1; r < topology_.size(); ++r) {
      Peer& peer = peers_[r];
      if (!peer.connection.open()) continue;
      const bool alive = peer.connection.Receive();
      while (const std::optional<Frame> frame = peer.connection.Next()) {
        if (frame->type == FrameType::kBeat) judge_.Heard(r, frame->report, now);
        if (frame->type == FrameType::kBye) {
          judge_.Heard(r, frame->report, now);
          judge_.Left(r, now);
          peer.left = true;
        }
      }
      if (alive) continue;
      peer.connection.Close();
      if (peer.left || failure) continue;
      failure = GroupFailure{GroupFailure::Kind::kDied, r, judge_.last(r), judge_.SecondsSinceHeard(r, now),
                             judge_.Waiting(r)};
    }
    return failure;
  }

  void End(const GroupFailure& failure) {
    const std::string message = DescribeFailure(failure, topology_);
    if (!options_.on_failure) Log(LogLevel::kError, message);
    Frame end = Make(FrameType::kEnd);
    end.rank = failure.rank;
    end.report = failure.last;
    end.payload = message;
    Tell(end);
    CarryOut(failure, message);
  }

  void SayGoodbye() {
    Tell(Make(FrameType::kBye));
    const double until = NowSeconds() + kFarewell;
    const auto busy = [](const Peer& peer) { return peer.connection.open(); };
    while (NowSeconds() < until && std::any_of(peers_.begin(), peers_.end(), busy)) {
      std::vector<pollfd> polled;
      AddPeers(&polled);
      poll(polled.data(), polled.size(), 20);
      for (Peer& peer : peers_) {
        peer.connection.Flush();
        if (peer.connection.open() && (!peer.connection.Receive() || peer.left)) peer.connection.Close();
        while (const std::optional<Frame> frame = peer.connection.Next()) peer.left |= frame->type == FrameType::kBye;
      }
    }
  }

  Socket listener_;
  const Token token_;
  std::vector<Peer> peers_;  // [rank]; 0 is not used
  std::vector<Stranger> strangers_;
  StallJudge judge_;

  std::mutex mutex_;
  std::condition_variable changed_;
  int missing_ = topology_.size() - 1;
  std::vector<bool> joined_ = std::vector<bool>(static_cast<size_t>(topology_.size()));
};

class LeafMonitor final : public SocketMonitor {
 public:
  LeafMonitor(const GroupTopology& topology, ProgressMark* mark, const GroupMonitorOptions& options,
              MonitorConnection hub)
      : SocketMonitor(topology, mark, options), hub_(std::move(hub)) {}
  ~LeafMonitor() override { Leave(); }

  Status Open() { return StartThread(); }

 private:
  void Run() override {
    hub_heard_ = moved_ = NowSeconds();
    while (!leaving_) {
      std::vector<pollfd> polled;
      if (hub_.open()) polled.push_back({hub_.fd(), static_cast<short>(POLLIN | (hub_.wants_to_write() ? POLLOUT : 0)), 0});
      Poll(&polled);
      const double now = NowSeconds();
      if (const double late = Lateness(now); late > 0) hub_heard_ += late, moved_ += late;
      const std::optional<GroupFailure> failure = Hear(now);
      if (ended_) return;
      if (failure && !leaving_) return End(*failure);
      if (BeatDue(now)) hub_.Send(Make(FrameType::kBeat));
      hub_.Flush();
    }
    hub_.Send(Make(FrameType::kBye));
    // The goodbye must be read before the connection closes with unread beats in it, which would reset it.
    const double until = NowSeconds() + kFarewell;
    while (hub_.open() && NowSeconds() < until) {
      hub_.Flush();
      pollfd polled{hub_.fd(), POLLIN, 0};
      poll(&polled, 1, 20);
      if (!hub_.Receive()) break;
      while (const std::optional<Frame> frame = hub_.Next()) {
        if (frame->type == FrameType::kBye) hub_left_ = true;
      }
      if (hub_left_ && !hub_.wants_to_write()) break;
    }
  }

  GroupFailure OfHub(GroupFailure::Kind kind, double seconds) const {
    GroupFailure failure;
    failure.kind = kind;
    failure.rank = 0;
    failure.last = hub_report_;
    failure.seconds = seconds;
    if (ReportOf(*mark_).inside()) failure.waiting.push_back(topology_.rank);
    return failure;
  }

  std::optional<GroupFailure> Hear(double now) {
    const ProgressReport mine = ReportOf(*mark_);
    if (mine != mine_) mine_ = mine, moved_ = now;
    if (hub_left_) {
      // Alone: all that can still be seen is that this rank waits for one that won't come.
      if (mine.inside() && now - moved_ >= Seconds(options_.stall)) return OfHub(GroupFailure::Kind::kLeft, now - moved_);
      return std::nullopt;
    }
    const bool alive = hub_.Receive();
    while (const std::optional<Frame> frame = hub_.Next()) {
      hub_heard_ = now;
      if (frame->type == FrameType::kBeat || frame->type == FrameType::kBye) hub_report_ = frame->report;
      if (frame->type == FrameType::kBye) hub_left_ = true, moved_ = now;
      if (frame->type == FrameType::kEnd) {
        ObeyEnd(*frame);
        return std::nullopt;
      }
    }
    if (!alive || hub_left_) hub_.Close();
    if (hub_left_) return std::nullopt;
    if (!alive) return OfHub(GroupFailure::Kind::kDied, now - hub_heard_);
    if (now - hub_heard_ >= Seconds(options_.silence)) return OfHub(GroupFailure::Kind::kSilent, now - hub_heard_);
    return std::nullopt;
  }

  // Rank 0 has judged. Its abort is on the way; who isn't reached by it within half a second goes by itself.
  void ObeyEnd(const Frame& frame) {
    ended_ = true;
    GroupFailure failure;
    failure.rank = frame.rank;
    failure.last = frame.report;
    if (!options_.on_failure) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    CarryOut(failure, frame.payload);
  }

  void End(const GroupFailure& failure) {
    // All leaves see it at about the same time: the lowest speaks, and its abort silences the others.
    const std::string message = DescribeFailure(failure, topology_);
    if (!options_.on_failure) {
      std::this_thread::sleep_for(std::chrono::milliseconds(40 * std::min(topology_.rank - 1, 20)));
      Log(LogLevel::kError, message);
    }
    CarryOut(failure, message);
  }

  MonitorConnection hub_;
  ProgressReport hub_report_, mine_;
  double hub_heard_ = 0, moved_ = 0;
  bool hub_left_ = false, ended_ = false;
};

}  // namespace

Result<std::unique_ptr<GroupMonitor>> StartOverSockets(Communicator& comm, const GroupTopology& topology,
                                                       ProgressMark* mark, const GroupMonitorOptions& options) {
  // Whoever fails goes on to AgreeOn, so that all ranks end with the reason of one.
  auto fault = FaultSeam::FromEnvironment(comm.rank(), mark);
  Status local = fault.status();
  MonitorAddress address;
  std::unique_ptr<SocketMonitor> monitor;
  std::atomic<HubMonitor*> hub{nullptr};
  const Watchdog watchdog(options.join + std::chrono::seconds(2), [&] {
    std::string who;
    if (HubMonitor* h = hub; h != nullptr) {
      const std::vector<int> missing = h->MissingNow();
      if (!missing.empty()) who = "; not there: " + topology.Names(missing);
    }
    if (comm.rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));  // rank 0 knows more
    EndJob(topology.Name(topology.rank) + ": the group's ranks have not all come to the monitor's start (phase start) in " +
           std::to_string(options.join.count() + 2000) + " ms" + who + "; the whole group ends");
  });
  if (comm.rank() == 0) {
    Socket listener;
    if (auto token = RandomToken(); token.ok()) {
      address.token = *token;
    } else if (local.ok()) {
      local = token.status();
    }
    if (local.ok()) {
      auto listening = Listen(topology.OneNetwork() && options.interface.empty(), options.interface, &address);
      local = listening.status();
      if (local.ok()) listener = *std::move(listening);
    }
    if (local.ok()) {
      auto made = std::make_unique<HubMonitor>(topology, mark, options, std::move(listener), address.token);
      local = made->Open();
      hub = made.get();
      monitor = std::move(made);
    }
    if (!local.ok()) address.port = 0;
  }
  RETURN_IF_ERROR(comm.Broadcast({&address, DType::kU8, {sizeof(address)}, {}}, 0));
  if (comm.rank() == 0 && local.ok()) {
    if (const std::vector<int> missing = hub.load()->Await(options.join); !missing.empty()) {
      local = Unavailable("these ranks didn't join the group's monitor in " + std::to_string(options.join.count()) +
                          " ms: " + topology.Names(missing));
    }
  }
  if (comm.rank() != 0 && local.ok() && address.port != 0) {
    auto connection = Connect(address, comm.rank(), NowSeconds() + Seconds(options.join));
    local = connection.status();
    if (local.ok()) {
      auto made = std::make_unique<LeafMonitor>(topology, mark, options, *std::move(connection));
      local = made->Open();
      monitor = std::move(made);
    }
  }
  if (local.ok() && monitor != nullptr) monitor->set_fault(*std::move(fault));
  RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kStart, local));
  return std::unique_ptr<GroupMonitor>(std::move(monitor));
}

}  // namespace quire::internal
