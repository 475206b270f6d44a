// quire eval report: the results of other evaluations as a page with charts (report.h).
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/report.h"
#include "launch/session.h"

namespace quire::launch {
namespace {

struct ReportFlags {
  std::vector<std::string> files;
  std::string output, title = "Attention policies: accuracy against what is read";
};

Status RunReport(const ReportFlags& flags) {
  std::vector<Json> evaluations;
  for (const std::string& file : flags.files) {
    ASSIGN_OR_RETURN(const std::string text, ReadText(file));
    evaluations.push_back(Json::parse(text, nullptr, /*allow_exceptions=*/false));
    if (evaluations.back().is_discarded()) return InvalidArgument(file + " is no JSON");
    const auto alone = MakeCharts({evaluations.back()});  // so that what is wrong is said with the file's name
    if (!alone.ok()) return alone.status().WithContext(file);
  }
  ASSIGN_OR_RETURN(const std::vector<ReportChart> charts, MakeCharts(evaluations));
  const std::string page = WriteReport(flags.title, charts);
  if (flags.output == "-") {
    WriteOut(page);
    return OutputStatus();
  }
  std::ofstream out(flags.output, std::ios::binary);
  if (!(out << page).flush()) return InvalidArgument("--output: " + flags.output + " can't be written");
  return OkStatus();
}

}  // namespace

Command AddEvalReport(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("report", "What other evaluations printed as json, drawn: an HTML page of its own");
  auto flags = std::make_shared<ReportFlags>();
  app->footer(R"(
Example
  quire eval perplexity … --attention dense,quest --token-budget 256,512 --format json > perplexity.json
  quire eval recall … --format json > recall.json
  quire eval report --json perplexity.json recall.json --output report.html
A chart for each evaluation and context: accuracy against the share of the cache that was read, one line a policy.)");
  app->add_option("--json", flags->files, "what evaluations printed with --format json; - is stdin")->required();
  app->add_option("--output", flags->output, "the page; - is stdout")->required();
  app->add_option("--title", flags->title, "its heading")->capture_default_str();
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunReport(*flags); }); }};
}

}  // namespace quire::launch
