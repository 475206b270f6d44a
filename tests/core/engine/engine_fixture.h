// Shared by the engine's tests: small models of the repository, and requests run to their end.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "core/engine/engine.h"

namespace quire {

// QUIRE_TEST_ROOT: where tests/ is on a machine that runs a test built elsewhere (launch/gpu_check.sh).
inline std::string DataPath(const std::string& name) {
  const char* root = std::getenv("QUIRE_TEST_ROOT");
  return std::string(root != nullptr ? root : QUIRE_SOURCE_DIR) + "/tests/data/" + name;
}

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The array of integers behind "key" in a flat JSON file.
inline std::vector<int32_t> JsonInts(const std::string& path, const std::string& key) {
  const std::string text = ReadAll(path);
  size_t at = text.find("\"" + key + "\"");
  EXPECT_NE(at, std::string::npos) << key;
  at = text.find('[', at) + 1;
  std::vector<int32_t> out;
  std::stringstream list(text.substr(at, text.find(']', at) - at));
  for (std::string item; std::getline(list, item, ',');) out.push_back(std::stoi(item));
  return out;
}

// Tokens of retriever-2m (bytes behind a BOS) of some English text.
inline std::vector<int32_t> BytePrompt(int length, int offset = 0) {
  static const std::string text = ReadAll(DataPath("retriever-2m/README.md"));
  std::vector<int32_t> ids = {256};
  for (int i = 0; i + 1 < length; ++i) {
    ids.push_back(static_cast<unsigned char>(text[static_cast<size_t>(offset + i) % text.size()]));
  }
  return ids;
}

struct Output {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenLogprobs> logprobs;
  std::vector<std::optional<TokenLogprobs>> prompt_logprobs;
  int events = 0;
  TokenEvent last;
};

// Collects the events of requests by (request, sequence).
class Collector {
 public:
  EventCallback callback() {
    return [this](const TokenEvent& event) {
      Output& out = outputs_[event.request_id][event.sequence];
      EXPECT_FALSE(out.last.finished) << "an event after the last";
      EXPECT_EQ(event.index, static_cast<int>(out.ids.size()));
      out.ids.insert(out.ids.end(), event.token_ids.begin(), event.token_ids.end());
      out.text += event.text;
      out.logprobs.insert(out.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
      if (!event.prompt_logprobs.empty()) out.prompt_logprobs = event.prompt_logprobs;
      ++out.events;
      out.last = event;
    };
  }
  const Output& at(const std::string& id, int sequence = 0) { return outputs_[id][sequence]; }
  size_t sequences(const std::string& id) { return outputs_[id].size(); }

 private:
  std::map<std::string, std::map<int, Output>> outputs_;
};

inline std::unique_ptr<Engine> MakeEngine(const EngineOptions& options) {
  auto engine = Engine::Create(options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

inline EngineOptions ModelOptions(const std::string& name) {
  EngineOptions options;
  options.model = DataPath(name);
  options.device = "cpu";
  options.threads = 1;
  options.dtype = "float32";
  options.max_num_seqs = 8;
  options.kv_cache_bytes = 64 << 20;
  return options;
}

inline Output RunOne(Engine& engine, GenerationRequest request) {
  Collector collector;
  auto id = engine.Submit(std::move(request), collector.callback());
  EXPECT_TRUE(id.ok()) << id.status().ToString();
  if (!id.ok()) return {};
  const Status status = engine.Run();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(collector.at(*id).last.finished);
  EXPECT_TRUE(collector.at(*id).last.status.ok()) << collector.at(*id).last.status.ToString();
  return collector.at(*id);
}

inline GenerationRequest Greedy(std::vector<int32_t> prompt, int tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stopping.max_tokens = tokens;
  request.stopping.ignore_eos = true;
  return request;
}

}  // namespace quire
