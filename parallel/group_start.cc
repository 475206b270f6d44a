// Messages between ranks that may be of different builds have fixed layouts: HashRecord's must not change.
#include "parallel/group_start.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "parallel/build_id.h"
#include "parallel/end_job.h"
#include "parallel/fault.h"

namespace quire {
namespace {

constexpr int kMaxHashes = 8;
constexpr uint64_t kHashMagic = 0x3168736148655251;  // tells ranks whose program sends something else here

struct HashRecord {
  uint64_t magic = kHashMagic;
  uint64_t count = 0;
  struct Item {
    char name[32] = {};
    uint64_t value = 0;
  } items[kMaxHashes];
};
static_assert(sizeof(HashRecord) == 336);

// [code, length of the message]
using StatusRecord = std::array<int32_t, 2>;
constexpr size_t kMaxMessage = 4000;
constexpr int64_t kSmall = 16;  // elements of the sums that measure latency

TensorView Bytes(void* data, size_t bytes) { return {data, DType::kU8, {static_cast<int64_t>(bytes)}, {}}; }

// Gathers one plain struct of each rank.
template <typename T>
Result<std::vector<T>> Gather(Communicator& comm, T mine) {
  std::vector<T> all(comm.size());
  RETURN_IF_ERROR(comm.AllGather(Bytes(&mine, sizeof(T)), Bytes(all.data(), all.size() * sizeof(T))));
  return all;
}

std::string Hex(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// The ranks whose item differs from what most hold (the value of the lowest rank among equals); empty: all agree.
std::vector<int> Dissenters(const std::vector<uint64_t>& values, uint64_t* common) {
  std::map<uint64_t, int> votes;
  for (uint64_t value : values) ++votes[value];
  *common = values[0];
  for (uint64_t value : values) {
    if (votes[value] > votes[*common]) *common = value;
  }
  std::vector<int> ranks;
  for (size_t r = 0; r < values.size(); ++r) {
    if (values[r] != *common) ranks.push_back(static_cast<int>(r));
  }
  return ranks;
}

}  // namespace

NamedHash BuildIdentity() {
  return {"build", BuildHash(), "start all ranks from the same program"};
}
NamedHash ConfigIdentity(uint64_t hash) {
  return {"configuration", hash, "give all ranks the same model configuration and the same flags"};
}
NamedHash WeightIndexIdentity(uint64_t hash) {
  return {"weight index", hash, "copy the same model files to every host"};
}

Status CheckSameOnAllRanks(Communicator& comm, const GroupTopology& topology, Phase phase,
                           std::span<const NamedHash> items) {
  CHECK_LE(items.size(), size_t{kMaxHashes});
  HashRecord mine;
  mine.count = items.size();
  for (size_t i = 0; i < items.size(); ++i) {
    CHECK_LT(items[i].name.size(), sizeof(mine.items[i].name));
    std::memcpy(mine.items[i].name, items[i].name.data(), items[i].name.size());
    mine.items[i].value = items[i].value;
  }
  if (internal::FakesAnotherBuild(comm.rank())) ++mine.items[0].value;
  ASSIGN_OR_RETURN(const std::vector<HashRecord> all, Gather(comm, mine));
  std::string message;
  const auto compare = [&](const std::string& name, const std::string& remedy, auto value_of) {
    std::vector<uint64_t> values;
    for (const HashRecord& record : all) values.push_back(value_of(record));
    uint64_t common = 0;
    const std::vector<int> different = Dissenters(values, &common);
    if (different.empty()) return true;
    message += (message.empty() ? "" : "; ") + std::string("another ") + name + " than on the other ranks (" +
               Hex(common) + "): ";
    for (size_t i = 0; i < different.size(); ++i) {
      message += (i > 0 ? ", " : "") + topology.Name(different[i]) + " has " + Hex(values[different[i]]);
    }
    message += "; " + remedy;
    return false;
  };
  // Lists of other lengths come from other builds: nothing behind them can be compared.
  if (compare("protocol of the start", BuildIdentity().remedy,
              [](const HashRecord& record) { return record.magic ^ record.count; })) {
    for (size_t i = 0; i < items.size(); ++i) {
      compare(items[i].name, items[i].remedy, [i](const HashRecord& record) { return record.items[i].value; });
    }
  }
  return message.empty() ? OkStatus() : FailedPrecondition(std::string("in phase ") + PhaseName(phase) + ": " + message);
}

Status AgreeOn(Communicator& comm, const GroupTopology& topology, Phase phase, const Status& local) {
  if (comm.size() == 1) return local;
  std::string text = local.message().substr(0, kMaxMessage);
  ASSIGN_OR_RETURN(const auto all, Gather<StatusRecord>(comm, {static_cast<int32_t>(local.code()),
                                                              static_cast<int32_t>(local.ok() ? 0 : text.size())}));
  std::vector<int64_t> counts;
  std::vector<int> failed;
  int64_t total = 0;
  for (int r = 0; r < comm.size(); ++r) {
    counts.push_back(all[r][1]);
    total += counts.back();
    if (all[r][0] != 0) failed.push_back(r);
  }
  if (failed.empty()) return OkStatus();
  std::string texts(static_cast<size_t>(total), ' ');
  RETURN_IF_ERROR(comm.AllGatherV(Bytes(text.data(), static_cast<size_t>(counts[comm.rank()])),
                                  Bytes(texts.data(), texts.size()), counts));
  // What every rank says alike (a path that doesn't exist) needs no rank's name.
  const bool alike = static_cast<int>(failed.size()) == comm.size() &&
                     std::all_of(all.begin(), all.end(), [&](const StatusRecord& r) { return r == all[0]; }) &&
                     [&] {
                       const auto length = static_cast<size_t>(counts[0]);
                       for (size_t r = 1; r < failed.size(); ++r) {
                         if (texts.compare(r * length, length, texts, 0, length) != 0) return false;
                       }
                       return true;
                     }();
  if (alike) return Status(local.code(), std::move(text));
  const int first = failed.front();  // its message is the first of all: the ranks below it sent none
  std::string message = topology.Name(first) + " in phase " + PhaseName(phase) + ": " +
                        texts.substr(0, static_cast<size_t>(counts[first]));
  if (failed.size() > 1) message += " (" + std::to_string(failed.size() - 1) + " more ranks failed)";
  return Status(static_cast<StatusCode>(all[first][0]), std::move(message));
}

Result<int64_t> SmallestOfRanks(Communicator& comm, int64_t local) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> all, Gather(comm, local));
  return *std::min_element(all.begin(), all.end());
}

namespace {

// One sum of n elements whose result is known and exact: rank r gives (i mod 97) + r at i. A sum that is wrong goes to
// *wrong and stops nothing: the other ranks may have got it right, and must not be left alone in the next one.
Status SumOnce(Communicator& comm, std::vector<float>& data, double* seconds, Status* wrong) {
  const auto n = static_cast<int64_t>(data.size());
  for (int64_t i = 0; i < n; ++i) data[i] = static_cast<float>(i % 97 + comm.rank());
  const double begin = NowSeconds();
  RETURN_IF_ERROR(comm.AllReduce({data.data(), DType::kF32, {n}, {}}));
  *seconds = NowSeconds() - begin;
  const int size = comm.size();
  const float ranks = static_cast<float>(size) * (size - 1) / 2;
  for (int64_t i = 0; i < n && wrong->ok(); ++i) {
    const float want = static_cast<float>(i % 97) * size + ranks;
    if (data[i] == want) continue;
    *wrong = DataLoss("the all-reduce self-test gave " + std::to_string(data[i]) + " at element " + std::to_string(i) +
                      " of " + std::to_string(n) + " where the sum is " + std::to_string(want) +
                      "; the MPI library or the network between the ranks changes data: update MPI, or choose another "
                      "transport (--interface, or mpirun --mca btl tcp,self)");
  }
  return OkStatus();
}

Status MeasureSums(Communicator& comm, int64_t n, int repeats, double* median, Status* wrong) {
  std::vector<float> data(static_cast<size_t>(n));
  std::vector<double> seconds(repeats);
  for (double& s : seconds) RETURN_IF_ERROR(SumOnce(comm, data, &s, wrong));
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  *median = seconds[repeats / 2];
  return OkStatus();
}

std::string TooSlow(const GroupTopology& topology, std::chrono::milliseconds limit) {
  std::string text = topology.Name(topology.rank) + " in phase start: the all-reduce self-test over " +
                     std::to_string(topology.size()) + " ranks has not ended in " + std::to_string(limit.count()) + " ms; ";
  if (topology.nodes() == 1) return text + "a rank is stuck, or MPI's shared memory doesn't work (try --mca btl tcp,self)";
  text += "its ranks are on " + std::to_string(topology.nodes()) +
          " hosts: name the network between them by --interface, and let its firewall pass all TCP ports between them";
  return text;
}

}  // namespace

Result<SelfTestReport> RunSelfTest(Communicator& comm, const GroupTopology& topology, const SelfTestOptions& options) {
  SelfTestReport report;
  if (comm.size() == 1) return report;
  double large = 0;
  Status wrong;
  {
    const Watchdog watchdog(options.limit, [&] { EndJob(TooSlow(topology, options.limit)); });
    RETURN_IF_ERROR(MeasureSums(comm, kSmall, 21, &report.latency_seconds, &wrong));
    RETURN_IF_ERROR(MeasureSums(comm, options.large, 3, &large, &wrong));
    RETURN_IF_ERROR(AgreeOn(comm, topology, Phase::kStart, wrong));
  }
  if (large > 0) report.bytes_per_second = static_cast<double>(options.large) * sizeof(float) / large;
  return report;
}

}  // namespace quire
