// See engine_backend.h.
#include "rpc/engine_backend.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/io/chat_template.h"
#include "rpc/delivery.h"
#include "rpc/convert.h"
#include "rpc/identity.h"
#include "rpc/tokenizer_files.h"

namespace quire::rpc {
namespace {

uint64_t DrawIncarnation() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

bool KnowsChatTemplate(const Tokenizer& tokenizer) {
  const ChatMessage hello{"user", "hello"};
  return ApplyChatTemplate(tokenizer, std::span(&hello, 1)).ok();
}

}  // namespace

EngineBackend::EngineBackend(EngineBackendOptions options)
    : version_(std::move(options.version)),
      tensor_parallel_size_(options.tensor_parallel_size),
      incarnation_(DrawIncarnation()),
      served_model_(std::move(options.served_model)),
      group_(std::move(options.group)) {}

EngineBackend::~EngineBackend() { Stop(); }

void EngineBackend::SetLoading(const std::string& phase, double fraction) {
  std::lock_guard lock(mutex_);
  loading_ = phase + " " + std::to_string(static_cast<int>(100 * std::clamp(fraction, 0.0, 1.0))) + "%";
}

void EngineBackend::set_group(const std::string& group) {
  std::lock_guard lock(mutex_);
  group_ = group;
}

void EngineBackend::SetEngine(std::unique_ptr<Engine> engine, std::string model_hash) {
  engine_ = std::move(engine);
  model_hash_ = std::move(model_hash);
  if (served_model_.empty()) served_model_ = engine_->config().name;
  if (const Tokenizer* tokenizer = engine_->tokenizer()) {
    tokenizer_hash_ = TokenizerHash(*tokenizer);
    has_chat_template_ = KnowsChatTemplate(*tokenizer);
  }
  last_step_ = NowSeconds();
  engine_ready_.store(true, std::memory_order_release);
  std::lock_guard lock(mutex_);
  if (!stopping_) thread_ = std::thread([this] { Run(); });
}

void EngineBackend::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void EngineBackend::Wake() {
  {
    std::lock_guard lock(mutex_);
    work_ = true;
  }
  wake_.notify_one();
}

void EngineBackend::Run() {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      work_ = false;
    }
    const Result<bool> worked = [this] {
      const DeliveryBatch batch(DeliveryBatch::AtEnd::kHandOver);
      return engine_->Step();
    }();
    last_step_ = NowSeconds();
    if (!worked.ok()) {
      Log(LogLevel::kError, "the engine has stopped: " + worked.status().message());
      std::unordered_map<std::string, InFlight> lost;
      {
        std::lock_guard lock(mutex_);
        failure_ = worked.status();
        lost.swap(in_flight_);
        tokens_in_flight_ = 0;
        busy_since_ = 0;
      }
      TokenEvent event;
      event.finished = true;
      event.reason = FinishReason::kAborted;
      event.status = Unavailable("the group has failed: " + worked.status().message());
      for (auto& [id, request] : lost) {
        for (size_t i = 0; i < request.left.size(); ++i) {
          if (request.left[i] < 0) continue;
          event.sequence = request.first_sequence + static_cast<int>(i);
          request.callback(event);
        }
      }
      return;
    }
    if (*worked) continue;
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return work_ || stopping_; });
  }
}

Status EngineBackend::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

Status EngineBackend::Available() const {
  if (engine() == nullptr) {
    std::lock_guard lock(mutex_);
    return Unavailable("the model is loading (" + loading_ + "); try again later");
  }
  std::lock_guard lock(mutex_);
  if (!failure_.ok()) return Unavailable("the group has failed: " + failure_.message());
  return OkStatus();
}

bool EngineBackend::Stalled(double seconds) const {
  std::lock_guard lock(mutex_);
  return busy_since_ > 0 && NowSeconds() - std::max(busy_since_, last_step_.load()) > seconds;
}

Status EngineBackend::Submit(GenerationRequest request, const std::string& client, EventCallback callback) {
  RETURN_IF_ERROR(Available());
  const std::string id = request.request_id;
  InFlight flight;
  flight.callback = std::move(callback);
  flight.prompt = static_cast<int64_t>(request.prompt.size());
  int64_t wanted = request.forced.empty() ? request.stopping.max_tokens : static_cast<int64_t>(request.forced.size());
  if (request.resume.has_value()) {
    flight.first_sequence = request.resume->sequence;
    const auto done = static_cast<int64_t>(request.resume->tokens.size());
    flight.prompt += done;  // computed again
    wanted -= done;
  }
  const int64_t most = std::max<int64_t>(0, engine_->options().max_model_len - flight.prompt);
  const int n = std::max(1, request.sampling.n);
  flight.left.assign(static_cast<size_t>(n), std::clamp<int64_t>(wanted, 0, most));
  flight.unfinished = n;
  const int64_t tokens = flight.prompt + n * flight.left[0];
  {
    std::lock_guard lock(mutex_);
    if (in_flight_.contains(id)) {
      return Status(StatusCode::kAlreadyExists, "a request '" + id + "' is in flight; give another request_id");
    }
    // An id of its own: a cancellation that comes late never meets the next request of the client's.
    request.request_id = flight.engine_id = "r" + std::to_string(submissions_++);
    if (in_flight_.empty()) busy_since_ = NowSeconds();
    tokens_in_flight_ += tokens;
    in_flight_.emplace(id, std::move(flight));
  }
  const auto submitted =
      engine_->Submit(std::move(request), [this, id](const TokenEvent& event) { OnEvent(id, event); });
  if (!submitted.ok()) {
    std::lock_guard lock(mutex_);
    in_flight_.erase(id);
    tokens_in_flight_ -= tokens;
    if (in_flight_.empty()) busy_since_ = 0;
    return submitted.status();
  }
  Wake();
  return OkStatus();
}

void EngineBackend::OnEvent(const std::string& id, const TokenEvent& event) {
  EventCallback callback;
  {
    std::lock_guard lock(mutex_);
    const auto at = in_flight_.find(id);
    if (at == in_flight_.end()) return;
    InFlight& flight = at->second;
    if (!flight.prompt_done) {
      flight.prompt_done = true;
      tokens_in_flight_ -= flight.prompt;
    }
    int64_t& left = flight.left[static_cast<size_t>(event.sequence - flight.first_sequence)];
    const int64_t made = event.finished ? left : std::min<int64_t>(left, static_cast<int64_t>(event.token_ids.size()));
    left -= made;
    tokens_in_flight_ -= made;
    if (event.finished) left = -1;
    if (event.finished && --flight.unfinished == 0) {
      callback = std::move(flight.callback);
      in_flight_.erase(at);
      if (in_flight_.empty()) busy_since_ = 0;
    } else {
      callback = flight.callback;
    }
  }
  callback(event);
}

void EngineBackend::Cancel(const std::string& request_id) {
  std::string engine_id;
  {
    std::lock_guard lock(mutex_);
    const auto at = in_flight_.find(request_id);
    if (at == in_flight_.end()) return;
    engine_id = at->second.engine_id;
  }
  engine_->Cancel(engine_id);
  Wake();
}

const Tokenizer* EngineBackend::tokenizer() const {
  const Engine* const e = engine();
  return e == nullptr ? nullptr : e->tokenizer();
}

Result<v1::GetModelInfoResponse> EngineBackend::ModelInfo() const {
  if (engine() == nullptr) return Available();
  const ModelConfig& config = engine_->config();
  const EngineOptions& options = engine_->options();
  v1::GetModelInfoResponse info;
  info.set_model(served_model_);
  info.set_family(config.family);
  info.set_layers(config.layers);
  info.set_hidden(config.hidden);
  info.set_q_heads(config.q_heads);
  info.set_kv_heads(config.kv_heads);
  info.set_head_dim(config.head_dim);
  info.set_vocab(config.vocab);
  info.set_max_model_len(options.max_model_len);
  info.set_dtype(options.dtype);
  info.set_kv_cache_dtype(options.kv_cache_dtype);
  for (const int32_t id : config.eos_ids) info.add_eos_ids(id);
  info.set_has_tokenizer(engine_->tokenizer() != nullptr);
  info.set_has_chat_template(has_chat_template_);
  for (const AttentionSpec& spec : options.attention) info.add_attention(spec.ToString());
  info.set_model_hash(model_hash_);
  info.set_tokenizer_hash(tokenizer_hash_);
  return info;
}

v1::GroupLoad EngineBackend::GroupLoad() const {
  v1::GroupLoad load;
  const Status available = Available();
  load.set_available(available.ok());
  if (!available.ok()) load.set_detail(available.message());
  if (engine() != nullptr) {
    const EngineStats stats = engine_->Stats();
    load.set_running(stats.running);
    load.set_waiting(stats.waiting);
    load.set_pages_free(stats.pages_free);
    load.set_pages_total(stats.pages_total);
    load.set_steps(stats.steps);
    load.set_preemptions(stats.preemptions);
    load.set_prompt_tokens(stats.prompt_tokens);
    load.set_generation_tokens(stats.generation_tokens);
    load.set_requests_finished(stats.requests_finished);
    load.set_attention_pages_read(stats.attention.pages_read);
    load.set_attention_pages_total(stats.attention.pages_total);
    load.set_prefill_seconds(stats.prefill_seconds);
    load.set_decode_seconds(stats.decode_seconds);
    WriteFinished(stats.sequences, load.mutable_sequences());
    load.set_selection_seconds(stats.attention.selection_seconds);
    load.set_attention_seconds(stats.attention.attention_seconds);
    load.set_collective_seconds(stats.collectives.all_reduce_seconds + stats.collectives.all_gather_seconds);
    load.set_step_broadcast_seconds(stats.step_broadcast_seconds);
    if (engine_->options().missing_mass_bound) {
      load.set_missing_mass_bounds(stats.attention.bounds);
      load.set_missing_mass_bound_sum(1e-9 * static_cast<double>(stats.attention.bound_billionths));
    }
  }
  std::lock_guard lock(mutex_);
  load.set_group(group_);
  load.set_tokens_in_flight(tokens_in_flight_);
  return load;
}

v1::GetLoadResponse EngineBackend::Load() const {
  v1::GetLoadResponse response;
  *response.add_groups() = GroupLoad();
  *response.mutable_total() = response.groups(0);
  response.mutable_total()->clear_group();
  return response;
}

void EngineBackend::FillServerInfo(v1::GetServerInfoResponse* info) const {
  info->set_version(version_);
  info->set_role("group");
  info->set_tensor_parallel_size(tensor_parallel_size_);
  if (engine() != nullptr) {
    info->set_page_size(engine_->options().page_size);
    info->set_max_num_seqs(engine_->options().max_num_seqs);
  }
  if (const Status available = Available(); !available.ok()) info->set_detail(available.message());
}

Result<std::vector<TokenizerFile>> EngineBackend::TokenizerFiles() const {
  RETURN_IF_ERROR(Available());
  if (engine_->tokenizer() == nullptr) return NotFound("this model has no tokenizer; give token ids");
  return ReadTokenizerFiles(engine_->options().model);
}

Result<v1::Identity> EngineBackend::Identity(int max_queue) const {
  if (engine() == nullptr) return Available();
  const EngineOptions& options = engine_->options();
  v1::Identity identity;
  {
    std::lock_guard lock(mutex_);
    identity.set_group(group_);
  }
  identity.set_incarnation(incarnation_);
  identity.set_version(version_);
  identity.set_model(served_model_);
  identity.set_model_hash(model_hash_);
  identity.set_tokenizer_hash(tokenizer_hash_);
  identity.set_dtype(options.dtype);
  identity.set_kv_cache_dtype(options.kv_cache_dtype);
  identity.set_tensor_parallel_size(tensor_parallel_size_);
  identity.set_batch_invariant(options.batch_invariant);
  identity.set_max_model_len(options.max_model_len);
  identity.set_max_num_seqs(options.max_num_seqs);
  identity.set_max_num_batched_tokens(options.max_num_batched_tokens);
  identity.set_page_size(options.page_size);
  identity.set_device(options.device);
  identity.set_pages_total(engine_->Stats().pages_total);
  identity.set_vocab(engine_->config().vocab);
  for (const AttentionSpec& spec : options.attention) identity.add_attention(spec.ToString());
  for (const int32_t id : engine_->config().eos_ids) identity.add_eos_ids(id);
  identity.set_max_queue(max_queue);
  return identity;
}

}  // namespace quire::rpc
