#include "core/engine/scheduler.h"

#include <algorithm>
#include <string>

#include "core/base/check.h"

namespace quire {
namespace {

// Rows of `sequence` that follow are decode rows.
bool Decodes(const Sequence& sequence) { return sequence.computed >= sequence.request->dense_length; }

// Prompt log-probabilities are wanted from row `position`, and have not been collected before a preemption.
bool WantsScore(const Sequence& sequence, int64_t position) {
  const RequestState& request = *sequence.request;
  return request.request.prompt_logprobs >= 0 && &sequence == request.sequences[0].get() && position + 1 < request.dense_length &&
         position + 1 >= static_cast<int64_t>(request.prompt_logprobs.size());
}

void Append(CacheOps* to, const CacheOps& from) {
  const int32_t shift = static_cast<int32_t>(to->pages.size());
  for (CacheOp op : from.ops) {
    op.pages_begin += shift;
    to->ops.push_back(op);
  }
  to->pages.insert(to->pages.end(), from.pages.begin(), from.pages.end());
}

}  // namespace

Scheduler::Scheduler(KvBooks books, const SchedulerOptions& options) : books_(std::move(books)), options_(options) {
  CHECK_GE(options_.max_rows, options_.max_slots);
  for (int slot = options_.max_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  sent_.resize(options_.max_slots, std::vector<SentTable>(books_.num_cache_groups()));
}

void Scheduler::Enqueue(Sequence* sequence) {
  sequence->state = SequenceState::kWaiting;
  RequestState& request = *sequence->request;
  if (!request.rank) request.rank = request.request.priority * kAgeingSteps + static_cast<int64_t>(step_);
  CHECK(waiting_.insert(sequence).second);
}

Status Scheduler::CheckFits(const RequestState& request) const { return books_.CheckFits(request.max_cached()); }

void Scheduler::GiveUpSlot(Sequence* sequence) {
  if (sequence->kv >= 0) books_.Free(sequence->kv);
  sequence->kv = -1;
  sequence->fork_of = nullptr;
  pending_ends_.push_back(sequence->slot);
  free_slots_.push_back(sequence->slot);
  sent_[sequence->slot].assign(sent_[sequence->slot].size(), {});
  sequence->slot = -1;
  running_.erase(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->state == SequenceState::kWaiting) waiting_.erase(sequence);
  if (sequence->state == SequenceState::kRunning) GiveUpSlot(sequence);
  sequence->state = SequenceState::kFinished;
}

void Scheduler::Preempt(Sequence* sequence) {
  GiveUpSlot(sequence);
  sequence->computed = 0;
  ++sequence->request->preemptions;
  ++preemptions_;
  Enqueue(sequence);
}

int Scheduler::PrefillRows(const Sequence& sequence, int row_budget, int logit_budget) const {
  const int64_t left = sequence.request->dense_length - sequence.computed;
  int rows = static_cast<int>(std::min<int64_t>(left, row_budget));
  if (const int64_t room = sequence.request->capacity - sequence.computed; room > 0) {
    rows = static_cast<int>(std::min<int64_t>(rows, room));  // what comes then is another kind of chunk
  }
  if (WantsScore(sequence, sequence.request->dense_length - 2)) {
    // Rows before the first wanted one are free; then as many as there is room for.
    const int64_t first =
        std::max(sequence.computed, static_cast<int64_t>(sequence.request->prompt_logprobs.size()) - 1);
    // The prompt's last row is scored by nobody but samples, which has room of its own.
    const int64_t most = first + logit_budget - sequence.computed;
    if (most < left - 1) rows = static_cast<int>(std::min<int64_t>(rows, most));
  }
  return rows;
}

// Pages for `rows` more tokens, taken from the last in order when there are none left. False: it lost its own.
bool Scheduler::Allocate(Sequence* sequence, int rows) {
  books_.ReleaseOutOfWindow(sequence->kv);
  const RequestState& request = *sequence->request;
  const int64_t more = request.cached(sequence->computed + rows) - request.cached(sequence->computed);
  while (!books_.Append(sequence->kv, more).ok()) {
    Sequence* last = *running_.rbegin();  // later in order than all that are planned, or this one
    Preempt(last);
    if (last == sequence) return false;
  }
  return true;
}

void Scheduler::FillRandomCache(Sequence* sequence, StepPlan* plan) {
  // By steps, for a windowed cache holds no more than a step's tokens beyond its window.
  const int64_t length = sequence->request->dense_length, cached = sequence->request->cached(length);
  for (int64_t at = 0; at < cached;) {
    const int64_t n = std::min<int64_t>(options_.max_rows, cached - at);
    books_.ReleaseOutOfWindow(sequence->kv);
    const Status status = books_.Append(sequence->kv, n);
    CHECK(status.ok());  // it was reserved
    CacheOps ops = books_.TakeOps();
    Append(&ops_, ops);
    at += n;
  }
  sequence->computed = length;
  RandomFill fill;
  fill.slot = sequence->slot;
  fill.length = length;
  fill.seed = *sequence->request->random_cache;
  plan->fills.push_back(fill);
}

// Whether its way to the end may take more pages of the cache group than it holds and has reserved.
bool Scheduler::MayGrow(const Sequence& sequence, int cache_group) const {
  const int64_t most = sequence.request->max_cached();
  if (sequence.kv < 0) return true;  // a fork without pages
  if (books_.max_tokens(sequence.kv) >= most) return false;
  if (sequence.request->request.sampling.n > 1) return true;  // what it shares it may have to copy
  const PageTable& table = books_.Table(sequence.kv, cache_group);
  const int64_t held = static_cast<int64_t>(table.pages.size()) - table.first_live_page;
  return held < MaxLivePages(books_.config(), cache_group, most, options_.max_rows);
}

bool Scheduler::Admit(Sequence* sequence, Status* why) {
  const RequestState& request = *sequence->request;
  const int wanted_slots = request.spawned ? 1 : std::min(request.request.sampling.n, options_.max_slots);
  if (static_cast<int>(free_slots_.size()) < wanted_slots) return false;
  // Room for what it has, and a page's worth of progress on top, so that it isn't preempted at once again; for one that
  // evicts, all that it will ever have.
  const int64_t known = static_cast<int64_t>(sequence->tokens.size());
  const int64_t reserve =
      request.capacity > 0 ? request.max_cached() : std::min(request.max_cached(), known + books_.config().page_size);
  auto kv = books_.AddSequence(std::max<int64_t>(1, reserve));
  if (!kv.ok()) {
    *why = kv.status();
    return false;
  }
  // Leave a page to each running sequence that may yet take one from what nobody has reserved.
  for (int g = 0; g < books_.num_cache_groups(); ++g) {
    const auto growing =
        std::count_if(running_.begin(), running_.end(), [&](const Sequence* s) { return MayGrow(*s, g); });
    if (books_.pages(g).available() < growing) {
      books_.Free(*kv);
      return false;
    }
  }
  sequence->kv = *kv;
  sequence->slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->computed = 0;
  sequence->state = SequenceState::kRunning;
  waiting_.erase(sequence);
  running_.insert(sequence);
  return true;
}

void Scheduler::AddTableDeltas(const Sequence& sequence, StepPlan* plan) {
  const auto add = [&](int cache_group, int metadata, std::vector<int32_t>& sent, const std::vector<int32_t>& now) {
    const size_t old_size = sent.size();
    const auto differs = [&](size_t i) { return i >= old_size || sent[i] != now[i]; };
    bool any = false;
    for (size_t i = 0; i < now.size();) {
      if (!differs(i)) {
        ++i;
        continue;
      }
      size_t end = i + 1;
      while (end < now.size() && differs(end)) ++end;
      TableDelta delta{sequence.slot,
                       cache_group,
                       metadata,
                       static_cast<int32_t>(now.size()),
                       static_cast<int32_t>(i),
                       static_cast<int32_t>(end - i),
                       static_cast<int32_t>(plan->table_values.size())};
      plan->table_values.insert(plan->table_values.end(), now.begin() + i, now.begin() + end);
      plan->table_deltas.push_back(delta);
      any = true;
      i = end;
    }
    if (!any && now.size() != old_size) {
      plan->table_deltas.push_back({sequence.slot, cache_group, metadata, static_cast<int32_t>(now.size()), 0, 0, 0});
    }
    sent = now;
  };
  for (int g = 0; g < books_.num_cache_groups(); ++g) {
    const PageTable& table = books_.Table(sequence.kv, g);
    SentTable& sent = sent_[sequence.slot][g];
    add(g, 0, sent.pages, table.pages);
    add(g, 1, sent.groups, table.groups);
  }
}

// The prompt of a request with n > 1 ends in this step: its other sequences draw from the same row.
void Scheduler::Spawn(Sequence* parent, int logit, Planned* planned) {
  RequestState& request = *parent->request;
  request.spawned = true;
  for (int i = 1; i < request.request.sampling.n; ++i) {
    request.sequences.push_back(std::make_unique<Sequence>());
    Sequence* child = request.sequences.back().get();
    child->request = &request;
    child->index = i;
    child->tokens = parent->tokens;
    child->first_scheduled = parent->first_scheduled;
    if (free_slots_.empty()) {  // it starts by itself, later, with its own prefill
      Enqueue(child);
      continue;
    }
    child->slot = free_slots_.back();
    free_slots_.pop_back();
    child->state = SequenceState::kRunning;
    child->computed = request.dense_length;
    child->fork_of = parent;
    running_.insert(child);
    const bool branch = child->policy() != parent->policy();
    planned->plan.forks.push_back({parent->slot, child->slot, child->index, branch ? child->policy() : ""});
    const auto& forced = request.request.forced;
    planned->plan.samples.push_back({child->slot, logit, forced.empty() ? -1 : forced.front()});
    planned->samples.push_back(child);
  }
}

void Scheduler::AddChunk(Sequence* sequence, int rows, Planned* planned) {
  StepPlan& plan = planned->plan;
  const RequestState& request = *sequence->request;
  const bool decode = Decodes(*sequence);
  PlanChunk chunk;
  chunk.slot = sequence->slot;
  chunk.start_pos = static_cast<int32_t>(sequence->computed);
  chunk.rows = rows;
  chunk.decode = decode ? 1 : 0;
  // A prompt's rows count with the whole prompt however it is cut; a decode row with its own length.
  const int64_t rope_length = decode ? sequence->computed + 1 : request.dense_length;
  chunk.rope_length = static_cast<int32_t>(request.counts_inside ? request.cached(rope_length) : rope_length);
  plan.chunks.push_back(chunk);
  planned->chunks.push_back(sequence);
}

void Scheduler::CollectOps(StepPlan* plan) {
  Append(&ops_, books_.TakeOps());
  plan->cache_ops = std::move(ops_);
  ops_.Clear();
}

void Scheduler::Plan(Planned* planned) {
  *planned = {};
  StepPlan& plan = planned->plan;
  plan.step = ++step_;

  // Rows of the sequences that run already.
  int decode_rows = 0;
  for (const Sequence* sequence : running_) decode_rows += Decodes(*sequence) ? 1 : 0;
  int row_budget = options_.max_rows - decode_rows;
  int logit_budget = options_.max_prompt_logits;
  const auto take = [&](Sequence* sequence) {  // rows of its next prefill chunk, out of the budgets
    const int rows = PrefillRows(*sequence, row_budget, logit_budget);
    row_budget -= rows;
    for (int64_t p = sequence->computed; p < sequence->computed + rows; ++p) {
      if (WantsScore(*sequence, p)) --logit_budget;
    }
    return rows;
  };
  std::vector<std::pair<Sequence*, int>> chosen;
  const int64_t preemptions_before = preemptions_;
  for (auto it = running_.begin(); it != running_.end();) {
    Sequence* sequence = *it;
    const int rows = Decodes(*sequence) ? 1 : take(sequence);
    const bool kept = rows == 0 || Allocate(sequence, rows);
    if (kept && rows > 0) chosen.emplace_back(sequence, rows);
    // Preempted sequences come after this one in order, or are this one: nothing before was touched.
    it = kept ? std::next(running_.find(sequence)) : running_.end();
  }

  // Admission, in order and only while nobody had to give way.
  while (preemptions_ == preemptions_before && !waiting_.empty() && row_budget > 0) {
    Sequence* sequence = *waiting_.begin();
    const bool alone = running_.empty();
    Status why;
    if (!Admit(sequence, &why)) {
      if (alone && !why.ok()) {  // CheckFits said it would fit
        planned->failed = sequence;
        planned->failure = why.WithContext("with nothing else in the cache");
        Remove(sequence);
      }
      break;
    }
    planned->admitted.push_back(sequence);
    SlotStart start;
    start.slot = sequence->slot;
    start.sequence = sequence->index;
    start.output_begin = static_cast<int32_t>(sequence->request->output_begin);
    start.tokens = sequence->tokens;
    start.sampler = sequence->request->sampler;
    start.attention = sequence->policy();
    plan.starts.push_back(std::move(start));
    if (sequence->request->random_cache.has_value()) FillRandomCache(sequence, &plan);
    int rows = 1;
    if (Decodes(*sequence)) {
      --row_budget;
    } else {
      rows = take(sequence);
    }
    if (rows == 0) continue;  // its prompt's log-probabilities have no room in this step
    CHECK(Allocate(sequence, rows));
    chosen.emplace_back(sequence, rows);
  }

  // Chunks, decode rows first, those of one policy side by side; then which rows give logits, and what for.
  const auto decodes = std::stable_partition(chosen.begin(), chosen.end(), [](const auto& c) { return Decodes(*c.first); });
  std::stable_sort(chosen.begin(), decodes, [](const auto& a, const auto& b) {
    return a.first->policy() < b.first->policy();
  });
  int row = 0;
  int prefill_rows = 0;
  for (const auto& [sequence, rows] : chosen) {
    AddChunk(sequence, rows, planned);
    if (!Decodes(*sequence)) prefill_rows += rows;
    for (int i = 0; i < rows; ++i) {
      const int64_t position = sequence->computed + i;
      const int logit = static_cast<int>(plan.logit_rows.size());
      if (WantsScore(*sequence, position)) {
        plan.logit_rows.push_back(row + i);
        plan.scores.push_back(
            {sequence->slot, logit, static_cast<int32_t>(position + 1), sequence->request->request.prompt_logprobs});
        planned->scores.push_back(sequence);
      } else if (position + 1 == static_cast<int64_t>(sequence->tokens.size())) {
        plan.logit_rows.push_back(row + i);
        const auto& forced = sequence->request->request.forced;
        const int64_t output = sequence->output_tokens();
        plan.samples.push_back({sequence->slot, logit, forced.empty() ? -1 : forced[static_cast<size_t>(output)]});
        planned->samples.push_back(sequence);
        if (!sequence->request->spawned) Spawn(sequence, logit, planned);
      }
    }
    row += rows;
    AddTableDeltas(*sequence, &plan);
  }
  for (const auto& [sequence, rows] : chosen) sequence->computed += rows;
  if (row > 0) planned->prefill_share = static_cast<double>(prefill_rows) / row;
  CollectOps(&plan);
  plan.ends = std::move(pending_ends_);
  pending_ends_.clear();
}

void Scheduler::CompleteForks() {
  std::vector<Sequence*> forks;
  for (Sequence* sequence : running_) {
    if (sequence->fork_of != nullptr) forks.push_back(sequence);
  }
  for (Sequence* sequence : forks) {
    // Who evicts will write into every page.
    auto kv = sequence->request->capacity > 0 ? books_.Copy(sequence->fork_of->kv, sequence->request->max_cached())
                                              : books_.Fork(sequence->fork_of->kv, 0);
    sequence->fork_of = nullptr;
    if (kv.ok()) {
      sequence->kv = *kv;
    } else {
      Preempt(sequence);  // no room for a copy now: it starts again by itself
    }
  }
}

}  // namespace quire
