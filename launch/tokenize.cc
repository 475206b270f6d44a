// quire tokenize: a text file in, token ids out; needs the model's tokenizer only.
#include <memory>
#include <string>
#include <vector>

#include "core/io/tokenizer.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct TokenizeFlags {
  std::string model, text_file, format = "text";
  bool no_special = false, plain = false;
};

Status RunTokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(flags.model));
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text_file));
  EncodeOptions options;
  options.add_special_tokens = !flags.no_special;
  options.parse_special_tokens = !flags.plain;
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(text, options));
  if (flags.format == "json") {
    WriteJson({{"token_ids", ids}});
    return OkStatus();
  }
  std::string out;
  for (int32_t id : ids)
    out += std::to_string(id) + "\t" +
           Json(tokenizer->IdToToken(id)).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  WriteOut(out);
  return OkStatus();
}

}  // namespace

Command AddTokenize(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("tokenize", "Token ids of a text file");
  auto flags = std::make_shared<TokenizeFlags>();
  app->footer("\nExample\n  quire tokenize --model DIR --text-file book.txt --format json");
  AddModelFlag(*app, &flags->model);
  app->add_option("--text-file", flags->text_file, "UTF-8 text; - is stdin")->required();
  app->add_flag("--no-special-tokens", flags->no_special,
                "leave out what the model's tokenizer puts around a text (BOS)");
  app->add_flag("--plain", flags->plain, "take special tokens' names in the text as plain text");
  AddFormatFlag(*app, &flags->format);
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunTokenize(*flags); }); }};
}

}  // namespace quire::launch
