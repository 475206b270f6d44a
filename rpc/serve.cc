// See serve.h.
#include "rpc/serve.h"

#include <utility>

#include "core/base/log.h"
#include "rpc/engine_backend.h"
#include "rpc/front.h"
#include "rpc/identity.h"
#include "rpc/registration.h"
#include "rpc/worker_service.h"

namespace quire {

struct GroupServer::Impl {
  explicit Impl(ServeOptions o)
      : options(std::move(o)),
        backend({options.version, options.group, options.served_model, options.tensor_parallel_size}),
        front(
            [this] {
              rpc::FrontOptions f;
              f.listen = options.listen;
              f.max_queue = options.max_queue;
              f.shutdown_timeout_s = options.shutdown_timeout_s;
              f.keep_s = options.keep_s;
              f.stall_s = options.stall_s;
              f.unread_s = options.unread_s;
              f.max_unread = options.max_unread;
              return f;
            }(),
            &backend),
        worker(&front, &backend) {}

  ServeOptions options;
  rpc::EngineBackend backend;
  rpc::Front front;
  rpc::WorkerService worker;
  std::vector<std::unique_ptr<rpc::Registration>> registrations;
};

GroupServer::GroupServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GroupServer::~GroupServer() { Stop(); }

Result<std::unique_ptr<GroupServer>> GroupServer::Start(ServeOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  impl->front.set_on_tick([worker = &impl->worker](double now) { worker->OnTick(now); });
  RETURN_IF_ERROR(impl->front.Start({&impl->worker}, {rpc::kWorkerName}));
  if (impl->options.group.empty()) impl->backend.set_group(impl->front.address());
  return std::unique_ptr<GroupServer>(new GroupServer(std::move(impl)));
}

const std::string& GroupServer::address() const { return impl_->front.address(); }

void GroupServer::SetLoading(const std::string& phase, double fraction) { impl_->backend.SetLoading(phase, fraction); }

void GroupServer::Serve(std::unique_ptr<Engine> engine) {
  const EngineOptions& o = engine->options();
  // Weights made up from a seed are told by it; those of a file by the file alone.
  const std::string extra = o.load_format == "dummy" ? "dummy " + std::to_string(o.seed) : "";
  auto hash = rpc::ModelHash(o.model, extra);
  if (!hash.ok()) Log(LogLevel::kWarning, "no hash of the model: " + hash.status().message());
  impl_->backend.SetEngine(std::move(engine), hash.ok() ? *hash : "");
  impl_->front.ShowState();
  const std::string advertise = impl_->options.advertise.empty() ? ":" + std::to_string(impl_->front.port())
                                                                 : impl_->options.advertise;
  for (const std::string& coordinator : impl_->options.coordinators) {
    impl_->registrations.push_back(std::make_unique<rpc::Registration>(
        coordinator, advertise, [impl = impl_.get()] { return impl->backend.Identity(impl->options.max_queue); },
        [impl = impl_.get()] { return impl->front.State() == v1::SERVER_STATE_READY; }));
  }
}

void GroupServer::Drain(std::optional<double> timeout_s) {
  impl_->front.Drain(timeout_s.value_or(impl_->options.shutdown_timeout_s));
}

bool GroupServer::draining() const { return impl_->front.draining(); }
bool GroupServer::Drained() const { return impl_->front.Drained(); }
Status GroupServer::failure() const { return impl_->backend.failure(); }

void GroupServer::Stop() {
  impl_->registrations.clear();
  impl_->front.Stop();
  impl_->backend.Stop();
}

}  // namespace quire
