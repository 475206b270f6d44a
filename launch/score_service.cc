// quire score --address: the texts go to a service, which has only a few of them in hand at a time.
#include <utility>

#include "launch/progress.h"
#include "launch/score.h"
#include "launch/output.h"
#include "launch/signals.h"
#include "rpc/client.h"

namespace quire::launch {

Result<std::vector<ScoredText>> ScoreByService(const std::string& address, double connect_s, double retry_s,
                                               const std::vector<ScoreText>& texts, int top) {
  ClientOptions options;
  options.address = address;
  options.connect_s = connect_s;
  options.retry_s = retry_s;
  ASSIGN_OR_RETURN(const auto client, Client::Connect(std::move(options)));
  size_t sent = 0;
  const auto next = [&]() -> std::optional<ClientPrompt> {
    if (sent == texts.size()) return std::nullopt;
    const ScoreText& text = texts[sent++];
    ClientPrompt prompt;
    prompt.text = text.text;
    prompt.token_ids = text.token_ids;
    return prompt;
  };
  std::vector<ScoredText> scored;
  Progress progress("scoring");
  Status misplaced;
  const Status status = client->Score(
      next, top,
      [&](const ClientScore& score) {
        if (score.index != static_cast<int64_t>(scored.size()) || score.logprobs.size() != score.token_ids.size()) {
          misplaced = Internal("the service answered for text " + std::to_string(score.index) + " with " +
                               std::to_string(score.logprobs.size()) + " of " +
                               std::to_string(score.token_ids.size()) + " tokens where text " +
                               std::to_string(scored.size()) + " was next");
        }
        scored.push_back({score.token_ids, score.logprobs});
        progress.Update(static_cast<double>(scored.size()) / static_cast<double>(texts.size()));
      },
      [] { return Interrupted() || OutputBroken(); });
  progress.Finish();
  RETURN_IF_ERROR(misplaced);
  RETURN_IF_ERROR(status);
  if (scored.size() != texts.size()) {
    return Internal("the service scored " + std::to_string(scored.size()) + " of " + std::to_string(texts.size()) +
                    " texts");
  }
  return scored;
}

}  // namespace quire::launch
