// See agreement.h.
#include "rpc/coordinator/agreement.h"

#include <string>
#include <tuple>

namespace quire::rpc {
namespace {

std::string Attention(const v1::Identity& identity) {
  std::string list;
  for (const std::string& spec : identity.attention()) list += (list.empty() ? "" : ", ") + spec;
  return list;
}

}  // namespace

Status CheckAgreement(const v1::Identity& first, const v1::Identity& group) {
  const std::string first_attention = Attention(first), attention = Attention(group);
  // Policies choose whole pages.
  const std::string first_page = std::to_string(first.page_size()), page = std::to_string(group.page_size());
  for (const auto& [what, expected, given, remedy] :
       {std::tuple("model name", &first.model(), &group.model(), "start it with the same --model"),
        std::tuple("model hash", &first.model_hash(), &group.model_hash(), "start it with the same model files"),
        std::tuple("tokenizer hash", &first.tokenizer_hash(), &group.tokenizer_hash(),
                   "start it with the same tokenizer files"),
        std::tuple("dtype", &first.dtype(), &group.dtype(), "start it with the same --dtype"),
        std::tuple("cache dtype", &first.kv_cache_dtype(), &group.kv_cache_dtype(),
                   "start it with the same --kv-cache-dtype"),
        std::tuple("page size", &first_page, &page, "start it with the same --page-size"),
        std::tuple("attention", &first_attention, &attention, "start it with the same --attention")}) {
    if (*expected == *given) continue;
    return FailedPrecondition("group '" + group.group() + "' has " + what + " '" + *given +
                              "', the groups of this coordinator have '" + *expected + "'; " + remedy);
  }
  if (group.max_model_len() < first.max_model_len()) {
    return FailedPrecondition("group '" + group.group() + "' takes " + std::to_string(group.max_model_len()) +
                              " tokens, the groups of this coordinator " + std::to_string(first.max_model_len()) +
                              "; start it with the same --max-model-len");
  }
  return OkStatus();
}

std::string TakeoverWarning(const v1::Identity& first, const v1::Identity& group) {
  if (!group.batch_invariant()) {
    return "group '" + group.group() +
           "' does not run with --batch-invariant: when a request moves to or from it, tokens may change by rounding";
  }
  if (group.tensor_parallel_size() != first.tensor_parallel_size()) {
    return "group '" + group.group() + "' has " + std::to_string(group.tensor_parallel_size()) + " ranks, others " +
           std::to_string(first.tensor_parallel_size()) +
           ": when a request moves between them, tokens may change by rounding";
  }
  if (group.device() != first.device()) {
    return "group '" + group.group() + "' runs on " + group.device() + ", others on " + first.device() +
           ": when a request moves between them, tokens may change by rounding";
  }
  if (group.version() != first.version()) {
    return "group '" + group.group() + "' is version " + group.version() + ", others " + first.version() +
           ": when a request moves between them, tokens may change by rounding";
  }
  return "";
}

}  // namespace quire::rpc
