// The page of `quire eval report`: what it draws where, that it is whole, and what it refuses.
#include "launch/report.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <sstream>

#include "tests/launch/program.h"

namespace quire {
namespace {

using launch::MakeCharts;
using launch::ReportChart;
using launch::WriteReport;
using Json = launch::Json;

Json Row(const std::string& spec, Json budget, double read, Json more) {
  Json row = {{"attention", spec.substr(0, spec.find(':'))}, {"token_budget", std::move(budget)}, {"spec", spec},
              {"context", 4096}, {"bytes_read", 1000 * read}, {"bytes_total", 1000}};
  row.update(more);
  return row;
}

Json Perplexity() {
  return {{"results",
           {Row("dense", nullptr, 1, {{"perplexity", 12.0}}), Row("quest:token_budget=512", 512, 0.5, {{"perplexity", 13.0}}),
            Row("quest:token_budget=256", 256, 0.25, {{"perplexity", 16.0}}),
            Row("quest:dense_layers=0:token_budget=256", 256, 0.2, {{"perplexity", 17.0}})}}};
}

Json Recall() {
  return {{"results", {Row("quest:token_budget=256", 256, 0.25, {{"recall", 0.9}, {"random", 0.2}, {"recent", 0.3}})}}};
}

TEST(Report, AChartForEachMeasureAndALineForEachPolicy) {
  const auto charts = MakeCharts({Perplexity(), Recall()});
  ASSERT_TRUE(charts.ok()) << charts.status().ToString();
  ASSERT_EQ(charts->size(), 2u);
  const ReportChart& chart = charts->front();
  EXPECT_EQ(chart.title, "Perplexity, context of 4096 tokens");
  ASSERT_EQ(chart.lines.size(), 3u);
  EXPECT_EQ(chart.lines[1].name, "quest");
  ASSERT_EQ(chart.lines[1].points.size(), 2u);
  EXPECT_EQ(chart.lines[1].points[0].budget, "256");  // by what is read
  EXPECT_EQ(chart.lines[1].points[0].read, 0.25);
  EXPECT_EQ(chart.lines[1].points[1].value, 13);
  EXPECT_EQ(chart.lines[2].name, "quest:dense_layers=0");
  EXPECT_TRUE(chart.beside.empty());
  ASSERT_EQ((*charts)[1].beside.size(), 2u);
  EXPECT_EQ((*charts)[1].beside[0].points[0].value, 0.2);
  EXPECT_EQ((*charts)[1].beside[1].points[0].value, 0.3);
}

TEST(Report, TheSameResultAgainReplacesTheOld) {
  Json later = Perplexity();
  later["results"][1]["perplexity"] = 14.0;
  const auto charts = MakeCharts({Perplexity(), later});
  ASSERT_TRUE(charts.ok());
  ASSERT_EQ(charts->front().lines[1].points.size(), 2u);
  EXPECT_EQ(charts->front().lines[1].points[1].value, 14);
}

// Every tag is closed, and nothing is fetched.
void ExpectWhole(const std::string& page) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-zA-Z0-9]+)([^>]*)>");
  for (std::sregex_iterator at(page.begin(), page.end(), tag), end; at != end; ++at) {
    const std::string inside = (*at)[3];
    if ((*at)[1] == "/") {
      ASSERT_FALSE(open.empty());
      ASSERT_EQ(open.back(), (*at)[2].str());
      open.pop_back();
    } else if (inside.empty() || inside.back() != '/') {
      open.push_back((*at)[2]);
    }
  }
  EXPECT_TRUE(open.empty());
  for (const char* foreign : {"http", "src=", "href=", "<script", "nan", "inf<"}) {
    EXPECT_EQ(page.find(foreign), std::string::npos) << foreign;
  }
}

TEST(Report, ThePageIsWholeAndItsPointsStandWhereTheirNumbersSay) {
  const auto charts = MakeCharts({Perplexity()});
  ASSERT_TRUE(charts.ok());
  const std::string page = WriteReport("A <title> & more", *charts);
  ExpectWhole(page);
  EXPECT_NE(page.find("<h1>A &lt;title&gt; &amp; more</h1>"), std::string::npos);
  // Values 12 … 17 and 0 … 100 % are round: they are the axes' ends.
  EXPECT_NE(page.find("<circle cx=\"630.0\" cy=\"360.0\""), std::string::npos);  // dense, at the right and below
  EXPECT_NE(page.find("<circle cx=\"182.0\" cy=\"20.0\""), std::string::npos);   // 17 at a fifth
  EXPECT_NE(page.find("<circle cx=\"350.0\" cy=\"292.0\""), std::string::npos);  // 13 at a half
  EXPECT_NE(page.find("quest, budget 256: 16 at 25 % read"), std::string::npos);
  EXPECT_NE(page.find("<td>quest</td><td>512</td><td>50 %</td><td>13</td>"), std::string::npos);
}

TEST(Report, OnePointAloneIsDrawnToo) {
  Json one = {{"results", {Row("quest:token_budget=64", 64, 0, {{"correct", 0}, {"trials", 5}})}}};
  const auto charts = MakeCharts({one});
  ASSERT_TRUE(charts.ok());
  ExpectWhole(WriteReport("one", *charts));
}

TEST(Report, WhatNoEvaluationMakesIsRefused) {
  EXPECT_FALSE(MakeCharts({}).ok());
  EXPECT_FALSE(MakeCharts({Json::array()}).ok());
  EXPECT_FALSE(MakeCharts({{{"results", Json::array()}}}).ok());
  for (const char* missing : {"perplexity", "spec", "bytes_read", "bytes_total"}) {
    Json spoilt = Perplexity();
    spoilt["results"][2].erase(missing);
    EXPECT_FALSE(MakeCharts({spoilt}).ok()) << missing;
  }
  Json text = Perplexity();
  text["results"][0]["perplexity"] = "12";
  EXPECT_FALSE(MakeCharts({text}).ok());
}

TEST(Report, TheProgramWritesIt) {
  const ScratchFolder scratch;
  const std::string json = scratch.Write("perplexity.json", Perplexity().dump()), page = scratch.Write("page.html", "");
  const ProgramResult result = RunQuire({"eval", "report", "--json", json, "--output", page, "--title", "Mine"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::ifstream in(page);
  std::stringstream text;
  text << in.rdbuf();
  ExpectWhole(text.str());
  EXPECT_NE(text.str().find("<h1>Mine</h1>"), std::string::npos);
  const std::string other = scratch.Write("other.json", "{\"results\": [{\"name\": \"decode\"}]}");
  const ProgramResult refused = RunQuire({"eval", "report", "--json", json, other, "--output", page});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("other.json"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace quire
