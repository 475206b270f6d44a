// See rpc/coordinator.h.
#include "rpc/coordinator.h"

#include <unistd.h>

#include <utility>

#include "core/base/log.h"
#include "rpc/coordinator/coordinator_backend.h"
#include "rpc/coordinator/registry_service.h"
#include "rpc/front.h"
#include "rpc/tokenizer_files.h"

namespace quire {
namespace {

rpc::FrontOptions MakeFrontOptions(const CoordinatorOptions& options) {
  rpc::FrontOptions front;
  front.listen = options.listen;
  front.max_queue = options.max_queue;
  front.shutdown_timeout_s = options.shutdown_timeout_s;
  front.keep_s = options.keep_s;
  front.unread_s = options.unread_s;
  front.max_unread = options.max_unread;
  return front;
}

rpc::CoordinatorBackendOptions MakeBackendOptions(const CoordinatorOptions& options) {
  rpc::CoordinatorBackendOptions backend;
  backend.version = options.version;
  backend.name = options.name;
  if (backend.name.empty()) {
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    backend.name = std::string(host) + "/" + options.listen;
  }
  backend.workers = options.workers;
  backend.dispatcher.max_queue = static_cast<size_t>(options.max_queue);
  backend.dispatcher.silent_s = options.silent_s;
  backend.dispatcher.no_group_s = options.no_group_s;
  backend.dispatcher.batch_window_s = options.batch_window_s;
  return backend;
}

}  // namespace

struct Coordinator::Impl {
  Impl(CoordinatorOptions o, std::unique_ptr<Tokenizer> tokenizer, std::vector<rpc::TokenizerFile> files)
      : options(std::move(o)),
        backend(MakeBackendOptions(options), std::move(tokenizer), std::move(files)),
        front(MakeFrontOptions(options), &backend),
        registry(&backend) {}

  CoordinatorOptions options;
  rpc::CoordinatorBackend backend;
  rpc::Front front;
  rpc::RegistryService registry;
};

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() { Stop(); }

Result<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options) {
  for (const std::string& worker : options.workers) {
    const auto address = rpc::ResolveAddress(worker, "");
    if (!address.ok()) return InvalidArgument("a worker's address is '" + worker + "'; it should be HOST:PORT");
  }
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<rpc::TokenizerFile> files;
  if (!options.model.empty()) {
    ASSIGN_OR_RETURN(tokenizer, LoadTokenizer(options.model));
    ASSIGN_OR_RETURN(files, rpc::ReadTokenizerFiles(options.model));
  }
  auto impl = std::make_unique<Impl>(std::move(options), std::move(tokenizer), std::move(files));
  impl->front.set_on_tick([backend = &impl->backend](double now) { backend->OnTick(now); });
  RETURN_IF_ERROR(impl->front.Start({&impl->registry}, {}));
  impl->backend.Start();
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(impl)));
}

const std::string& Coordinator::address() const { return impl_->front.address(); }

void Coordinator::Drain(std::optional<double> timeout_s) {
  impl_->front.Drain(timeout_s.value_or(impl_->options.shutdown_timeout_s));
}

bool Coordinator::draining() const { return impl_->front.draining(); }
bool Coordinator::Drained() const { return impl_->front.Drained(); }

void Coordinator::Stop() {
  impl_->front.Stop();
  impl_->backend.Stop();
}

}  // namespace quire
