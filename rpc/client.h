// Client: a service's calls as plain functions. Hides streams, retries and reconnection: what Generate or Score has
// begun goes on where it was when its connection breaks. Part of the installed library: names no type of gRPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/engine/request.h"
#include "core/io/chat_template.h"

namespace quire {

struct ClientOptions {
  std::string address;        // HOST:PORT of a group or a coordinator
  double connect_s = 10;      // how long a service may take to be reached at first
  // How long a broken stream, or a service that is UNAVAILABLE, is tried again, from the first failure since something
  // came last; 0: never.
  double retry_s = 60;
};

// Exactly one of text, token_ids and messages.
struct ClientPrompt {
  std::optional<std::string> text;
  std::vector<int32_t> token_ids;
  std::vector<ChatMessage> messages;
  bool add_special_tokens = true, parse_special_tokens = true;  // of text
};

struct ClientRequest {
  GenerationRequest parameters;  // its prompt stays empty; an empty request_id is chosen by the client
  std::vector<ClientPrompt> prompts;
  std::string model;             // empty: whichever is served
  std::string client;            // on whose behalf
  bool echo_token_ids = false;
  double timeout_s = 0;          // of the whole call; 0: none
};

struct ClientChunk {
  int prompt = 0;                         // index in ClientRequest::prompts
  TokenEvent event;                       // of one sequence; status stays OK
  std::vector<int32_t> prompt_token_ids;  // in the first chunk of sequence 0, when asked for
};

struct ClientScore {
  int64_t index = 0;  // of the text
  std::vector<int32_t> token_ids;
  std::vector<std::optional<TokenLogprobs>> logprobs;  // [token_ids], the first one absent
  double sum = 0;
};

struct ServiceInfo {
  std::string version, role, state, detail, host, model;
  int64_t pid = 0;
  int tensor_parallel_size = 0;
  int64_t max_model_len = 0;
  int vocab = 0;  // ids lie below it; 0 while the model is loading
  bool has_tokenizer = false, has_chat_template = false;
  std::vector<std::string> attention;
};

struct ServiceLoad {  // the sum over a coordinator's groups
  int groups = 0, available_groups = 0;
  int running = 0, waiting = 0;
  int64_t tokens_in_flight = 0, pages_free = 0, pages_total = 0;
  int64_t requests_finished = 0, generation_tokens = 0, prompt_tokens = 0;
};

// Thread safe: calls may be made from several threads at once.
class Client {
 public:
  // UNAVAILABLE when the service can't be reached within connect_s.
  static Result<std::unique_ptr<Client>> Connect(ClientOptions options);
  ~Client();

  // Returns when every sequence has ended, or with the call's status. on_chunk comes on the calling thread. `stop`, asked
  // twenty times a second from another thread, ends the request by a call to Abort, whose chunks still come; may be empty.
  Status Generate(const ClientRequest& request, const std::function<void(const ClientChunk&)>& on_chunk,
                  const std::function<bool()>& stop = {});
  // Scores texts, with the `top` best tokens beside each token. next gives the next one, or nothing at the end: called
  // from another thread, up to 64 texts ahead of the answers, which Score waits for before it returns. on_score comes
  // on the calling thread, once for each text and in their order, over however many connections: what has come is not
  // asked for again. A text that is refused ends the call when those before it have been answered. stop: as Generate's,
  // but ends it at once, with CANCELLED. timeout_s: of the whole call; 0: none.
  Status Score(const std::function<std::optional<ClientPrompt>()>& next, int top,
               const std::function<void(const ClientScore&)>& on_score, const std::function<bool()>& stop = {},
               double timeout_s = 0);

  Status Abort(const std::vector<std::string>& request_ids);
  Status Drain(std::optional<double> timeout_s);
  Result<ServiceInfo> Info();
  Result<ServiceLoad> Load();
  // Ready, by the health service.
  Result<bool> Ready();

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire
