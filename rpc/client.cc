// See client.h.
#include "rpc/client.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "quire/v1/control.grpc.pb.h"
#include "quire/v1/generation.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"
#include "rpc/health.h"
#include "rpc/retry.h"
#include "rpc/score_texts.h"
#include "rpc/status.h"

namespace quire {
namespace {

using rpc::FromGrpc;

constexpr double kShortCallSeconds = 10;

std::chrono::system_clock::time_point After(double seconds) {
  return std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds));
}

std::string RandomId() {
  std::random_device device;
  char text[36];
  std::snprintf(text, sizeof text, "c-%08x%08x%08x", device(), device(), device());
  return text;
}

uint64_t RandomSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

Status WritePrompt(const ClientPrompt& prompt, v1::Prompt* message) {
  const int kinds = prompt.text.has_value() + !prompt.token_ids.empty() + !prompt.messages.empty();
  if (kinds != 1) {
    return InvalidArgument("a prompt has " + std::to_string(kinds) + " of text, token_ids and messages; give one");
  }
  if (prompt.text.has_value()) message->set_text(*prompt.text);
  for (const int32_t id : prompt.token_ids) message->mutable_token_ids()->add_ids(id);
  for (const ChatMessage& one : prompt.messages) {
    v1::Message* added = message->mutable_messages()->add_messages();
    added->set_role(one.role);
    added->set_content(one.content);
  }
  if (!prompt.add_special_tokens) message->set_add_special_tokens(false);
  if (!prompt.parse_special_tokens) message->set_parse_special_tokens(false);
  return OkStatus();
}

ClientChunk ReadChunk(const v1::GenerateChunk& m) {
  ClientChunk chunk;
  chunk.prompt = m.prompt_index();
  chunk.prompt_token_ids.assign(m.prompt_token_ids().begin(), m.prompt_token_ids().end());
  TokenEvent& event = chunk.event;
  event.request_id = m.request_id();
  event.sequence = m.sequence_index();
  event.index = m.token_index();
  event.token_ids.assign(m.token_ids().begin(), m.token_ids().end());
  event.text = m.text();
  for (const v1::TokenLogprob& one : m.logprobs()) event.logprobs.push_back(rpc::ReadLogprobs(one));
  for (const v1::TokenLogprob& one : m.prompt_logprobs()) {
    event.prompt_logprobs.push_back(one.has_id() ? std::optional(rpc::ReadLogprobs(one)) : std::nullopt);
  }
  event.reason = rpc::ReadReason(m.finish_reason());
  event.finished = m.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  if (!event.finished) return chunk;
  event.matched_stop = m.stop();
  if (m.matched_stop_case() == v1::GenerateChunk::kStopTokenId) event.matched_stop_id = m.stop_token_id();
  event.prompt_tokens = m.usage().prompt_tokens();
  event.completion_tokens = m.usage().completion_tokens();
  event.preemptions = m.usage().preemptions();
  event.attention = {m.usage().pages_read(), m.usage().pages_total()};
  event.timings = rpc::ReadTimings(m.timings());
  return chunk;
}

// Asks `stop` until it is gone, and calls `act` once when that says so.
class Watcher {
 public:
  Watcher(const std::function<bool()>& stop, std::function<void()> act) {
    if (!stop) return;
    thread_ = std::thread([this, stop, act = std::move(act)] {
      while (!done_) {
        if (stop()) return act();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    });
  }
  ~Watcher() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace

struct Client::Impl {
  ClientOptions options;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Generation::Stub> generation;
  std::unique_ptr<v1::Control::Stub> control;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  if (options.address.find(':') == std::string::npos) {
    return InvalidArgument("the address is '" + options.address + "'; it should be HOST:PORT");
  }
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->channel = rpc::MakeChannel(impl->options.address);
  if (!impl->channel->WaitForConnected(After(impl->options.connect_s))) {
    return Unavailable("no service answers at " + impl->options.address + " within " +
                       std::to_string(impl->options.connect_s) + " seconds; is quire serve running there?");
  }
  impl->generation = v1::Generation::NewStub(impl->channel);
  impl->control = v1::Control::NewStub(impl->channel);
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

Status Client::Generate(const ClientRequest& request, const std::function<void(const ClientChunk&)>& on_chunk,
                        const std::function<bool()>& stop) {
  v1::GenerateRequest message;
  rpc::WriteParameters(request.parameters, &message);
  message.set_request_id(request.parameters.request_id.empty() ? RandomId() : request.parameters.request_id);
  message.set_model(request.model);
  message.set_client(request.client);
  message.mutable_response()->set_echo_token_ids(request.echo_token_ids);
  message.set_resumable(impl_->options.retry_s > 0);
  for (const ClientPrompt& prompt : request.prompts) RETURN_IF_ERROR(WritePrompt(prompt, message.add_prompts()));

  const double deadline = request.timeout_s > 0 ? NowSeconds() + request.timeout_s : 0;
  const Watcher watcher(stop, [&] { (void)Abort({message.request_id()}); });
  // Were the service restarted, it could not know what it had drawn for a request without one.
  if (!message.sampling().has_seed()) message.mutable_sampling()->set_seed(RandomSeed());
  struct Arrived {
    std::vector<int32_t> tokens;
    bool finished = false;
  };
  std::map<std::pair<int, int>, Arrived> next;  // what has come of each sequence
  bool sent = false;                        // the service may know the request
  rpc::Retry retry(impl_->options.retry_s);
  while (true) {
    grpc::ClientContext context;
    if (deadline > 0) context.set_deadline(After(deadline - NowSeconds()));
    std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>> reader;
    const bool resuming = sent;
    if (resuming) {
      v1::ResumeRequest resume;
      resume.set_request_id(message.request_id());
      *resume.mutable_request() = message;
      for (const auto& [place, arrived] : next) {
        v1::ResumePosition* position = resume.add_positions();
        position->set_prompt_index(place.first);
        position->set_sequence_index(place.second);
        position->set_next_token_index(static_cast<int32_t>(arrived.tokens.size()));
        position->mutable_token_ids()->Assign(arrived.tokens.begin(), arrived.tokens.end());
        position->set_finished(arrived.finished);
      }
      reader = impl_->generation->Resume(&context, resume);
    } else {
      reader = impl_->generation->GenerateStream(&context, message);
      sent = true;
    }
    v1::GenerateChunk part;
    while (reader->Read(&part)) {
      Arrived& arrived = next[{part.prompt_index(), part.sequence_index()}];
      arrived.tokens.insert(arrived.tokens.end(), part.token_ids().begin(), part.token_ids().end());
      arrived.finished = part.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
      on_chunk(ReadChunk(part));
      retry.Progress();
    }
    const Status status = FromGrpc(reader->Finish());
    if (status.ok()) return status;
    const bool lost = resuming && status.code() == StatusCode::kNotFound;
    // Never arrived, or the service was restarted before anything came: it can be sent again as if for the first time.
    if (lost && next.empty()) {
      sent = false;
    } else if (lost) {
      return Unavailable("the service has lost the request '" + message.request_id() + "' in the middle of its output");
    } else if (status.code() != StatusCode::kUnavailable) {
      return status;
    }
    const std::optional<double> pause = retry.Pause(NowSeconds());
    if (!pause.has_value() || (stop && stop())) return status;
    std::this_thread::sleep_for(std::chrono::duration<double>(*pause));
  }
}

Status Client::Score(const std::function<std::optional<ClientPrompt>()>& next, int top,
                     const std::function<void(const ClientScore&)>& on_score, const std::function<bool()>& stop,
                     double timeout_s) {
  const auto take = [&](v1::ScoreRequest* request) -> Result<bool> {
    const std::optional<ClientPrompt> prompt = next();
    if (!prompt.has_value()) return false;
    request->set_top(top);
    RETURN_IF_ERROR(WritePrompt(*prompt, request->mutable_prompt()));
    return true;
  };
  rpc::ScoreTexts texts(impl_->generation.get(), take, impl_->options.retry_s,
                        timeout_s > 0 ? NowSeconds() + timeout_s : 0);
  const Watcher watcher(stop, [&] { texts.Stop(); });
  return texts.Run([&](const v1::ScoreResponse& response) {
    ClientScore score;
    score.index = response.index();
    score.token_ids.assign(response.token_ids().begin(), response.token_ids().end());
    for (const v1::TokenLogprob& one : response.logprobs()) {
      score.logprobs.push_back(one.has_id() ? std::optional(rpc::ReadLogprobs(one)) : std::nullopt);
    }
    score.sum = response.sum();
    on_score(score);
  });
}

Status Client::Abort(const std::vector<std::string>& request_ids) {
  v1::AbortRequest request;
  for (const std::string& id : request_ids) request.add_request_ids(id);
  v1::AbortResponse response;
  grpc::ClientContext context;
  context.set_deadline(After(kShortCallSeconds));
  return FromGrpc(impl_->control->Abort(&context, request, &response));
}

Status Client::Drain(std::optional<double> timeout_s) {
  v1::DrainRequest request;
  if (timeout_s.has_value()) request.set_timeout_s(*timeout_s);
  v1::DrainResponse response;
  grpc::ClientContext context;
  context.set_deadline(After(kShortCallSeconds));
  return FromGrpc(impl_->control->Drain(&context, request, &response));
}

Result<ServiceInfo> Client::Info() {
  grpc::ClientContext server_context, model_context;
  server_context.set_deadline(After(kShortCallSeconds));
  model_context.set_deadline(After(kShortCallSeconds));
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  RETURN_IF_ERROR(FromGrpc(impl_->control->GetServerInfo(&server_context, {}, &server)));
  const Status has_model = FromGrpc(impl_->control->GetModelInfo(&model_context, {}, &model));
  if (!has_model.ok() && has_model.code() != StatusCode::kUnavailable) return has_model;
  ServiceInfo info;
  info.version = server.version();
  info.role = server.role();
  info.state = v1::ServerState_Name(server.state()).substr(sizeof("SERVER_STATE_") - 1);
  std::transform(info.state.begin(), info.state.end(), info.state.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  info.detail = server.detail();
  info.host = server.host();
  info.pid = server.pid();
  info.tensor_parallel_size = server.tensor_parallel_size();
  info.model = model.model();
  info.max_model_len = model.max_model_len();
  info.vocab = model.vocab();
  info.has_tokenizer = model.has_tokenizer();
  info.has_chat_template = model.has_chat_template();
  info.attention.assign(model.attention().begin(), model.attention().end());
  return info;
}

Result<ServiceLoad> Client::Load() {
  grpc::ClientContext context;
  context.set_deadline(After(kShortCallSeconds));
  v1::GetLoadResponse response;
  RETURN_IF_ERROR(FromGrpc(impl_->control->GetLoad(&context, {}, &response)));
  ServiceLoad load;
  load.groups = response.groups_size();
  for (const v1::GroupLoad& group : response.groups()) load.available_groups += group.available() ? 1 : 0;
  const v1::GroupLoad& total = response.total();
  load.running = total.running();
  load.waiting = total.waiting();
  load.tokens_in_flight = total.tokens_in_flight();
  load.pages_free = total.pages_free();
  load.pages_total = total.pages_total();
  load.requests_finished = total.requests_finished();
  load.generation_tokens = total.generation_tokens();
  load.prompt_tokens = total.prompt_tokens();
  return load;
}

Result<bool> Client::Ready() { return rpc::CheckHealth(impl_->channel, "quire.v1.Generation", kShortCallSeconds); }

}  // namespace quire
