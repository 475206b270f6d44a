// See group_connection.h.
#include "rpc/coordinator/group_connection.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "rpc/channel.h"
#include "rpc/status.h"

namespace quire::rpc {
namespace {

constexpr double kFirstBackoff = 0.1, kLastBackoff = 2;
constexpr double kAskSeconds = 3;    // GetModelInfo
constexpr double kHelloSeconds = 5;  // from the stream's beginning to its being up
constexpr size_t kTogetherBytes = 4 << 20;  // of messages that wait and are sent as one

std::chrono::system_clock::time_point After(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds));
}

}  // namespace

// --- one stream ---

void ExecuteStream::Start(std::shared_ptr<ExecuteStream> self, v1::Worker::Stub* stub,
                          const v1::CoordinatorHello& hello) {
  std::lock_guard lock(mutex_);
  self_ = std::move(self);
  stub->async()->Execute(&context_, this);
  *writing_.mutable_hello() = hello;
  is_writing_ = true;
  AddHold();  // writes begin outside of reactions
  StartWrite(&writing_);
  StartRead(&response_);
  StartCall();
}

void ExecuteStream::WriteLocked() {
  if (is_writing_ || closed_) return;
  if (pending_.empty()) return;
  writing_ = std::move(pending_.front());
  pending_.pop_front();
  is_writing_ = true;
  StartWrite(&writing_);
}

void ExecuteStream::Send(v1::ExecuteRequest message) {
  std::lock_guard lock(mutex_);
  const size_t bytes = message.ByteSizeLong();
  if (pending_.empty() || last_bytes_ + bytes > kTogetherBytes) {
    pending_.push_back(std::move(message));
    last_bytes_ = bytes;
  } else {
    pending_.back().MergeFrom(message);
    last_bytes_ += bytes;
  }
  WriteLocked();
}

void ExecuteStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  if (ok) WriteLocked();
}

void ExecuteStream::OnReadDone(bool ok) {
  std::shared_ptr<ExecuteStream> self;
  {
    std::lock_guard lock(mutex_);
    self = self_;
    if (!ok) closed_ = true;
  }
  if (ok) {
    owner_->OnResponse(std::move(self));
  } else {
    RemoveHold();
  }
}

void ExecuteStream::Next() {
  std::lock_guard lock(mutex_);
  if (!closed_) StartRead(&response_);
}

void ExecuteStream::Reset(const Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (reset_.ok()) reset_ = why;
  }
  context_.TryCancel();
}

void ExecuteStream::OnDone(const grpc::Status& status) {
  std::shared_ptr<ExecuteStream> self;
  Status why;
  {
    std::lock_guard lock(mutex_);
    self = std::move(self_);
    closed_ = true;
    status_ = !reset_.ok() ? reset_ : status.ok() ? Unavailable("the group has ended the stream") : FromGrpc(status);
    why = status_;
  }
  owner_->OnDown(self, why);
  std::lock_guard lock(mutex_);
  done_ = true;
  ended_.notify_all();
}

bool ExecuteStream::WaitDone(double seconds, Status* status) {
  std::unique_lock lock(mutex_);
  const bool done = ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return done_; });
  *status = status_;
  return done;
}

// --- one address ---

GroupConnection::GroupConnection(std::string address, std::string coordinator, bool fixed, ConnectionOwner* owner)
    : address_(std::move(address)),
      name_(coordinator + "/" + address_),
      fixed_(fixed),
      owner_(owner),
      channel_(MakeChannel(address_)),
      control_(v1::Control::NewStub(channel_)),
      worker_(v1::Worker::NewStub(channel_)),
      told_at_(NowSeconds()),
      thread_([this] { Run(); }) {}

GroupConnection::~GroupConnection() {
  Stop();
  thread_.join();
}

void GroupConnection::Stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  if (asking_ != nullptr) asking_->TryCancel();
  if (stream_ != nullptr) stream_->Reset(Cancelled("the coordinator is ending"));
  wake_.notify_all();
}

void GroupConnection::Poke() {
  std::lock_guard lock(mutex_);
  told_at_ = NowSeconds();
  poked_ = true;
  wake_.notify_all();
}

bool GroupConnection::up() const {
  std::lock_guard lock(mutex_);
  return stream_ != nullptr && stream_->up();
}

double GroupConnection::told_at() const {
  std::lock_guard lock(mutex_);
  return told_at_;
}

std::string GroupConnection::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

// Each reason once, however often it is met.
void GroupConnection::Say(const Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || said_ == status.message()) return;
    state_ = said_ = status.message();
  }
  Log(LogLevel::kWarning, "group at " + address_ + ": " + status.message());
}

void GroupConnection::Run() {
  double backoff = kFirstBackoff;
  while (true) {
    const double began = NowSeconds();
    const Status status = Connect();
    if (NowSeconds() - began > kLastBackoff + kAskSeconds) backoff = kFirstBackoff;  // it was up for a while
    Say(status);
    std::unique_lock lock(mutex_);
    stream_.reset();
    wake_.wait_for(lock, std::chrono::duration<double>(backoff), [this] { return stopping_ || poked_; });
    if (stopping_) break;
    backoff = poked_ ? kFirstBackoff : std::min(kLastBackoff, 2 * backoff);
    poked_ = false;
  }
  stopped_ = true;
}

Status GroupConnection::Connect() {
  v1::GetModelInfoResponse info;
  grpc::ClientContext* context = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return Cancelled("the coordinator is ending");
    asking_ = std::make_unique<grpc::ClientContext>();
    context = asking_.get();
  }
  context->set_deadline(After(kAskSeconds));
  const Status asked = FromGrpc(control_->GetModelInfo(context, {}, &info));
  {
    std::lock_guard lock(mutex_);
    asking_.reset();
  }
  RETURN_IF_ERROR(asked);
  RETURN_IF_ERROR(owner_->Greet(info, control_.get()));

  auto stream = std::make_shared<ExecuteStream>(owner_->NewSession(), owner_);
  v1::CoordinatorHello hello;
  hello.set_coordinator(name_);
  hello.set_model_hash(info.model_hash());
  hello.set_tokenizer_hash(info.tokenizer_hash());
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return Cancelled("the coordinator is ending");
    stream_ = stream;
    stream->Start(stream, worker_.get(), hello);
  }
  Status status;
  const double began = NowSeconds();
  while (!stream->WaitDone(0.5, &status)) {
    if (!stream->up()) {
      if (NowSeconds() - began > kHelloSeconds) {
        stream->Reset({StatusCode::kDeadlineExceeded, "it has not answered the stream's hello within " +
                                                          std::to_string(static_cast<int>(kHelloSeconds)) + " seconds"});
      }
      continue;
    }
    std::lock_guard lock(mutex_);
    said_.clear();
  }
  return status;
}

}  // namespace quire::rpc
