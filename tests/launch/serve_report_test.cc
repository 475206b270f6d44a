// The arithmetic of `quire bench serve`, on numbers made by hand.
#include "launch/serve_report.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

using namespace launch;

TEST(Figures, PercentilesInterpolate) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Figures f = FiguresOf(values);
  EXPECT_EQ(f.mean, 50);
  EXPECT_EQ(f.median, 50);
  EXPECT_EQ(f.p90, 90);
  EXPECT_EQ(f.p99, 99);
  const Figures two = FiguresOf({4, 2});
  EXPECT_EQ(two.median, 3);
  EXPECT_NEAR(two.p90, 3.8, 1e-12);
  EXPECT_NEAR(two.p99, 3.98, 1e-12);
  const Figures one = FiguresOf({7});
  EXPECT_EQ(one.p99, 7);
  EXPECT_EQ(FiguresOf({}).mean, 0);
}

TEST(Goodput, TargetsAreReadOrRefused) {
  const auto targets = ParseGoodput("ttft:200,e2el:1500.5");
  ASSERT_TRUE(targets.ok()) << targets.status().ToString();
  EXPECT_EQ(targets->ttft, 200);
  EXPECT_EQ(targets->e2el, 1500.5);
  EXPECT_FALSE(targets->tpot.has_value());
  EXPECT_FALSE(ParseGoodput("")->ttft.has_value());
  for (const char* bad : {"ttft", "ttft:", "ttft:fast", "ttft:-1", "itl:3", "ttft:1,ttft:2", "ttft:1,", "ttft:inf"}) {
    const auto refused = ParseGoodput(bad);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_NE(refused.status().message().find("--goodput"), std::string::npos);
  }
}

// Sent at `sent`, a first token after `ttft`, then one each `gap`, all in seconds.
RequestRecord Record(double sent, double ttft, double gap, int tokens) {
  RequestRecord record;
  record.due_s = sent - 0.001;
  record.sent_s = sent;
  record.first_s = sent + ttft;
  record.last_s = record.first_s + gap * (tokens - 1);
  record.gaps_s.assign(static_cast<size_t>(tokens - 1), static_cast<float>(gap));
  record.prompt_tokens = 10;
  record.output_tokens = tokens;
  return record;
}

TEST(ServeReport, FiguresOfHandMadeRequests) {
  std::vector<RequestRecord> records = {
      Record(100, 0.5, 0.25, 3),   // ends at 101
      Record(101.5, 0.5, 0, 1),    // ends at 102: no time per token after the first
      Record(101, 1, 0.125, 17),   // ends at 104
      Record(102, 1, 1, 2)};       // failed
  records[3].status = Status(StatusCode::kUnavailable, "gone");
  records.push_back(records[3]);
  records[4].status = Status(StatusCode::kUnavailable, "gone later");
  records[4].first_s = records[4].last_s = 0;

  const Json report = ServeReport(records, *ParseGoodput("ttft:600,tpot:200"));
  EXPECT_EQ(report["completed"], 3);
  EXPECT_EQ(report["failed"], 2);
  EXPECT_EQ(report["failures"]["UNAVAILABLE"], 2);
  EXPECT_EQ(report["errors"]["UNAVAILABLE"], "gone");
  EXPECT_EQ(report["duration"], 4);  // 100 to 104
  EXPECT_EQ(report["total_input_tokens"], 30);
  EXPECT_EQ(report["total_output_tokens"], 21);
  EXPECT_EQ(report["request_throughput"], 0.75);
  EXPECT_EQ(report["output_throughput"], 5.25);
  EXPECT_EQ(report["total_token_throughput"], 12.75);
  // The first is too slow per token, the third to its first; a single token has no time per token to miss.
  EXPECT_EQ(report["request_goodput"], 0.25);
  EXPECT_EQ(report["max_concurrent_requests"], 2);
  EXPECT_NEAR(report["mean_ttft_ms"].get<double>(), 2000.0 / 3, 1e-6);
  EXPECT_NEAR(report["median_ttft_ms"].get<double>(), 500, 1e-6);
  EXPECT_NEAR(report["mean_tpot_ms"].get<double>(), (250 + 125) / 2.0, 1e-6);
  EXPECT_NEAR(report["mean_itl_ms"].get<double>(), (2 * 250 + 16 * 125) / 18.0, 1e-6);
  EXPECT_NEAR(report["mean_e2el_ms"].get<double>(), (1000 + 500 + 3000) / 3.0, 1e-6);
  EXPECT_NEAR(report["p99_send_delay_ms"].get<double>(), 1, 1e-6);

  EXPECT_TRUE(ServeReport(records, {})["request_goodput"].is_null());
  EXPECT_EQ(ServeReport({}, {})["request_throughput"], 0);
}

TEST(ServeReport, NoneOfAFailedRequestIsGood) {
  RequestRecord record = Record(1, 0.1, 0.1, 2);
  EXPECT_TRUE(IsGood(record, {}));
  record.status = Status(StatusCode::kInternal, "x");
  EXPECT_FALSE(IsGood(record, {}));
}

}  // namespace
}  // namespace quire
