// What became of each request of `quire bench serve`, and the figures made of that: throughput, goodput, and the
// latencies as SERVING.md defines them. Names are those of vLLM's benchmark.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "launch/output.h"

namespace quire::launch {

// Times are of NowSeconds.
struct RequestRecord {
  double due_s = 0, sent_s = 0;
  double first_s = 0, last_s = 0;  // the first and the last chunk with tokens; 0: none came
  std::vector<float> gaps_s;       // between chunks with tokens, one less than there were of them
  int64_t prompt_tokens = 0, output_tokens = 0;
  Status status;  // OK: all its tokens have come

  double ttft_s() const { return first_s - sent_s; }
  double e2el_s() const { return last_s - sent_s; }
  double tpot_s() const { return output_tokens > 1 ? (last_s - first_s) / static_cast<double>(output_tokens - 1) : 0; }
};

struct Figures {
  double mean = 0, median = 0, p90 = 0, p99 = 0;
};
// Percentiles interpolate between neighbours; all 0 of nothing.
Figures FiguresOf(std::vector<double> values);

// What a request must keep to count as good; in milliseconds, absent: anything goes.
struct GoodputTargets {
  std::optional<double> ttft, tpot, e2el;
};
// "ttft:200,tpot:50,e2el:5000". INVALID_ARGUMENT says what is wrong.
Result<GoodputTargets> ParseGoodput(const std::string& text);
bool IsGood(const RequestRecord& record, const GoodputTargets& targets);  // failed ones are not

// duration, completed, failed, total_input_tokens, total_output_tokens (of completed ones), request_throughput,
// output_throughput, total_token_throughput, request_goodput (null without targets), max_concurrent_requests,
// {mean,median,p90,p99}_{ttft,tpot,itl,e2el,send_delay}_ms, failures {status: count}, errors {status: first sentence}.
Json ServeReport(const std::vector<RequestRecord>& records, const GoodputTargets& targets);
// The same for people.
void WriteServeReport(const Json& report);

}  // namespace quire::launch
