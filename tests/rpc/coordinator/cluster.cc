// See cluster.h.
#include "tests/rpc/coordinator/cluster.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "core/base/clock.h"
#include "quire/v1/control.grpc.pb.h"

namespace quire {
namespace {

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

}  // namespace

Cluster::Cluster(int groups, const std::string& model, std::vector<std::string> flags)
    : model_(model), flags_(std::move(flags)) {
  coordinator_ =
      std::make_unique<ServiceProcess>(std::vector<std::string>{"coordinator", "--port", "0", "--name", "test"});
  EXPECT_TRUE(coordinator_->listening());
  groups_.resize(static_cast<size_t>(groups));
  for (int i = 0; i < groups; ++i) StartGroup(i);
  EXPECT_TRUE(WaitGroups(groups));
}

void Cluster::StartGroup(int i) {
  std::vector<std::string> arguments = {"serve",  "--port", "0", "--model", std::string(QUIRE_SOURCE_DIR "/tests/data/") + model_,
                                        "--coordinator", address(), "--threads", "1", "--group-name",
                                        "group" + std::to_string(i)};
  arguments.insert(arguments.end(), flags_.begin(), flags_.end());
  auto& slot = groups_[static_cast<size_t>(i)];
  slot.reset();
  slot = std::make_unique<ServiceProcess>(arguments);
  EXPECT_TRUE(slot->listening());
}

void Cluster::RestartCoordinator() {
  const std::string address = coordinator_->address();
  coordinator_->Kill();
  const std::string port = address.substr(address.rfind(':') + 1);
  coordinator_ =
      std::make_unique<ServiceProcess>(std::vector<std::string>{"coordinator", "--port", port, "--name", "test"});
  EXPECT_EQ(coordinator_->address(), address);
}

v1::GetLoadResponse Cluster::Load() {
  const auto stub = v1::Control::NewStub(grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  v1::GetLoadResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  (void)stub->GetLoad(&context, {}, &response);
  return response;
}

bool Cluster::WaitGroups(int available, double seconds) {
  for (const double end = NowSeconds() + seconds; NowSeconds() < end; SleepMs(30)) {
    int there = 0;
    const v1::GetLoadResponse load = Load();
    for (const v1::GroupLoad& group : load.groups()) there += group.available() ? 1 : 0;
    if (there == available) return true;
  }
  return false;
}

bool Cluster::WaitIdle(double seconds) {
  for (const double end = NowSeconds() + seconds; NowSeconds() < end; SleepMs(50)) {
    const v1::GroupLoad total = Load().total();
    if (total.running() == 0 && total.waiting() == 0 && total.tokens_in_flight() == 0 && total.pages_total() > 0 &&
        total.pages_free() == total.pages_total()) {
      return true;
    }
  }
  return false;
}

Streams::Streams(const std::string& address, std::vector<ClientStream> streams, double retry_s)
    : streams_(std::move(streams)), running_(static_cast<int>(streams_.size())) {
  for (ClientStream& stream : streams_) {
    const size_t n = stream.request.prompts.size() * static_cast<size_t>(stream.request.parameters.sampling.n);
    stream.tokens.assign(n, {});
    stream.texts.assign(n, "");
    stream.reasons.assign(n, FinishReason::kUnspecified);
    threads_.emplace_back([this, &stream, address, retry_s] {
      ClientOptions options;
      options.address = address;
      options.retry_s = retry_s;
      auto client = Client::Connect(options);
      if (!client.ok()) {
        stream.status = client.status();
      } else {
        stream.status = (*client)->Generate(stream.request, [&](const ClientChunk& chunk) {
          const size_t at = static_cast<size_t>(chunk.prompt * stream.request.parameters.sampling.n + chunk.event.sequence);
          EXPECT_EQ(chunk.event.index, static_cast<int>(stream.tokens[at].size()));
          stream.tokens[at].insert(stream.tokens[at].end(), chunk.event.token_ids.begin(), chunk.event.token_ids.end());
          stream.texts[at] += chunk.event.text;
          if (chunk.event.finished) stream.reasons[at] = chunk.event.reason;
          tokens_ += static_cast<int64_t>(chunk.event.token_ids.size());
        });
      }
      --running_;
    });
  }
}

void Streams::Join() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool Streams::WaitTokens(int64_t count, double seconds) const {
  for (const double end = NowSeconds() + seconds; tokens_ < count && NowSeconds() < end && !done();) SleepMs(2);
  return tokens_ >= count && !done();
}

std::vector<ClientStream> MixedStreams(const std::vector<std::string>& policies, int per_policy, int prompt, int tokens) {
  std::vector<ClientStream> streams;
  for (const std::string& policy : policies) {
    for (int i = 0; i < per_policy; ++i) {
      ClientStream stream;
      ClientPrompt text;
      text.text = "";
      while (static_cast<int>(text.text->size()) < prompt) *text.text += "The key of day " + std::to_string(i * 7) + ". ";
      stream.request.prompts.push_back(text);
      GenerationRequest& parameters = stream.request.parameters;
      parameters.stopping.max_tokens = tokens;
      parameters.stopping.ignore_eos = true;
      parameters.attention = *AttentionSpec::Parse(policy);
      parameters.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
      parameters.sampling.seed = 100 + static_cast<uint64_t>(i);
      streams.push_back(std::move(stream));
    }
  }
  return streams;
}

void ExpectEqual(const std::vector<ClientStream>& disturbed, const std::vector<ClientStream>& undisturbed) {
  ASSERT_EQ(disturbed.size(), undisturbed.size());
  for (size_t i = 0; i < disturbed.size(); ++i) {
    ASSERT_TRUE(undisturbed[i].status.ok()) << undisturbed[i].status.ToString();
    EXPECT_TRUE(disturbed[i].status.ok()) << "stream " << i << ": " << disturbed[i].status.ToString();
    EXPECT_EQ(disturbed[i].tokens, undisturbed[i].tokens) << "stream " << i;
    EXPECT_EQ(disturbed[i].texts, undisturbed[i].texts) << "stream " << i;
    EXPECT_EQ(disturbed[i].reasons, undisturbed[i].reasons) << "stream " << i;
  }
}

}  // namespace quire
