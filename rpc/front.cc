// See front.h.
#include "rpc/front.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "core/base/clock.h"

namespace quire::rpc {
namespace {

constexpr double kLastWordsSeconds = 5;  // for chunks that are on their way when the server ends
constexpr const char* kDraining = "the service is draining; send the request to another, or later";

uint64_t DrawIdBase() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// Options of keepalive: clients may ask every 10 s without calls, and a peer that has vanished is found within 30 s.
void SetKeepalive(grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 9000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

// Neighbours of one reader together: a stream to a coordinator reads every request of a step.
void TellReaders(const std::vector<std::shared_ptr<Request>>& noted) {
  std::shared_ptr<Reader> reader;
  std::vector<std::shared_ptr<Request>> its;
  const auto tell = [&] {
    if (reader != nullptr) reader->OnNews(its);
    its.clear();
  };
  for (const auto& request : noted) {
    if (auto next = request->reader(); next != reader) {
      tell();
      reader = std::move(next);
    }
    its.push_back(request);
  }
  tell();
  for (const auto& request : noted) {
    if (request->options().table != nullptr) request->options().table->Release(request);
  }
}

}  // namespace

Front::Front(FrontOptions options, Backend* backend)
    : options_(std::move(options)),
      backend_(backend),
      started_(NowSeconds()),
      requests_(options_.max_queue, options_.keep_s),
      submissions_(options_.max_queue, options_.keep_s),
      intake_(options_.intake_threads),
      id_base_(DrawIdBase()) {}

Front::~Front() { Stop(); }

Status Front::Start(const std::vector<grpc::Service*>& extra, const std::vector<std::string>& ready_names) {
  delivery_ = std::make_unique<Delivery>(
      &TellReaders, [this](double now) { OnTick(now); }, options_.tick_s);
  services_.push_back(MakeGenerationService(this));
  services_.push_back(MakeControlService(this));
  ready_names_ = ready_names;
  ready_names_.push_back(kGenerationName);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(static_cast<int>(options_.max_message));
  builder.SetMaxSendMessageSize(static_cast<int>(options_.max_message));
  SetKeepalive(&builder);
  // Nothing is compressed, and nobody asks channelz; both cost something for every message.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two servers on one port would share its clients
  // Reflection alone is served the synchronous way.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
  for (const auto& service : services_) builder.RegisterService(service.get());
  for (grpc::Service* service : extra) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    server_.reset();
    return Unavailable("can't listen on " + options_.listen +
                       ": the address is in use, not of this machine, or not HOST:PORT");
  }
  address_ = options_.listen.substr(0, options_.listen.rfind(':') + 1) + std::to_string(port_);
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("", true);
  health->SetServingStatus(kControlName, true);
  for (const std::string& name : ready_names_) health->SetServingStatus(name, false);
  listening_ = true;
  return OkStatus();
}

v1::ServerState Front::State() const {
  if (draining_) return v1::SERVER_STATE_DRAINING;
  if (!backend_->Available().ok()) return v1::SERVER_STATE_LOADING;
  return backend_->Stalled(options_.stall_s) ? v1::SERVER_STATE_STALLED : v1::SERVER_STATE_READY;
}

double Front::uptime() const { return NowSeconds() - started_; }

Status Front::Open() const {
  if (refusing_) return Unavailable(kDraining);
  return backend_->Available();
}

Result<ModelLimits> Front::Limits() {
  std::lock_guard lock(mutex_);
  if (limits_ == nullptr) {
    ASSIGN_OR_RETURN(const v1::GetModelInfoResponse info, backend_->ModelInfo());
    limits_ = std::make_unique<ModelLimits>();
    limits_->model = info.model();
    limits_->prompt.max_model_len = info.max_model_len();
    limits_->request.vocab = info.vocab();
    limits_->request.max_model_len = info.max_model_len();
    if (const Tokenizer* tokenizer = backend_->tokenizer()) {
      limits_->prompt.max_token_bytes = MaxTokenBytes(*tokenizer);
      limits_->request.has_tokenizer = true;
    }
  }
  return *limits_;
}

std::string Front::NewRequestId() {
  char text[48];
  std::snprintf(text, sizeof text, "%016llx-%llu", static_cast<unsigned long long>(id_base_),
                static_cast<unsigned long long>(ids_++));
  return text;
}

void Front::ShowState() const {
  if (!listening_) return;
  std::lock_guard lock(show_mutex_);
  const bool ready = State() == v1::SERVER_STATE_READY;
  for (const std::string& name : ready_names_) server_->GetHealthCheckService()->SetServingStatus(name, ready);
}

void Front::OnTick(double now) {
  ShowState();
  requests_.Tick(now);
  submissions_.Tick(now);
  if (on_tick_) on_tick_(now);
  if (!draining_ || timed_out_) return;
  double deadline = 0;
  {
    std::lock_guard lock(mutex_);
    deadline = drain_deadline_;
  }
  if (now >= deadline) {
    timed_out_ = true;
    AbortAll();
  }
}

void Front::Drain(double timeout_s) {
  {
    std::lock_guard lock(mutex_);
    const double deadline = NowSeconds() + std::max(0.0, timeout_s);
    drain_deadline_ = draining_.exchange(true) ? std::min(drain_deadline_, deadline) : deadline;
  }
  Close(kDraining);
}

void Front::Close(const std::string& why) {
  draining_ = true;
  ShowState();
  requests_.Close(why);
  submissions_.Close(why);
  refusing_ = true;
}

void Front::AbortAll() {
  for (const auto& request : requests_.All()) request->Abort();
  for (const auto& request : submissions_.All()) request->Abort();
}

bool Front::Drained() const {
  if (!refusing_) return false;
  if (in_flight() == 0) return true;
  std::lock_guard lock(mutex_);
  return NowSeconds() > drain_deadline_ + kLastWordsSeconds;  // the engine doesn't even abort
}

void Front::Stop() {
  if (std::exchange(stopped_, true)) return;
  Close("the service is ending");
  AbortAll();
  if (server_ != nullptr) {
    // For what is left to be read, and no longer: a client that doesn't read must not hold the process.
    const double end = NowSeconds() + kLastWordsSeconds;
    while (NowSeconds() < end && (requests_.readers() > 0 || submissions_.in_flight() > 0)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  }
  intake_.Stop();
  if (delivery_ != nullptr) delivery_->Stop();
  server_.reset();
}

}  // namespace quire::rpc
