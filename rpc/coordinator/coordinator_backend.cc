// See coordinator_backend.h.
#include "rpc/coordinator/coordinator_backend.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "rpc/coordinator/agreement.h"
#include "rpc/delivery.h"
#include "rpc/identity.h"
#include "rpc/status.h"
#include "rpc/tokenizer_files.h"

namespace quire::rpc {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kFetchSeconds = 10;
constexpr size_t kMaxTokenizerBytes = 512 << 20;
constexpr size_t kMaxGroups = 1024;

DispatcherOptions Named(DispatcherOptions options) {
  std::random_device device;
  char text[20];
  std::snprintf(text, sizeof text, "%08x", device());
  options.name = text;
  return options;
}

Result<std::vector<TokenizerFile>> FetchTokenizer(v1::Control::Stub* control) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(1000 * kFetchSeconds)));
  const auto reader = control->GetTokenizer(&context, {});
  std::vector<TokenizerFile> files;
  v1::GetTokenizerResponse part;
  size_t bytes = 0;
  while (reader->Read(&part)) {
    if (files.empty() || (!part.name().empty() && files.back().name != part.name())) {
      files.push_back({part.name(), ""});
    }
    files.back().data += part.data();
    bytes += part.data().size();
    if (bytes > kMaxTokenizerBytes) {
      context.TryCancel();
      return ResourceExhausted("the group's tokenizer has more than " + std::to_string(kMaxTokenizerBytes) + " bytes");
    }
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return files;
}

// What can be compared before the stream is there, so that a group of another model isn't even greeted.
v1::Identity PartOfIdentity(const v1::GetModelInfoResponse& info) {
  v1::Identity identity;
  identity.set_model(info.model());
  identity.set_model_hash(info.model_hash());
  identity.set_tokenizer_hash(info.tokenizer_hash());
  return identity;
}

}  // namespace

CoordinatorBackend::CoordinatorBackend(CoordinatorBackendOptions options, std::unique_ptr<Tokenizer> tokenizer,
                                       std::vector<TokenizerFile> files)
    : options_(std::move(options)),
      dispatcher_(Named(options_.dispatcher)),
      tokenizer_(std::move(tokenizer)),
      tokenizer_hash_(tokenizer_ == nullptr ? "" : TokenizerHash(*tokenizer_)),
      files_(std::move(files)) {}

CoordinatorBackend::~CoordinatorBackend() { Stop(); }

void CoordinatorBackend::Start() {
  timer_ = std::thread([this] { RunTimer(); });
  std::lock_guard lock(groups_mutex_);
  for (const std::string& address : options_.workers) AddConnection(address, /*fixed=*/true);
}

void CoordinatorBackend::Stop() {
  std::vector<std::unique_ptr<GroupConnection>> groups;
  {
    std::lock_guard lock(groups_mutex_);
    groups.swap(groups_);
  }
  for (const auto& group : groups) group->Stop();
  groups.clear();
  {
    std::lock_guard lock(timer_mutex_);
    stopping_ = true;
    timer_wake_.notify_all();
  }
  if (timer_.joinable()) timer_.join();
}

// --- groups ---

void CoordinatorBackend::AddConnection(const std::string& address, bool fixed) {
  for (const auto& group : groups_) {
    if (group->address() == address) return;
  }
  ConnectionOwner* const owner = this;
  groups_.push_back(std::make_unique<GroupConnection>(address, options_.name, fixed, owner));
}

Result<v1::RegisterResponse> CoordinatorBackend::Register(const std::string& address, const v1::Identity& identity) {
  const bool connected = strand_.View([&] {
    const auto known = dispatcher_.Identities();
    return std::any_of(known.begin(), known.end(),
                       [&](const v1::Identity* one) { return one->incarnation() == identity.incarnation(); });
  });
  RETURN_IF_ERROR(strand_.View([&] { return first_.has_value() ? CheckAgreement(*first_, identity) : OkStatus(); }));
  v1::RegisterResponse response;
  response.set_interval_s(options_.register_interval_s);
  response.set_coordinator(options_.name);
  std::lock_guard lock(groups_mutex_);
  const auto at = std::find_if(groups_.begin(), groups_.end(), [&](const auto& g) { return g->address() == address; });
  if (at != groups_.end()) {
    (*at)->Poke();
  } else if (!connected) {
    if (groups_.size() >= kMaxGroups) {
      return ResourceExhausted("this coordinator has " + std::to_string(groups_.size()) + " groups already");
    }
    {
      std::lock_guard timer(timer_mutex_);
      if (stopping_) return Unavailable("the coordinator is ending");
    }
    Log(LogLevel::kInfo, "group '" + identity.group() + "' registers at " + address);
    AddConnection(address, /*fixed=*/false);
  }
  return response;
}

void CoordinatorBackend::OnTick(double now) {
  std::vector<std::unique_ptr<GroupConnection>> gone;
  std::lock_guard lock(groups_mutex_);
  for (auto at = groups_.begin(); at != groups_.end();) {
    GroupConnection& group = **at;
    if (!group.fixed() && !group.up() && now - group.told_at() > options_.forget_s) group.Stop();
    if (group.Stopped()) {
      gone.push_back(std::move(*at));
      at = groups_.erase(at);
    } else {
      ++at;
    }
  }
}

Status CoordinatorBackend::Greet(const v1::GetModelInfoResponse& info, v1::Control::Stub* control) {
  std::lock_guard lock(model_mutex_);
  if (info_.has_value()) {
    return CheckAgreement(PartOfIdentity(*info_), PartOfIdentity(info));
  }
  if (!tokenizer_hash_.empty() && tokenizer_hash_ != info.tokenizer_hash()) {
    return FailedPrecondition("it has another tokenizer (" + info.tokenizer_hash() + ") than --model (" +
                              tokenizer_hash_ + "); give both the same model");
  }
  if (tokenizer() == nullptr && info.has_tokenizer()) {
    ASSIGN_OR_RETURN(std::vector<TokenizerFile> files, FetchTokenizer(control));
    ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> made, MakeTokenizer(files));
    const std::string hash = TokenizerHash(*made);
    if (hash != info.tokenizer_hash()) {
      return Internal("the tokenizer that the group sent has the hash " + hash + ", its own has " +
                      info.tokenizer_hash() + "; give --model");
    }
    std::lock_guard own(tokenizer_mutex_);
    tokenizer_hash_ = hash;
    files_ = std::move(files);
    tokenizer_ = std::move(made);
  }
  std::lock_guard own(tokenizer_mutex_);
  info_ = info;
  return OkStatus();
}

Status CoordinatorBackend::TakeUp(const v1::Identity& identity) {
  for (const v1::Identity* known : dispatcher_.Identities()) {
    if (known->incarnation() == identity.incarnation()) {
      return FailedPrecondition("it is group '" + known->group() + "', which is connected already; name it once");
    }
  }
  if (!first_.has_value()) {
    first_ = identity;
  } else {
    RETURN_IF_ERROR(CheckAgreement(*first_, identity));
  }
  if (const std::string warning = TakeoverWarning(*first_, identity); !warning.empty()) {
    Log(LogLevel::kWarning, warning);
  }
  return OkStatus();
}

void CoordinatorBackend::OnResponse(std::shared_ptr<ExecuteStream> stream) {
  const DeliveryBatch batch(DeliveryBatch::AtEnd::kTell);
  strand_.Post([this, stream = std::move(stream)] {
    const double now = NowSeconds();
    if (stream->up()) {
      dispatcher_.OnResponse(stream->session(), stream->response(), now);
    } else {
      const v1::WorkerHello& hello = stream->response().hello();
      const Status status = stream->response().has_hello() ? TakeUp(hello.identity())
                                                           : Internal("the stream's first message has no hello");
      if (status.ok()) {
        stream->SetUp();
        Log(LogLevel::kInfo, "group '" + hello.identity().group() + "' is there: " +
                                 std::to_string(hello.identity().max_num_seqs()) + " sequences at once, " +
                                 std::to_string(hello.identity().pages_total()) + " pages");
        dispatcher_.OnUp(stream->session(), stream.get(), hello, now);
        dispatcher_.OnResponse(stream->session(), stream->response(), now);
      } else {
        stream->Reset(status);
      }
    }
    Rearm();
    stream->Next();
  });
}

void CoordinatorBackend::OnDown(std::shared_ptr<ExecuteStream> stream, const Status& why) {
  strand_.Post([this, stream = std::move(stream), why] {
    dispatcher_.OnDown(stream->session(), why, NowSeconds());
    Rearm();
  });
}

// --- time ---

void CoordinatorBackend::Rearm() {
  const double next = dispatcher_.NextTime();
  std::lock_guard lock(timer_mutex_);
  if (next >= armed_) return;
  armed_ = next;
  timer_wake_.notify_all();
}

void CoordinatorBackend::RunTimer() {
  std::unique_lock lock(timer_mutex_);
  while (!stopping_) {
    if (const double now = NowSeconds(); armed_ > now) {
      const double wait = std::min(armed_ - now, 3600.0);
      timer_wake_.wait_for(lock, std::chrono::duration<double>(wait));
      continue;
    }
    armed_ = kNever;  // the job sets it again
    lock.unlock();
    strand_.Post([this] {
      dispatcher_.OnTime(NowSeconds());
      Rearm();
    });
    lock.lock();
  }
}

// --- Backend ---

Status CoordinatorBackend::Available() const {
  return strand_.View([this] { return dispatcher_.Available(NowSeconds()); });
}

bool CoordinatorBackend::Stalled(double seconds) const {
  return strand_.View([&] { return dispatcher_.Stalled(NowSeconds(), seconds); });
}

Status CoordinatorBackend::Submit(GenerationRequest request, const std::string& client, EventCallback callback) {
  RETURN_IF_ERROR(Available());
  auto shared = std::make_shared<GenerationRequest>(std::move(request));
  strand_.Post([this, shared, client, callback = std::move(callback)]() mutable {
    dispatcher_.Submit(std::move(*shared), client, std::move(callback), NowSeconds());
    Rearm();
  });
  return OkStatus();
}

void CoordinatorBackend::Cancel(const std::string& request_id) {
  strand_.Post([this, request_id] {
    dispatcher_.Cancel(request_id, NowSeconds());
    Rearm();
  });
}

const Tokenizer* CoordinatorBackend::tokenizer() const {
  std::lock_guard lock(tokenizer_mutex_);
  return tokenizer_.get();
}

Result<v1::GetModelInfoResponse> CoordinatorBackend::ModelInfo() const {
  std::lock_guard lock(tokenizer_mutex_);
  if (!info_.has_value()) return Unavailable("no group has been reached yet; try again later");
  return *info_;
}

Result<std::vector<TokenizerFile>> CoordinatorBackend::TokenizerFiles() const {
  std::lock_guard lock(tokenizer_mutex_);
  if (tokenizer_ != nullptr) return files_;
  if (!info_.has_value()) return Unavailable("no group has been reached yet; try again later");
  return NotFound("the groups' model has no tokenizer; give token ids");
}

v1::GetLoadResponse CoordinatorBackend::Load() const {
  v1::GetLoadResponse response = strand_.View([this] { return dispatcher_.Load(); });
  std::lock_guard lock(groups_mutex_);
  for (const auto& group : groups_) {
    if (group->up()) continue;
    v1::GroupLoad* absent = response.add_groups();
    absent->set_group(group->address());
    absent->set_available(false);
    absent->set_detail(group->state());
  }
  return response;
}

void CoordinatorBackend::FillServerInfo(v1::GetServerInfoResponse* info) const {
  info->set_version(options_.version);
  info->set_role("coordinator");
  if (const Status available = Available(); !available.ok()) info->set_detail(available.message());
  int ranks = 0, seqs = 0, page_size = 0;
  strand_.View([&] {
    for (const v1::Identity* identity : dispatcher_.Identities()) {
      ranks += identity->tensor_parallel_size();
      seqs += identity->max_num_seqs();
      page_size = identity->page_size();
    }
  });
  info->set_tensor_parallel_size(ranks);
  info->set_max_num_seqs(seqs);
  if (page_size > 0) info->set_page_size(page_size);
}

}  // namespace quire::rpc
