// Requests in, parts out to groups, and what becomes of parts whose group is lost. Events: dispatcher_events.cc. See
// dispatcher.h.
#include "rpc/coordinator/dispatcher.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "rpc/convert.h"
#include "rpc/coordinator/dispatcher_state.h"

namespace quire::rpc {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// A request that has taken this many groups with it without a token in between is the likely cause.
constexpr int kMostLostInVain = 5;
constexpr size_t kNameBytes = 160;  // of the client's id in a submission's name

// Of a client's id, what a name may have: no control characters, no half of a UTF-8 character.
std::string NameBeginning(const std::string& id) {
  size_t end = std::min(id.size(), kNameBytes);
  while (end < id.size() && end > 0 && (static_cast<unsigned char>(id[end]) & 0xc0) == 0x80) --end;
  std::string name = id.substr(0, end);
  for (char& c : name) c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '/' : c;
  return name;
}

std::mt19937_64 DrawSeeds() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

}  // namespace

Dispatcher::Dispatcher(DispatcherOptions options)
    : options_(std::move(options)),
      seeds_(DrawSeeds()),
      queue_(options_.max_queue, options_.priority_tokens) {}

Dispatcher::~Dispatcher() = default;

// --- requests ---

void Dispatcher::Submit(GenerationRequest request, const std::string& client, EventCallback callback, double now) {
  auto flight = std::make_unique<Flight>();
  Flight* const f = flight.get();
  f->client = client;
  f->callback = std::move(callback);
  f->submitted = now;
  if (!request.sampling.seed.has_value()) request.sampling.seed = seeds_();
  f->sequences.resize(static_cast<size_t>(std::max(1, request.sampling.n)));
  if (request.resume.has_value()) {
    f->first = request.resume->sequence;
    f->sequences[0].tokens = std::move(request.resume->tokens);
    request.resume.reset();
  }
  f->unfinished = static_cast<int>(f->sequences.size());
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t room = groups_.empty() ? prompt + request.stopping.max_tokens
                                       : groups_.front()->identity.max_model_len();
  f->limit = request.forced.empty() ? std::clamp<int64_t>(request.stopping.max_tokens, 0, std::max<int64_t>(0, room - prompt))
                                    : static_cast<int64_t>(request.forced.size());
  f->request = std::move(request);
  int usable = 0, page_size = 0;
  for (const auto& group : groups_) {
    if (!Usable(*group)) continue;
    ++usable;
    page_size = group->identity.page_size();
  }
  if (groups_.size() > 1 && page_size > 0) f->keys = PrefixKeys(f->request.prompt, page_size);

  if (flights_.contains(f->request.request_id)) {
    return EndSequences(f, Status(StatusCode::kAlreadyExists, "a request '" + f->request.request_id +
                                                                  "' is in flight; give another request_id"));
  }
  flights_.emplace(f->request.request_id, std::move(flight));
  const int n = static_cast<int>(f->sequences.size());
  const bool spread = WorthSpreading(prompt, f->limit, n, usable);
  if (queue_.size() + static_cast<size_t>(spread ? n : 1) > options_.max_queue) {
    return FailFlight(f, ResourceExhausted("the queue is full: " + std::to_string(queue_.size()) +
                                           " requests wait for a group (--max-queue " +
                                           std::to_string(options_.max_queue) + "); try again later"),
                      now);
  }
  if (flights_.size() == 1) last_progress_ = now;
  for (int i = 0; i < n; i += spread ? 1 : n) Queue(NewPart(f, i, spread ? 1 : n, 0), /*again=*/false);
  Dispatch(now);
}

void Dispatcher::Cancel(const std::string& request_id, double now) {
  const auto at = flights_.find(request_id);
  if (at == flights_.end() || at->second->cancelled) return;
  Flight* const flight = at->second.get();
  flight->cancelled = true;
  const std::vector<Part*> parts(flight->parts.begin(), flight->parts.end());
  std::vector<Part*> waiting;
  for (Part* part : parts) {
    if (part->group == nullptr) {
      waiting.push_back(part);
      continue;
    }
    v1::AttemptId* abort = part->group->pending.add_aborts();
    abort->set_request_id(part->name);
    abort->set_attempt(part->attempt);
    Flush(part->group);  // at once: it frees a place
  }
  // Last: the flight may end with them.
  for (Part* part : waiting) AbortSequences(part, now);
}

Dispatcher::Part* Dispatcher::NewPart(Flight* flight, int first, int count, uint32_t attempt) {
  auto part = std::make_unique<Part>();
  Part* const p = part.get();
  p->flight = flight;
  p->first = first;
  p->count = count;
  p->attempt = attempt;
  p->unfinished = count;
  // Unique among all coordinators and their starts; begins with the client's id, for whoever reads a group's logs.
  p->name = NameBeginning(flight->request.request_id) + "@" + options_.name + "." + std::to_string(names_++);
  flight->parts.insert(p);
  parts_.emplace(p->name, std::move(part));
  return p;
}

void Dispatcher::RemovePart(Part* part) {
  if (part->group != nullptr) {
    Leave(part);
  } else {
    queue_.Remove(part->ticket);
  }
  part->flight->parts.erase(part);
  parts_.erase(part->name);
}

void Dispatcher::EndIfDone(Flight* flight) {
  if (flight->unfinished > 0) return;
  while (!flight->parts.empty()) RemovePart(*flight->parts.begin());
  flights_.erase(flight->request.request_id);
}

// --- the queue ---

void Dispatcher::Queue(Part* part, bool again) {
  const GenerationRequest& request = part->flight->request;
  part->group = nullptr;
  part->ticket = again ? queue_.PushAgain(part, request.priority)
                       : queue_.Push(part, part->flight->client, request.priority,
                                     part->prompt() + part->count * part->flight->limit);
}

bool Dispatcher::Usable(const Group& group) const { return !group.silent && group.load.available(); }

int Dispatcher::Choose(const Part& part, bool* refused_everywhere) {
  std::vector<RouteCandidate> candidates(groups_.size());
  *refused_everywhere = true;
  const int64_t prompt = part.prompt() + part.replayed();
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Group& group = *groups_[i];
    if (!Usable(group) || part.refused.contains(group.session)) continue;
    *refused_everywhere = false;
    RouteCandidate& candidate = candidates[i];
    candidate.sequences = group.sequences + group.others_sequences;
    candidate.tokens = group.tokens + group.others_tokens;
    candidate.matched = prefixes_.Match(group.session, part.flight->keys);
    // Whoever runs nothing takes anything: whether a request can ever fit is the group's to say.
    const int64_t pages = group.pages() + prompt / group.page_size() + part.count + group.others_pages;
    candidate.room = candidate.sequences == 0 ||
                     (candidate.sequences + part.count <= group.max_sequences() && pages <= group.identity.pages_total());
  }
  return ChooseGroup(candidates, turn_);
}

void Dispatcher::Dispatch(double now) {
  std::vector<Group*> idle;
  std::unordered_map<Flight*, Status> failed;
  queue_.Offer([&](Part* part) {
    using Verdict = FairQueue<Part*>::Verdict;
    bool refused_everywhere = false;
    const int chosen = Choose(*part, &refused_everywhere);
    if (chosen < 0) {
      if (!refused_everywhere) return Verdict::kStop;  // its place is before the others'
      // It isn't the others' fault; and when there are groups, all of them have said no.
      const bool any = std::any_of(groups_.begin(), groups_.end(), [this](const auto& g) { return Usable(*g); });
      if (any && !part->refusal.ok()) failed.emplace(part->flight, part->refusal);
      return any ? Verdict::kSkipped : Verdict::kStop;
    }
    Group* const group = groups_[static_cast<size_t>(chosen)].get();
    turn_ = static_cast<size_t>(chosen) + 1;
    if (group->parts.empty()) idle.push_back(group);
    SendTo(group, part, now);
    return Verdict::kTaken;
  });
  // A group that runs nothing is not made to wait for more.
  for (Group* group : idle) Flush(group);
  for (const auto& [flight, status] : failed) FailFlight(flight, status, now);
}

void Dispatcher::SendTo(Group* group, Part* part, double now) {
  Flight* const flight = part->flight;
  part->group = group;
  part->begun = false;
  if (part->first_sent == 0) part->first_sent = now;
  v1::Submission* submission = group->pending.add_submissions();
  WriteSubmission(flight->request, submission);
  submission->mutable_id()->set_request_id(part->name);
  submission->mutable_id()->set_attempt(part->attempt);
  submission->mutable_sampling()->set_n(part->count);
  submission->set_first_sequence(flight->first + part->first);
  const int64_t replayed = part->replayed();
  if (replayed > 0) {
    const std::vector<int32_t>& tokens = part->sequence(0).tokens;
    submission->mutable_output_token_ids()->Assign(tokens.begin(), tokens.end());
  }
  // They come with the first sequence's first tokens.
  if (part->first > 0 || replayed > 0) submission->mutable_response()->clear_prompt_logprobs();
  group->parts.insert(part);
  group->sequences += part->unfinished;
  Account(group, part, part->prompt() + replayed + part->count * (flight->limit - replayed), part->prompt() + replayed);
  if (!flight->keys.empty()) prefixes_.Note(group->session, flight->keys);
  group->flush_at = std::min(group->flush_at, now + options_.batch_window_s);
  group->pending_bytes += submission->ByteSizeLong();
  if (group->pending_bytes >= options_.message_bytes) Flush(group);
}

void Dispatcher::Flush(Group* group) {
  group->flush_at = kNever;
  group->pending_bytes = 0;
  if (group->pending.submissions_size() == 0 && group->pending.aborts_size() == 0) return;
  v1::ExecuteRequest message;
  message.Swap(&group->pending);
  group->link->Send(std::move(message));
}

void Dispatcher::Account(Group* group, Part* part, int64_t tokens, int64_t cached) {
  part->tokens += tokens;
  part->cached += cached;
  group->tokens += tokens;
  group->cached += cached;
}

void Dispatcher::Leave(Part* part) {
  Group* const group = part->group;
  Account(group, part, -part->tokens, -part->cached);
  group->sequences -= part->unfinished;
  group->parts.erase(part);
  part->group = nullptr;
}

// --- groups ---

void Dispatcher::OnUp(uint64_t session, GroupLink* link, const v1::WorkerHello& hello, double now) {
  auto group = std::make_unique<Group>();
  group->session = session;
  group->link = link;
  group->identity = hello.identity();
  group->load.set_available(true);
  group->heard = now;
  // What a stream before this one has left has been given to others since, or belongs to clients that are gone; a
  // client that comes back brings what it has got so far.
  for (const v1::Submission& kept : hello.kept()) *group->pending.add_aborts() = kept.id();
  groups_.push_back(std::move(group));
  Flush(groups_.back().get());
  NoteUsable(now);
  Dispatch(now);
}

void Dispatcher::OnDown(uint64_t session, const Status& why, double now) {
  LoseGroup(session, why, now);
  Dispatch(now);
}

void Dispatcher::LoseGroup(uint64_t session, const Status& why, double now) {
  const auto at = std::find_if(groups_.begin(), groups_.end(), [&](const auto& g) { return g->session == session; });
  if (at == groups_.end()) return;
  const std::unique_ptr<Group> group = std::move(*at);
  groups_.erase(at);
  last_loss_ = "group '" + group->identity.group() + "': " + why.message();
  prefixes_.Forget(session);
  NoteUsable(now);
  TakeAllBack(group.get(), now);
}

void Dispatcher::TakeAllBack(Group* group, double now) {
  const std::vector<Part*> parts(group->parts.begin(), group->parts.end());
  for (Part* part : parts) {
    // An earlier one's end may have taken this one along.
    if (group->parts.contains(part)) TakeBack(part, Loss::kGroup, now);
  }
}

void Dispatcher::TakeBack(Part* part, Loss loss, double now) {
  Flight* const flight = part->flight;
  Leave(part);
  part->attempt += 1;
  if (flight->cancelled) return AbortSequences(part, now);
  if (loss == Loss::kGroup) {
    ++failovers_;
    part->lost_in_vain = part->begun ? 0 : part->lost_in_vain + 1;
    if (part->lost_in_vain >= kMostLostInVain) {
      return FailFlight(flight,
                        Unavailable(std::to_string(kMostLostInVain) +
                                    " groups were lost one after another while they had this request; the last one, " +
                                    last_loss_),
                        now);
    }
  }
  const bool alike = part->count == 1 || (part->unfinished == part->count && !part->begun);
  if (alike) return Queue(part, /*again=*/true);
  for (int i = 0; i < part->count; ++i) {
    if (part->sequence(i).finished) continue;
    Part* const one = NewPart(flight, part->first + i, 1, part->attempt);
    one->refused = part->refused;
    one->refusal = part->refusal;
    one->lost_in_vain = part->lost_in_vain;
    one->first_sent = part->first_sent;
    Queue(one, /*again=*/true);
  }
  flight->parts.erase(part);
  parts_.erase(part->name);
}

void Dispatcher::NoteUsable(double now) {
  const bool any = std::any_of(groups_.begin(), groups_.end(), [this](const auto& group) { return Usable(*group); });
  if (any) {
    no_group_since_ = kNever;
  } else if (no_group_since_ == kNever) {
    no_group_since_ = now;
  }
}

// --- time ---

void Dispatcher::OnTime(double now) {
  bool changed = false;
  for (const auto& group : groups_) {
    if (group->flush_at <= now) Flush(group.get());
    if (group->silent || now - group->heard < options_.silent_s) continue;
    group->silent = changed = true;
    last_loss_ = "group '" + group->identity.group() + "' has said nothing for " +
                 std::to_string(now - group->heard).substr(0, 3) + " seconds";
    Log(LogLevel::kWarning, last_loss_ + "; its requests go to others");
    NoteUsable(now);
    // Should it wake up, it learns at once what it need not go on with.
    for (Part* part : group->parts) {
      v1::AttemptId* abort = group->pending.add_aborts();
      abort->set_request_id(part->name);
      abort->set_attempt(part->attempt);
    }
    group->pending.clear_submissions();
    Flush(group.get());
    TakeAllBack(group.get(), now);
  }
  if (changed) Dispatch(now);
  if (now - no_group_since_ < options_.no_group_s) return;
  const Status none = Available(now);
  std::unordered_set<Flight*> waiting;
  queue_.Offer([&](Part* part) {
    waiting.insert(part->flight);
    return FairQueue<Part*>::Verdict::kSkipped;
  });
  for (Flight* flight : waiting) FailFlight(flight, none, now);
}

double Dispatcher::NextTime() const {
  double next = kNever;
  for (const auto& group : groups_) {
    next = std::min(next, group->flush_at);
    if (!group->silent) next = std::min(next, group->heard + options_.silent_s);
  }
  if (queue_.size() > 0 && no_group_since_ != kNever) next = std::min(next, no_group_since_ + options_.no_group_s);
  return next;
}

// --- views ---

Status Dispatcher::Available(double now) const {
  if (now - no_group_since_ < options_.no_group_s) return OkStatus();
  for (const auto& group : groups_) {
    if (Usable(*group)) return OkStatus();
    if (!group->silent) {
      return Unavailable("no group takes requests (group '" + group->identity.group() + "': " + group->load.detail() +
                         "); try again later");
    }
  }
  return Unavailable("no group is there" + (last_loss_.empty() ? "" : " (the last was " + last_loss_ + ")") +
                     "; try again later, or start one with quire serve");
}

bool Dispatcher::Stalled(double now, double seconds) const {
  return !flights_.empty() && now - last_progress_ > seconds;
}

const std::vector<const v1::Identity*> Dispatcher::Identities() const {
  std::vector<const v1::Identity*> identities;
  for (const auto& group : groups_) identities.push_back(&group->identity);
  return identities;
}

v1::GetLoadResponse Dispatcher::Load() const {
  v1::GetLoadResponse response;
  v1::GroupLoad* const total = response.mutable_total();
  total->set_available(!groups_.empty() && no_group_since_ == kNever);
  int running = 0, waiting = 0;
  int64_t free = 0, pages = 0, steps = 0, preemptions = 0, prompt = 0, generation = 0, finished = 0, read = 0, all = 0;
  int64_t tokens = 0;
  double prefill = 0, decode = 0, selection = 0, attention = 0, collective = 0, broadcast = 0;
  for (const auto& group : groups_) {
    v1::GroupLoad* one = response.add_groups();
    *one = group->load;
    one->set_group(group->identity.group());
    if (group->silent) {
      one->set_available(false);
      one->set_detail("it does not answer");
    }
    one->set_tokens_in_flight(group->tokens + group->others_tokens);
    running += one->running();
    waiting += one->waiting();
    tokens += one->tokens_in_flight();
    free += one->pages_free();
    pages += one->pages_total();
    steps += one->steps();
    preemptions += one->preemptions();
    prompt += one->prompt_tokens();
    generation += one->generation_tokens();
    finished += one->requests_finished();
    read += one->attention_pages_read();
    all += one->attention_pages_total();
    prefill += one->prefill_seconds();
    decode += one->decode_seconds();
    selection += one->selection_seconds();
    attention += one->attention_seconds();
    collective += one->collective_seconds();
    broadcast += one->step_broadcast_seconds();
    AddFinished(one->sequences(), total->mutable_sequences());
    if (one->has_missing_mass_bounds()) {
      total->set_missing_mass_bounds(total->missing_mass_bounds() + one->missing_mass_bounds());
      total->set_missing_mass_bound_sum(total->missing_mass_bound_sum() + one->missing_mass_bound_sum());
    }
  }
  for (const auto& [name, part] : parts_) {
    if (part->group != nullptr) continue;
    waiting += part->unfinished;
    tokens += part->prompt() + part->replayed() + part->count * (part->flight->limit - part->replayed());
  }
  total->set_running(running);
  total->set_waiting(waiting);
  total->set_tokens_in_flight(tokens);
  total->set_pages_free(free);
  total->set_pages_total(pages);
  total->set_steps(steps);
  total->set_preemptions(preemptions);
  total->set_prompt_tokens(prompt);
  total->set_generation_tokens(generation);
  total->set_requests_finished(finished);
  total->set_attention_pages_read(read);
  total->set_attention_pages_total(all);
  total->set_prefill_seconds(prefill);
  total->set_decode_seconds(decode);
  total->set_selection_seconds(selection);
  total->set_attention_seconds(attention);
  total->set_collective_seconds(collective);
  total->set_step_broadcast_seconds(broadcast);
  total->set_failovers(failovers_);
  total->set_late_events_dropped(late_events_);
  return response;
}

}  // namespace quire::rpc
