// quire bench serve: requests sent to a running service at the times of a Poisson process or of a trace, each when it is
// due whether or not the ones before have been answered; what came of them as throughput and latencies.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/serve_report.h"
#include "launch/serve_trace.h"
#include "launch/serve_workload.h"
#include "launch/signals.h"
#include "rpc/client.h"

namespace quire::launch {
namespace {

constexpr double kSettleSeconds = 5;  // that pages may take to be free after the last answer
constexpr auto kGlance = std::chrono::milliseconds(50);

struct BenchServeFlags {
  std::string address = "127.0.0.1:50051", format = "text", trace, goodput, attention, model;
  WorkloadOptions workload;
  double request_rate = std::numeric_limits<double>::infinity();
  bool rate_given = false, time_scale_given = false;
  std::string input_len_given, trace_only_given;
  int64_t max_concurrency = 0;
  int num_warmups = 1;
  double temperature = 0, timeout = 0, connect_timeout = 10;
};

// Calls `work` for numbers on threads of its own, at most `most` at a time (0: any number), making a thread only when all
// there are have something to do: a thread that waits for a service costs a stack and nothing else.
class Workers {
 public:
  Workers(size_t most, std::function<void(size_t)> work)
      : most_(most > 0 ? most : std::numeric_limits<size_t>::max()), work_(std::move(work)) {}
  ~Workers() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    more_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  // False when none was free within kGlance.
  bool Give(size_t number) {
    std::unique_lock lock(mutex_);
    if (!less_.wait_for(lock, kGlance, [&] { return busy_ < most_; })) return false;
    ++busy_;
    given_.push_back(number);
    if (threads_.size() < busy_) {
      threads_.emplace_back([this] { Loop(); });
    } else {
      more_.notify_one();
    }
    return true;
  }
  // Until all that was given is done, for at most kGlance.
  bool WaitIdle() {
    std::unique_lock lock(mutex_);
    return less_.wait_for(lock, kGlance, [&] { return busy_ == 0; });
  }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      more_.wait(lock, [&] { return closing_ || !given_.empty(); });
      if (given_.empty()) return;
      const size_t number = given_.front();
      given_.pop_front();
      lock.unlock();
      work_(number);
      lock.lock();
      --busy_;
      less_.notify_one();
    }
  }

  const size_t most_;
  const std::function<void(size_t)> work_;
  std::mutex mutex_;
  std::condition_variable more_, less_;
  std::deque<size_t> given_;
  std::vector<std::thread> threads_;
  size_t busy_ = 0;
  bool closing_ = false;
};

ClientRequest RequestOf(const BenchServeFlags& flags, const PlannedRequest& planned) {
  ClientRequest request;
  request.prompts.emplace_back().token_ids = planned.prompt;
  request.parameters.sampling.temperature = static_cast<float>(flags.temperature);
  request.parameters.sampling.seed = flags.workload.seed;
  request.parameters.stopping.max_tokens = planned.output_tokens;
  request.parameters.stopping.ignore_eos = true;
  request.model = flags.model;
  request.timeout_s = flags.timeout;
  if (!flags.attention.empty()) request.parameters.attention = *AttentionSpec::Parse(flags.attention);  // checked
  return request;
}

// Sends one request and waits for its end. Times are taken when a chunk is handed over, on a thread that waits for it.
void Send(Client& client, const ClientRequest& request, RequestRecord* record) {
  const int64_t asked = request.parameters.stopping.max_tokens;
  record->prompt_tokens = static_cast<int64_t>(request.prompts[0].token_ids.size());
  record->gaps_s.reserve(static_cast<size_t>(asked));
  record->sent_s = NowSeconds();
  record->status = client.Generate(request, [record](const ClientChunk& chunk) {
    const double now = NowSeconds();
    if (chunk.event.token_ids.empty()) return;
    if (record->first_s == 0) {
      record->first_s = now;
    } else {
      record->gaps_s.push_back(static_cast<float>(now - record->last_s));
    }
    record->last_s = now;
    record->output_tokens += static_cast<int64_t>(chunk.event.token_ids.size());
  });
  if (record->status.ok() && record->output_tokens != asked) {
    record->status = Cancelled("the service ended a request after " + std::to_string(record->output_tokens) + " of " +
                               std::to_string(asked) + " tokens");
  }
}

// Sends all of them, each when it is due. What Ctrl-C has left unsent is not among the records.
std::vector<RequestRecord> SendAll(Client& client, const BenchServeFlags& flags,
                                   const std::vector<PlannedRequest>& plan) {
  char name[32];
  std::snprintf(name, sizeof name, "bench-%08x-", std::random_device()());
  std::vector<RequestRecord> records(plan.size());
  std::atomic<size_t> done = 0;
  size_t sent = 0;
  Progress progress("bench serve");
  const auto glance = [&] {
    progress.Update(static_cast<double>(done) / static_cast<double>(plan.size()),
                    std::to_string(sent) + " sent, " + std::to_string(done) + " done");
    return !Interrupted() && !OutputBroken();
  };
  Workers workers(static_cast<size_t>(flags.max_concurrency), [&](size_t i) {
    ClientRequest request = RequestOf(flags, plan[i]);
    request.parameters.request_id = name + std::to_string(i);
    Send(client, request, &records[i]);
    ++done;
  });
  const double start = NowSeconds();
  bool goes_on = true;
  for (; sent < plan.size() && goes_on; ++sent) {
    records[sent].due_s = start + plan[sent].due_s;
    for (double left; goes_on && (left = records[sent].due_s - NowSeconds()) > 0; goes_on = glance()) {
      std::this_thread::sleep_for(std::min(std::chrono::duration<double>(left), std::chrono::duration<double>(kGlance)));
    }
    while (goes_on && !workers.Give(sent)) goes_on = glance();
    if (!goes_on) break;
  }
  while (goes_on && !workers.WaitIdle()) goes_on = glance();
  if (!goes_on) {
    std::vector<std::string> ids;
    for (size_t i = 0; i < sent; ++i) ids.push_back(name + std::to_string(i));
    (void)client.Abort(ids);
    while (!workers.WaitIdle()) continue;
    records.resize(sent);
  }
  progress.Finish();
  return records;
}

Result<std::vector<PlannedRequest>> Plan(const BenchServeFlags& flags, const ServiceInfo& info) {
  WorkloadOptions options = flags.workload;
  options.vocab = info.vocab;
  options.max_model_len = info.max_model_len;
  if (flags.trace.empty()) {
    options.request_rate = flags.request_rate;
    if (!flags.trace_only_given.empty()) return InvalidArgument(flags.trace_only_given + " needs --trace");
    return RandomWorkload(options);
  }
  if (!flags.input_len_given.empty()) {
    return InvalidArgument(flags.input_len_given + " is for requests without --trace; a trace's lengths are scaled by "
                           "--length-scale and cut by --max-input-len and --max-output-len");
  }
  if (flags.rate_given && flags.time_scale_given) {
    return InvalidArgument("give one of --request-rate and --time-scale: both say how fast the trace's requests come");
  }
  options.request_rate = flags.rate_given ? flags.request_rate : 0;
  if (flags.rate_given && !(flags.request_rate > 0)) {
    return InvalidArgument("--request-rate is " + Fixed(flags.request_rate, 3) + "; it must be above 0, or inf");
  }
  ASSIGN_OR_RETURN(const std::vector<TraceRequest> trace, ReadTrace(flags.trace, options.num_prompts));
  return TraceWorkload(trace, options);
}

// Waits until the service is as idle as before, or kSettleSeconds have passed; what it is then.
Result<ServiceLoad> Settle(Client& client, const ServiceLoad& before, double* seconds) {
  const double start = NowSeconds();
  while (true) {
    ASSIGN_OR_RETURN(const ServiceLoad load, client.Load());
    *seconds = NowSeconds() - start;
    const bool idle = load.running == 0 && load.waiting == 0 && load.pages_free >= before.pages_free;
    if (idle || *seconds > kSettleSeconds) return load;
    std::this_thread::sleep_for(kGlance);
  }
}

Status RunBenchServe(const BenchServeFlags& flags) {
  const bool json = flags.format == "json";
  ASSIGN_OR_RETURN(const GoodputTargets targets, ParseGoodput(flags.goodput));
  if (flags.max_concurrency < 0) {
    return InvalidArgument("--max-concurrency is " + std::to_string(flags.max_concurrency) +
                           "; it must be at least 1, or 0 for no limit");
  }
  if (!flags.attention.empty()) RETURN_IF_ERROR(AttentionSpec::Parse(flags.attention).status());
  ClientOptions options;
  options.address = flags.address;
  options.connect_s = flags.connect_timeout;
  options.retry_s = 0;  // what fails is counted
  ASSIGN_OR_RETURN(const auto client, Client::Connect(std::move(options)));
  ASSIGN_OR_RETURN(const ServiceInfo info, client->Info());
  if (info.vocab < 1) return Unavailable("the service at " + flags.address + " is " + info.state + ": " + info.detail);
  ASSIGN_OR_RETURN(const std::vector<PlannedRequest> plan, Plan(flags, info));

  for (int i = 0; i < flags.num_warmups && !Interrupted(); ++i) {
    RequestRecord record;
    Send(*client, RequestOf(flags, plan[static_cast<size_t>(i) % plan.size()]), &record);
    RETURN_IF_ERROR(record.status.WithContext("the first request, a trial"));
  }
  double settled_s = 0;
  ASSIGN_OR_RETURN(const ServiceLoad idle, client->Load());
  ASSIGN_OR_RETURN(const ServiceLoad before, Settle(*client, idle, &settled_s));
  const std::vector<RequestRecord> records = SendAll(*client, flags, plan);
  ASSIGN_OR_RETURN(const ServiceLoad after, Settle(*client, before, &settled_s));

  const Json report = ServeReport(records, targets);
  if (json) {
    Json out;
    out["address"] = flags.address;
    out["model"] = info.model;
    out["trace"] = flags.trace.empty() ? Json(nullptr) : Json(flags.trace);
    out["num_prompts"] = records.size();
    out["seed"] = flags.workload.seed;
    out["max_concurrency"] = flags.max_concurrency > 0 ? Json(flags.max_concurrency) : Json(nullptr);
    out.update(report);
    out["service"] = {{"groups", after.groups},
                      {"pages_total", after.pages_total},
                      {"pages_free_before", before.pages_free},
                      {"pages_free_after", after.pages_free},
                      {"settle_s", settled_s},
                      {"prompt_tokens", after.prompt_tokens - before.prompt_tokens},
                      {"generation_tokens", after.generation_tokens - before.generation_tokens}};
    WriteJson(out);
  } else {
    WriteServeReport(report);
    WriteOut("\npages free: " + std::to_string(before.pages_free) + " of " + std::to_string(before.pages_total) +
             " before, " + std::to_string(after.pages_free) + " of " + std::to_string(after.pages_total) + " " +
             Fixed(settled_s, 1) + " s after\n");
  }
  if (after.pages_free < before.pages_free) {
    Log(LogLevel::kWarning, std::to_string(before.pages_free - after.pages_free) +
                                " pages more than before are in use; is somebody else using the service?");
  }
  return Interrupted() ? Cancelled("interrupted") : OkStatus();
}

}  // namespace

Command AddBenchServe(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("serve", "Load on a running service: throughput and latencies");
  auto flags = std::make_shared<BenchServeFlags>();
  WorkloadOptions& work = flags->workload;
  app->footer(R"(
Examples
  quire bench serve --address 127.0.0.1:50051 --num-prompts 200 --request-rate 4 --input-len 512 --output-len 64
  quire bench serve --trace AzureLLMInferenceTrace_conv.csv --request-rate 8 --length-scale 0.1 --goodput ttft:500,tpot:50
Outputs go on to their length, whatever the model says. Nothing is sent twice: what fails is counted by its status.)");
  AddFlag(*app, "--address", &flags->address, "HOST:PORT of a group or a coordinator");
  app->add_option("--num-prompts", work.num_prompts, "requests sent; of a trace the first ones")->capture_default_str();
  app->add_option("--request-rate", flags->request_rate,
                  "requests a second, inf sends all at once; with --trace its arrivals, faster or slower")
      ->capture_default_str()
      ->each([flags](const std::string&) { flags->rate_given = true; });
  app->add_option("--burstiness", work.burstiness, "shape of the gaps' gamma distribution: 1 is Poisson")
      ->capture_default_str();
  app->add_option("--max-concurrency", flags->max_concurrency, "requests in flight; more wait here; 0: any number")
      ->capture_default_str();
  app->add_option("--goodput", flags->goodput, "what a good request keeps, in ms: ttft:…,tpot:…,e2el:…")->join(',');
  app->add_option("--seed", work.seed, "of ids, lengths and arrivals")->capture_default_str();
  const auto random = [&](const std::string& name, auto* value, const std::string& help) {
    app->add_option(name, *value, help)->capture_default_str()->group("Random requests")->each(
        [flags, name](const std::string&) { flags->input_len_given = name; });
  };
  random("--input-len", &work.input_len, "tokens of a prompt");
  random("--output-len", &work.output_len, "tokens of an output");
  random("--random-range-ratio", &work.range_ratio, "lengths are drawn from length × (1 ± this)");
  const auto trace = [&](const std::string& name, auto* value, const std::string& help) {
    return app->add_option(name, *value, help)->capture_default_str()->group("Trace")->each(
        [flags, name](const std::string&) { flags->trace_only_given = name; });
  };
  app->add_option("--trace", flags->trace, "Azure's CSV or Mooncake's JSONL")->type_name("FILE")->group("Trace");
  trace("--time-scale", &work.time_scale, "of the time between arrivals: 0.5 is twice as fast")
      ->each([flags](const std::string&) { flags->time_scale_given = true; });
  trace("--length-scale", &work.length_scale, "of prompts, outputs, and the blocks that prompts share");
  trace("--max-input-len", &work.max_input_len, "longer prompts, scaled, are cut; 0: none");
  trace("--max-output-len", &work.max_output_len, "longer outputs, scaled, are cut; 0: none");
  const std::string group = "Requests";
  app->add_option("--temperature", flags->temperature, "0: greedy")->capture_default_str()->group(group);
  app->add_option("--attention", flags->attention, "one of the service's policies, options after colons; empty: its default")->group(group);
  app->add_option("--served-model-name", flags->model, "refuse to be answered by another model")->group(group);
  app->add_option("--timeout", flags->timeout, "seconds for one request; 0: no limit")->capture_default_str()->group(group);
  app->add_option("--num-warmups", flags->num_warmups, "requests sent one by one before, and not counted")
      ->capture_default_str()
      ->group(group);
  app->add_option("--connect-timeout", flags->connect_timeout, "seconds to reach the service")
      ->capture_default_str()
      ->group(group);
  AddFormatFlag(*app, &flags->format);
  return {app, [flags] { return RunGroup({}, [&](const Seat&) { return RunBenchServe(*flags); }); }};
}

}  // namespace quire::launch
