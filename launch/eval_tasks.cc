// quire eval tasks: questions about long texts, from a file in LongBench's format (arXiv 2308.14508): a JSON object a line
// with context, input, answers, and for classification all_classes. The context is prefilled densely; the question behind
// it is fed token by token as decode steps of the policy, and so is the answer, greedily.
#include <algorithm>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/io/chat_template.h"
#include "launch/command.h"
#include "launch/flags.h"
#include "launch/group.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/session.h"
#include "launch/task_metrics.h"

namespace quire::launch {
namespace {

constexpr const char* kContext = "{context}";
constexpr const char* kInput = "{input}";

struct TaskFlags {
  EngineFlags engine;
  AttentionFlags attention;
  std::string file, prompt = "{context}\n\n{input}\n", predictions, format = "text";
  std::vector<std::string> stop;
  bool chat = false;
  int tokens = 64;
  int64_t context = 0, limit = 0;
};

struct Task {
  std::string id, dataset, context, input;
  std::vector<std::string> answers, classes;
  std::vector<int32_t> prompt, question;  // prefilled; decoded
  bool shortened = false;
};

Result<std::vector<std::string>> Strings(const Json& value, const char* name) {
  std::vector<std::string> list;
  if (value.is_null()) return list;
  if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
  if (value.is_array()) {
    for (const Json& one : value) {
      if (one.is_string()) list.push_back(one.get<std::string>());
    }
    if (list.size() == value.size()) return list;
  }
  return InvalidArgument(std::string(name) + " is " + value.dump().substr(0, 60) + "; it must be a list of strings");
}

Result<Task> ParseTask(const std::string& line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("it is no JSON object");
  Task task;
  const auto text = [&](const char* name, bool needed, std::string* into) -> Status {
    const auto at = json.find(name);
    if (at == json.end() || at->is_null()) {
      return needed ? InvalidArgument(std::string("it has no ") + name) : OkStatus();
    }
    if (!at->is_string()) return InvalidArgument(std::string(name) + " is no string");
    *into = at->get<std::string>();
    if (FindInvalidUtf8(*into) != std::string::npos) return InvalidArgument(std::string(name) + " is no UTF-8");
    return OkStatus();
  };
  RETURN_IF_ERROR(text("context", true, &task.context));
  RETURN_IF_ERROR(text("input", true, &task.input));
  RETURN_IF_ERROR(text("_id", false, &task.id));
  RETURN_IF_ERROR(text("dataset", false, &task.dataset));
  const auto list = [&](const char* name) { return json.contains(name) ? json[name] : Json(nullptr); };
  ASSIGN_OR_RETURN(task.answers, Strings(list("answers"), "answers"));
  ASSIGN_OR_RETURN(task.classes, Strings(list("all_classes"), "all_classes"));
  if (task.answers.empty()) return InvalidArgument("it has no answers");
  return task;
}

Result<std::vector<Task>> ReadTasks(const std::string& path, int64_t limit) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  std::vector<Task> tasks;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line) && (limit == 0 || static_cast<int64_t>(tasks.size()) < limit);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto task = ParseTask(line);
    if (!task.ok()) return task.status().WithContext(path + ", line " + std::to_string(number));
    tasks.push_back(std::move(task).value());
  }
  if (tasks.empty()) return InvalidArgument(path + " holds no task");
  return tasks;
}

// The prompt's text, and where its context ends.
Result<std::pair<std::string, size_t>> MakePrompt(const TaskFlags& flags, const Tokenizer& tokenizer, const Task& task) {
  const size_t context = flags.prompt.find(kContext);
  const size_t input = flags.prompt.find(kInput);
  if (context == std::string::npos || input == std::string::npos || input < context) {
    return InvalidArgument("--prompt is '" + flags.prompt + "'; it must have {context}, and behind it {input}");
  }
  const size_t behind = context + std::string(kContext).size();
  std::string text = flags.prompt.substr(0, context) + task.context;
  const size_t end = text.size();
  text += flags.prompt.substr(behind, input - behind) + task.input +
          flags.prompt.substr(input + std::string(kInput).size());
  if (!flags.chat) return std::pair(std::move(text), end);
  const ChatMessage message{"user", text};
  ASSIGN_OR_RETURN(std::string rendered, ApplyChatTemplate(tokenizer, {&message, 1}));
  // Templates may trim a message's ends, never what is inside.
  const std::string inside = text.substr(text.find_first_not_of(" \t\r\n"));
  const size_t at = rendered.find(inside.substr(0, inside.find_last_not_of(" \t\r\n") + 1));
  if (at == std::string::npos) return Internal("the chat template changes the message; leave --chat out");
  return std::pair(std::move(rendered), at + end - (text.size() - inside.size()));
}

// Encodes both parts, and takes the middle out of a context that is too long.
Status Encode(const TaskFlags& flags, const Tokenizer& tokenizer, int64_t room, Task* task) {
  ASSIGN_OR_RETURN(const auto prompt, MakePrompt(flags, tokenizer, *task));
  const auto& [text, end] = prompt;
  EncodeOptions first, rest;
  first.add_special_tokens = !flags.chat;
  first.parse_special_tokens = rest.parse_special_tokens = flags.chat;
  rest.add_special_tokens = false;
  ASSIGN_OR_RETURN(task->prompt, tokenizer.Encode(text.substr(0, end), first));
  ASSIGN_OR_RETURN(task->question, tokenizer.Encode(text.substr(end), rest));
  const int64_t left = room - static_cast<int64_t>(task->question.size()) - flags.tokens;
  if (left < 2) {
    return InvalidArgument("a question of " + std::to_string(task->question.size()) + " tokens and " +
                           std::to_string(flags.tokens) + " of its answer leave no room in a context of " +
                           std::to_string(room) + "; give fewer --tokens or a longer --context");
  }
  if (static_cast<int64_t>(task->prompt.size()) > left) {
    task->shortened = true;
    std::vector<int32_t> kept(task->prompt.begin(), task->prompt.begin() + left - left / 2);
    kept.insert(kept.end(), task->prompt.end() - left / 2, task->prompt.end());
    task->prompt = std::move(kept);
  }
  if (task->prompt.empty()) return InvalidArgument("the context is empty");
  if (task->question.empty()) return InvalidArgument("nothing stands behind the context; put a newline into --prompt");
  return OkStatus();
}

struct Scores {
  int64_t tasks = 0, classified = 0;
  double f1 = 0, rouge = 0, exact = 0, classification = 0;
  void Add(const Task& task, const std::string& prediction) {
    ++tasks;
    f1 += TokenF1(prediction, task.answers);
    rouge += RougeL(prediction, task.answers);
    exact += ExactMatch(prediction, task.answers);
    if (task.classes.empty()) return;
    ++classified;
    classification += Classification(prediction, task.answers, task.classes);
  }
  Json ToJson() const {
    const double n = static_cast<double>(tasks);
    return {{"tasks", tasks},
            {"f1", f1 / n},
            {"rouge_l", rouge / n},
            {"exact_match", exact / n},
            {"classification", classified > 0 ? Json(classification / static_cast<double>(classified)) : Json(nullptr)}};
  }
};

Result<std::vector<std::string>> Answer(Engine& engine, const AttentionSpec& spec, const TaskFlags& flags,
                                        const std::vector<Task>& tasks, Progress& progress) {
  std::vector<std::string> answers(tasks.size()), ids;
  Status failure;
  size_t finished = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    GenerationRequest request;
    request.prompt = tasks[i].prompt;
    request.resume = GenerationRequest::Resume{0, tasks[i].question};
    request.sampling.temperature = 0;
    request.stopping.max_tokens = static_cast<int>(tasks[i].question.size()) + flags.tokens;
    request.stopping.min_tokens = static_cast<int>(tasks[i].question.size()) + 1;  // the question may hold a stop string
    request.stopping.stop = flags.stop;
    request.attention = spec;
    ASSIGN_OR_RETURN(ids.emplace_back(), engine.Submit(std::move(request), [&, i](const TokenEvent& event) {
      if (!event.status.ok()) failure = event.status;
      answers[i] += event.text;
      finished += event.finished ? 1 : 0;
    }));
  }
  RETURN_IF_ERROR(RunToEnd(engine, ids, [&] {
    progress.Update(static_cast<double>(finished) / static_cast<double>(tasks.size()),
                    std::to_string(finished) + " of " + std::to_string(tasks.size()) + " tasks");
  }));
  RETURN_IF_ERROR(failure);
  return answers;
}

Status RunTasks(const TaskFlags& flags, const Seat& seat) {
  if (flags.tokens < 1) return InvalidArgument("--tokens is " + std::to_string(flags.tokens) + "; it must be at least 1");
  if (flags.limit < 0 || flags.context < 0) return InvalidArgument("--limit and --context must not be negative");
  ASSIGN_OR_RETURN(const auto specs, CrossAttention(flags.attention, flags.engine.page_size));
  ASSIGN_OR_RETURN(std::vector<Task> tasks, ReadTasks(flags.file, flags.limit));
  std::ofstream predictions;
  if (!flags.predictions.empty()) {
    predictions.open(flags.predictions);
    if (!predictions) return InvalidArgument("--predictions: " + flags.predictions + " can't be written");
  }
  ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.engine, specs, 2));
  ASSIGN_OR_RETURN(auto engine, OpenEngine(seat, std::move(options)));
  const int64_t longest = engine->options().max_model_len;
  if (flags.context > longest) {
    return InvalidArgument("--context is " + std::to_string(flags.context) + "; the model takes " + std::to_string(longest));
  }
  int64_t shortened = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Status status = Encode(flags, *engine->tokenizer(), flags.context > 0 ? flags.context : longest, &tasks[i]);
    if (!status.ok()) return status.WithContext("task " + std::to_string(i + 1));
    shortened += tasks[i].shortened ? 1 : 0;
  }

  Json results = Json::array();
  std::vector<std::vector<std::string>> table = {{"attention", "tasks", "shortened", "F1", "ROUGE-L", "exact",
                                                  "classification", "pages read", "of", "seconds"}};
  Progress progress("tasks");
  for (const AttentionSpec& spec : specs) {
    progress.SetWhat("tasks, " + spec.ToString() + ":");
    const AttentionReads before = engine->Stats().attention;
    const double start = NowSeconds();
    ASSIGN_OR_RETURN(const auto answers, Answer(*engine, spec, flags, tasks, progress));
    Scores all;
    std::map<std::string, Scores> by_dataset;
    for (size_t i = 0; i < tasks.size(); ++i) {
      all.Add(tasks[i], answers[i]);
      if (!tasks[i].dataset.empty()) by_dataset[tasks[i].dataset].Add(tasks[i], answers[i]);
      if (!predictions.is_open()) continue;
      Scores one;
      one.Add(tasks[i], answers[i]);
      Json line = {{"_id", tasks[i].id}, {"spec", spec.ToString()}, {"prediction", answers[i]}, {"answers", tasks[i].answers}};
      line.update(one.ToJson());
      predictions << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    }
    const AttentionReads reads = engine->Stats().attention - before;
    Json row;
    RETURN_IF_ERROR(AddAttentionFields(spec, engine->options().page_size, &row));
    row.update(all.ToJson());
    row["shortened"] = shortened;
    AddReads(reads, &row);
    row["seconds"] = NowSeconds() - start;
    row["by_dataset"] = Json::object();
    for (const auto& [name, scores] : by_dataset) row["by_dataset"][name] = scores.ToJson();
    const Json classification = row["classification"];
    table.push_back({spec.ToString(), std::to_string(all.tasks), std::to_string(shortened),
                     Fixed(row["f1"].get<double>(), 4), Fixed(row["rouge_l"].get<double>(), 4),
                     Fixed(row["exact_match"].get<double>(), 4),
                     classification.is_null() ? "-" : Fixed(classification.get<double>(), 4),
                     row["pages_read"].dump(), row["pages_total"].dump(), Fixed(row["seconds"].get<double>(), 1)});
    results.push_back(std::move(row));
  }
  progress.Finish();
  if (predictions.is_open() && !predictions.flush()) {
    return ResourceExhausted("--predictions: " + flags.predictions + " could not be written to its end");
  }
  WriteResults(flags.format, std::move(results), table);
  return OkStatus();
}

}  // namespace

Command AddEvalTasks(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("tasks", "Questions about long texts (LongBench's format), per policy and budget");
  auto flags = std::make_shared<TaskFlags>();
  app->footer(R"(
Example
  quire eval tasks --model M.gguf --jsonl hotpotqa.jsonl --chat --context 4096 --tokens 32 \
    --attention dense,quest --token-budget 256,512
A line of the file: {"context": "…", "input": "…", "answers": ["…"], "all_classes": null, "dataset": "…", "_id": "…"}.
The context is prefilled densely, the question and the answer are decode steps of the policy. Contexts that are too long
lose their middle. F1, ROUGE-L, exact match and, where there are classes, classification are means over the tasks.)");
  app->add_option("--jsonl", flags->file, "tasks, a JSON object a line; - is stdin")->required();
  app->add_option("--prompt", flags->prompt, "how a prompt is made of {context} and {input}")->capture_default_str();
  app->add_flag("--chat", flags->chat, "put the prompt into the model's chat template");
  app->add_option("--context", flags->context, "most tokens of prompt and answer; 0: what the model takes")
      ->capture_default_str();
  app->add_option("--tokens", flags->tokens, "most tokens of an answer")->capture_default_str();
  app->add_option("--stop", flags->stop, "strings that end an answer");
  app->add_option("--limit", flags->limit, "take the first tasks only; 0: all")->capture_default_str();
  app->add_option("--predictions", flags->predictions, "a file for every answer with its scores, a JSON object a line");
  AddFormatFlag(*app, &flags->format);
  AddAttentionFlags(*app, &flags->attention, /*lists=*/true);
  AddEngineFlags(*app, &flags->engine);
  return {app, [flags] {
            return RunGroup(GroupOf(flags->engine), [&](const Seat& seat) { return RunTasks(*flags, seat); });
          }};
}

}  // namespace quire::launch
