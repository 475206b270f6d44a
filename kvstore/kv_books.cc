#include "kvstore/kv_books.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/check.h"

namespace quire {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t CountExclusive(const PagePool& pool, const std::vector<int32_t>& ids, int64_t first_live) {
  int64_t n = 0;
  for (size_t i = static_cast<size_t>(first_live); i < ids.size(); ++i) n += pool.refs(ids[i]) == 1;
  return n;
}

}  // namespace

Result<KvBooks> KvBooks::Create(CacheConfig config, std::vector<GroupCapacity> capacity, int max_append,
                                int max_sequences) {
  RETURN_IF_ERROR(ValidateCacheConfig(config));
  if (capacity.size() != config.groups.size()) {
    return InvalidArgument(std::to_string(capacity.size()) + " capacities were given for " +
                           std::to_string(config.groups.size()) + " cache groups; give one each");
  }
  if (max_append < 1) {
    return InvalidArgument("max_append " + std::to_string(max_append) + " is below 1; a step appends at least a token");
  }
  for (const GroupCapacity& c : capacity) {
    if (c.pages < 1 || c.metadata_groups < 0 || (config.metadata && c.metadata_groups < 1)) {
      return InvalidArgument("a cache group of " + std::to_string(c.pages) + " pages and " +
                             std::to_string(c.metadata_groups) + " metadata groups can't hold a sequence");
    }
  }
  KvBooks books;
  for (size_t g = 0; g < capacity.size(); ++g) {
    Pools pools;
    pools.window = config.groups[g].window;
    pools.pages = PagePool(capacity[g].pages);
    pools.groups = PagePool(config.metadata ? capacity[g].metadata_groups : 0);
    books.pools_.push_back(std::move(pools));
  }
  books.config_ = std::move(config);
  books.max_append_ = max_append;
  books.max_sequences_ = max_sequences;
  return books;
}

Result<SeqId> KvBooks::AddSequence(int64_t max_tokens) {
  CHECK_GE(max_tokens, 0);
  const Result<SeqId> id = NewSlot(max_tokens);
  if (!id.ok()) return id.status();
  const Status reserved = ReserveFor({&Get(*id)});
  if (!reserved.ok()) {
    DropSlot(*id);
    return reserved;
  }
  return *id;
}

Status KvBooks::Append(SeqId seq, int64_t tokens) {
  CHECK_GE(tokens, 0);
  Sequence& s = Get(seq);
  if (tokens == 0) return OkStatus();
  if (tokens > INT32_MAX - s.length) {
    return InvalidArgument("a sequence of " + std::to_string(s.length) + " tokens can't take " +
                           std::to_string(tokens) + " more; positions are 32-bit numbers");
  }
  const int64_t num_pages = CeilDiv(s.length + tokens, config_.page_size);
  const int64_t num_groups = config_.metadata ? CeilDiv(num_pages, kPagesPerGroup) : 0;
  for (int g = 0; g < num_cache_groups(); ++g) {
    const GroupState& state = s.groups[g];
    const Pools& pools = pools_[g];
    const int64_t pages = num_pages - std::ssize(state.table.pages) + WritesSharedPage(state.table, pools);
    if (pages > pools.pages.available() + state.reserved_pages) {
      return Exhausted(g, "pages", pools.pages, pages, state.reserved_pages);
    }
    const int64_t groups = num_groups - std::ssize(state.table.groups) + WritesSharedGroup(state.table, pools);
    if (groups > pools.groups.available() + state.reserved_groups) {
      return Exhausted(g, "metadata groups", pools.groups, groups, state.reserved_groups);
    }
  }
  // From here on nothing can fail.
  bool unshared = false;
  for (int g = 0; g < num_cache_groups(); ++g) {
    GroupState& state = s.groups[g];
    PageTable& table = state.table;
    Pools& pools = pools_[g];
    if (WritesSharedPage(table, pools)) {
      const int32_t from = table.pages.back();
      table.pages.back() = Take(pools.pages, state.reserved_pages);
      AddOp({.kind = CacheOp::Kind::kCopyPage, .cache_group = g, .from = from, .to = table.pages.back()});
      unshared |= Drop(pools.pages, from);
    }
    if (WritesSharedGroup(table, pools)) {
      const int32_t from = table.groups.back();
      table.groups.back() = Take(pools.groups, state.reserved_groups);
      const int64_t first_page = (std::ssize(table.groups) - 1) * kPagesPerGroup;
      AddOp({.kind = CacheOp::Kind::kCopyGroup,
             .cache_group = g,
             .from = from,
             .to = table.groups.back(),
             .columns = static_cast<int32_t>(std::ssize(table.pages) - first_page)});
      unshared |= Drop(pools.groups, from);
    }
    while (std::ssize(table.pages) < num_pages) {
      table.pages.push_back(Take(pools.pages, state.reserved_pages));
      AddOp({.kind = CacheOp::Kind::kZeroPage, .cache_group = g, .to = table.pages.back()});
    }
    while (std::ssize(table.groups) < num_groups) {
      table.groups.push_back(Take(pools.groups, state.reserved_groups));
      AddOp({.kind = CacheOp::Kind::kResetGroup, .cache_group = g, .to = table.groups.back()});
    }
    table.length = s.length + tokens;
  }
  s.length += tokens;
  Rebalance(s);
  if (unshared) RebalanceAll();
  return OkStatus();
}

Result<SeqId> KvBooks::Fork(SeqId seq, int64_t max_tokens) {
  CHECK_GE(max_tokens, 0);
  CHECK_EQ(Get(seq).committed, Get(seq).length);
  const Result<SeqId> id = NewSlot(max_tokens);  // may move sequences_
  if (!id.ok()) return id.status();
  Sequence& parent = Get(seq);
  Sequence& child = Get(*id);
  child.length = child.committed = parent.length;
  for (int g = 0; g < num_cache_groups(); ++g) {
    const PageTable& table = parent.groups[g].table;
    child.groups[g].table = table;
    for (int32_t page : table.pages) {
      if (page >= 0) pools_[g].pages.AddRef(page);
    }
    for (int32_t group : table.groups) {
      if (group >= 0) pools_[g].groups.AddRef(group);
    }
  }
  // The parent may need more as well: what it is about to write is shared now.
  const Status reserved = ReserveFor({&parent, &child});
  if (!reserved.ok()) {
    DropTables(child);
    DropSlot(*id);
    return reserved;
  }
  return *id;
}

Result<SeqId> KvBooks::Copy(SeqId seq, int64_t max_tokens) {
  const int64_t length = Get(seq).length;
  CHECK_EQ(Get(seq).committed, length);
  CHECK_GE(max_tokens, length);
  CHECK_GT(max_tokens, 0);
  ASSIGN_OR_RETURN(const SeqId id, AddSequence(max_tokens));  // may move sequences_
  const Status appended = Append(id, length);
  CHECK(appended.ok());  // it was reserved
  const Sequence& from = Get(seq);
  Sequence& to = Get(id);
  to.committed = length;
  for (int g = 0; g < num_cache_groups(); ++g) {
    CHECK_EQ(pools_[g].window, 0);
    const PageTable &source = from.groups[g].table, &copy = to.groups[g].table;
    for (size_t i = 0; i < copy.pages.size(); ++i) {
      AddOp({.kind = CacheOp::Kind::kCopyPage, .cache_group = g, .from = source.pages[i], .to = copy.pages[i]});
    }
    for (size_t i = 0; i < copy.groups.size(); ++i) {
      const int64_t columns =
          std::min<int64_t>(kPagesPerGroup, std::ssize(copy.pages) - static_cast<int64_t>(i) * kPagesPerGroup);
      AddOp({.kind = CacheOp::Kind::kCopyGroup,
             .cache_group = g,
             .from = source.groups[i],
             .to = copy.groups[i],
             .columns = static_cast<int32_t>(columns)});
    }
  }
  return id;
}

Status KvBooks::Truncate(SeqId seq, int64_t new_length) {
  Sequence& s = Get(seq);
  CHECK_EQ(s.committed, s.length);
  CHECK_GE(new_length, 0);
  CHECK_LE(new_length, s.length);
  if (new_length == s.length) return OkStatus();
  const int64_t num_pages = CeilDiv(new_length, config_.page_size);
  const int64_t num_groups = config_.metadata ? CeilDiv(num_pages, kPagesPerGroup) : 0;
  const bool partial_group = config_.metadata && new_length % (int64_t{config_.page_size} * kPagesPerGroup) != 0;

  // First what waiting won't cure.
  for (int g = 0; g < num_cache_groups(); ++g) {
    const int64_t first_live = s.groups[g].table.first_live_page;
    const int window = pools_[g].window;
    if (new_length > 0 && first_live * config_.page_size > std::max<int64_t>(0, new_length - window)) {
      return FailedPrecondition("a sequence of " + std::to_string(s.length) + " tokens can't go back to " +
                                std::to_string(new_length) + ": its window of " + std::to_string(window) +
                                " tokens has freed those before " + std::to_string(first_live * config_.page_size) +
                                "; start it again from its tokens");
    }
  }
  // What the sequence would be, and whether its copies and reservations can be had once what it drops is free.
  std::vector<GroupState> after(s.groups.size());
  std::vector<bool> copies_group(s.groups.size(), false);
  for (int g = 0; g < num_cache_groups(); ++g) {
    const GroupState& state = s.groups[g];
    const Pools& pools = pools_[g];
    const int64_t first_live = state.table.first_live_page;
    PageTable& table = after[g].table;
    table.length = new_length;
    table.first_live_page = new_length == 0 ? 0 : first_live;
    table.pages.assign(state.table.pages.begin(), state.table.pages.begin() + num_pages);
    table.groups.assign(state.table.groups.begin(), state.table.groups.begin() + num_groups);
    copies_group[g] = partial_group && pools.groups.refs(table.groups.back()) > 1;
    const Need need = NeedOf(table, s.max_tokens, g, copies_group[g]);
    const int64_t pages_in_hand =
        state.reserved_pages + CountExclusive(pools.pages, state.table.pages, std::max(num_pages, first_live));
    if (need.pages > pools.pages.available() + pages_in_hand) {
      return Exhausted(g, "pages", pools.pages, need.pages, pages_in_hand);
    }
    const int64_t groups_in_hand =
        state.reserved_groups +
        CountExclusive(pools.groups, state.table.groups, std::max(num_groups, first_live / kPagesPerGroup));
    if (need.groups + copies_group[g] > pools.groups.available() + groups_in_hand) {
      return Exhausted(g, "metadata groups", pools.groups, need.groups + copies_group[g], groups_in_hand);
    }
  }
  // From here on nothing can fail.
  bool unshared = false;
  for (int g = 0; g < num_cache_groups(); ++g) {
    GroupState& state = s.groups[g];
    Pools& pools = pools_[g];
    for (size_t i = static_cast<size_t>(num_pages); i < state.table.pages.size(); ++i) {
      if (state.table.pages[i] >= 0) unshared |= Drop(pools.pages, state.table.pages[i]);
    }
    for (size_t i = static_cast<size_t>(num_groups); i < state.table.groups.size(); ++i) {
      if (state.table.groups[i] >= 0) unshared |= Drop(pools.groups, state.table.groups[i]);
    }
    SetReservation(state, pools, {});
    state.table = std::move(after[g].table);
    PageTable& table = state.table;
    if (partial_group) {
      const int64_t first_page = (num_groups - 1) * kPagesPerGroup;
      const int32_t columns = static_cast<int32_t>(num_pages - first_page);
      if (copies_group[g]) {
        const int32_t from = table.groups.back();
        table.groups.back() = pools.groups.Allocate();
        AddOp({.kind = CacheOp::Kind::kCopyGroup,
               .cache_group = g,
               .from = from,
               .to = table.groups.back(),
               .columns = columns});
        unshared |= Drop(pools.groups, from);
      }
      AddOp({.kind = CacheOp::Kind::kRecomputeMetadata,
             .cache_group = g,
             .to = table.groups.back(),
             .columns = columns,
             .slots = static_cast<int32_t>(new_length - (num_pages - 1) * config_.page_size),
             .pages_begin = static_cast<int32_t>(ops_.pages.size())});
      ops_.pages.insert(ops_.pages.end(), table.pages.begin() + first_page, table.pages.end());
    }
  }
  s.length = s.committed = new_length;
  Rebalance(s);
  if (unshared) RebalanceAll();
  return OkStatus();
}

void KvBooks::Free(SeqId seq) {
  const bool unshared = DropTables(Get(seq));
  DropSlot(seq);
  if (unshared) RebalanceAll();
}

void KvBooks::ReleaseOutOfWindow(SeqId seq) {
  Sequence& s = Get(seq);
  bool released = false, unshared = false;
  for (int g = 0; g < num_cache_groups(); ++g) {
    Pools& pools = pools_[g];
    if (pools.window == 0) continue;
    PageTable& table = s.groups[g].table;
    // Page p is out when its last token, (p + 1) * page_size − 1, is before committed − window.
    const int64_t first_live = std::max<int64_t>(0, s.committed - pools.window) / config_.page_size;
    if (first_live <= table.first_live_page) continue;
    released = true;
    for (int64_t p = table.first_live_page; p < first_live; ++p) {
      unshared |= Drop(pools.pages, table.pages[p]);
      table.pages[p] = -1;
    }
    if (config_.metadata) {
      for (int64_t i = table.first_live_page / kPagesPerGroup; i < first_live / kPagesPerGroup; ++i) {
        unshared |= Drop(pools.groups, table.groups[i]);
        table.groups[i] = -1;
      }
    }
    table.first_live_page = first_live;
  }
  if (released) Rebalance(s);
  if (unshared) RebalanceAll();
}

CacheOps KvBooks::TakeOps() {
  for (Sequence& s : sequences_) s.committed = s.length;
  return std::exchange(ops_, {});
}

Status KvBooks::CheckFits(int64_t tokens) const {
  for (int g = 0; g < num_cache_groups(); ++g) {
    const int64_t pages = MaxLivePages(config_, g, tokens, max_append_);
    const int64_t groups = MaxLiveMetadataGroups(config_, g, tokens, max_append_);
    const Pools& pools = pools_[g];
    if (pages > pools.pages.capacity() || groups > pools.groups.capacity()) {
      return ResourceExhausted("a sequence of " + std::to_string(tokens) + " tokens takes " + std::to_string(pages) +
                               " pages of " + std::to_string(config_.page_size) + " tokens and " +
                               std::to_string(groups) + " metadata groups; the whole cache has " +
                               std::to_string(pools.pages.capacity()) + " and " +
                               std::to_string(pools.groups.capacity()) + "; give the cache more memory");
    }
  }
  return OkStatus();
}

bool KvBooks::Exists(SeqId seq) const {
  return seq >= 0 && static_cast<size_t>(seq) < sequences_.size() && sequences_[seq].live;
}

int64_t KvBooks::Length(SeqId seq) const { return Get(seq).length; }

int64_t KvBooks::max_tokens(SeqId seq) const { return Get(seq).max_tokens; }

const PageTable& KvBooks::Table(SeqId seq, int cache_group) const { return Get(seq).groups[cache_group].table; }

KvBooks::Sequence& KvBooks::Get(SeqId seq) {
  CHECK(Exists(seq));
  return sequences_[seq];
}

const KvBooks::Sequence& KvBooks::Get(SeqId seq) const {
  CHECK(Exists(seq));
  return sequences_[seq];
}

Result<SeqId> KvBooks::NewSlot(int64_t max_tokens) {
  if (max_sequences_ > 0 && num_sequences_ >= max_sequences_) {
    return ResourceExhausted("all " + std::to_string(max_sequences_) +
                             " sequence slots are taken; wait for one to end");
  }
  SeqId id = 0;
  while (Exists(id)) ++id;
  if (static_cast<size_t>(id) == sequences_.size()) sequences_.emplace_back();
  Sequence& s = sequences_[id];
  s = Sequence{};
  s.live = true;
  s.max_tokens = max_tokens;
  s.groups.resize(pools_.size());
  ++num_sequences_;
  return id;
}

void KvBooks::DropSlot(SeqId seq) {
  Get(seq) = Sequence{};
  --num_sequences_;
}

bool KvBooks::DropTables(Sequence& s) {
  bool unshared = false;
  for (int g = 0; g < num_cache_groups(); ++g) {
    GroupState& state = s.groups[g];
    for (int32_t page : state.table.pages) {
      if (page >= 0) unshared |= Drop(pools_[g].pages, page);
    }
    for (int32_t group : state.table.groups) {
      if (group >= 0) unshared |= Drop(pools_[g].groups, group);
    }
    state.table = {};
    SetReservation(state, pools_[g], {});
  }
  return unshared;
}

bool KvBooks::WritesSharedPage(const PageTable& table, const Pools& pools) const {
  return table.length % config_.page_size != 0 && pools.pages.refs(table.pages.back()) > 1;
}

bool KvBooks::WritesSharedGroup(const PageTable& table, const Pools& pools) const {
  return config_.metadata && table.length % (int64_t{config_.page_size} * kPagesPerGroup) != 0 &&
         pools.groups.refs(table.groups.back()) > 1;
}

// A shared page can't be handed to its sequence a second time, so what is exclusively its own is all that counts
// against the most that it holds at once (`live`); for a cache group without a window that is no limit.
KvBooks::Need KvBooks::NeedOf(const PageTable& table, int64_t max_tokens, int cache_group, bool owns_last_group) const {
  Need need;
  if (max_tokens <= table.length) return need;
  const Pools& pools = pools_[cache_group];
  need.pages = CeilDiv(max_tokens, config_.page_size) - std::ssize(table.pages) + WritesSharedPage(table, pools);
  if (config_.metadata) {
    const int64_t num_groups = CeilDiv(CeilDiv(max_tokens, config_.page_size), kPagesPerGroup);
    need.groups = num_groups - std::ssize(table.groups) + (!owns_last_group && WritesSharedGroup(table, pools));
  }
  if (pools.window > 0) {
    const int64_t live_pages = MaxLivePages(config_, cache_group, max_tokens, max_append_);
    const int64_t own_pages = CountExclusive(pools.pages, table.pages, table.first_live_page);
    need.pages = std::clamp<int64_t>(live_pages - own_pages, 0, need.pages);
    const int64_t live_groups = MaxLiveMetadataGroups(config_, cache_group, max_tokens, max_append_);
    const int64_t own_groups =
        CountExclusive(pools.groups, table.groups, table.first_live_page / kPagesPerGroup) + owns_last_group;
    need.groups = std::clamp<int64_t>(live_groups - own_groups, 0, need.groups);
  }
  return need;
}

void KvBooks::SetReservation(GroupState& state, Pools& pools, Need need) {
  pools.pages.Unreserve(state.reserved_pages);
  pools.groups.Unreserve(state.reserved_groups);
  CHECK(pools.pages.Reserve(need.pages));
  CHECK(pools.groups.Reserve(need.groups));
  state.reserved_pages = need.pages;
  state.reserved_groups = need.groups;
}

Status KvBooks::ReserveFor(std::initializer_list<Sequence*> sequences) {
  for (int g = 0; g < num_cache_groups(); ++g) {
    Need need;
    int64_t pages_in_hand = 0, groups_in_hand = 0;
    for (const Sequence* s : sequences) {
      const Need one = NeedOf(s->groups[g].table, s->max_tokens, g);
      need.pages += one.pages;
      need.groups += one.groups;
      pages_in_hand += s->groups[g].reserved_pages;
      groups_in_hand += s->groups[g].reserved_groups;
    }
    const Pools& pools = pools_[g];
    if (need.pages > pools.pages.available() + pages_in_hand) {
      return Exhausted(g, "pages", pools.pages, need.pages, pages_in_hand);
    }
    if (need.groups > pools.groups.available() + groups_in_hand) {
      return Exhausted(g, "metadata groups", pools.groups, need.groups, groups_in_hand);
    }
  }
  for (Sequence* s : sequences) Rebalance(*s);
  return OkStatus();
}

void KvBooks::Rebalance(Sequence& s) {
  for (int g = 0; g < num_cache_groups(); ++g) {
    SetReservation(s.groups[g], pools_[g], NeedOf(s.groups[g].table, s.max_tokens, g));
  }
}

void KvBooks::RebalanceAll() {
  for (Sequence& s : sequences_) {
    if (s.live) Rebalance(s);
  }
}

int32_t KvBooks::Take(PagePool& pool, int64_t& reserved) {
  if (reserved == 0) return pool.Allocate();
  --reserved;
  return pool.AllocateReserved();
}

bool KvBooks::Drop(PagePool& pool, int32_t id) { return !pool.Release(id) && pool.refs(id) == 1; }

Status KvBooks::Exhausted(int cache_group, const char* what, const PagePool& pool, int64_t wanted,
                          int64_t in_hand) const {
  return ResourceExhausted("out of " + std::string(what) + " in cache group " + std::to_string(cache_group) + ": " +
                           std::to_string(wanted) + " wanted, " + std::to_string(pool.available()) + " of " +
                           std::to_string(pool.capacity()) + " available (" + std::to_string(pool.free()) + " free, " +
                           std::to_string(pool.reserved()) + " reserved, " + std::to_string(in_hand) +
                           " of the sequence's own); wait for a sequence to end, or give the cache more memory");
}

void KvBooks::CheckInvariants() const {
  for (int g = 0; g < num_cache_groups(); ++g) {
    const Pools& pools = pools_[g];
    std::vector<int32_t> page_refs(static_cast<size_t>(pools.pages.capacity()), 0);
    std::vector<int32_t> group_refs(static_cast<size_t>(pools.groups.capacity()), 0);
    Need reserved;
    for (const Sequence& s : sequences_) {
      if (!s.live) continue;
      const GroupState& state = s.groups[g];
      const PageTable& table = state.table;
      CHECK_EQ(table.length, s.length);
      CHECK_EQ(std::ssize(table.pages), CeilDiv(s.length, config_.page_size));
      CHECK_EQ(std::ssize(table.groups), config_.metadata ? CeilDiv(std::ssize(table.pages), kPagesPerGroup) : 0);
      for (int64_t p = 0; p < std::ssize(table.pages); ++p) {
        CHECK_EQ(table.pages[p] < 0, p < table.first_live_page);
        if (table.pages[p] >= 0) ++page_refs[table.pages[p]];
      }
      for (int64_t i = 0; i < std::ssize(table.groups); ++i) {
        CHECK_EQ(table.groups[i] < 0, i < table.first_live_page / kPagesPerGroup);
        if (table.groups[i] >= 0) ++group_refs[table.groups[i]];
      }
      const Need need = NeedOf(table, s.max_tokens, g);
      CHECK_EQ(state.reserved_pages, need.pages);
      CHECK_EQ(state.reserved_groups, need.groups);
      reserved.pages += need.pages;
      reserved.groups += need.groups;
    }
    int64_t free_pages = 0, free_groups = 0;
    for (int32_t id = 0; id < pools.pages.capacity(); ++id) {
      CHECK_EQ(pools.pages.refs(id), page_refs[id]);
      free_pages += page_refs[id] == 0;
    }
    for (int32_t id = 0; id < pools.groups.capacity(); ++id) {
      CHECK_EQ(pools.groups.refs(id), group_refs[id]);
      free_groups += group_refs[id] == 0;
    }
    CHECK_EQ(pools.pages.free(), free_pages);
    CHECK_EQ(pools.groups.free(), free_groups);
    CHECK_EQ(pools.pages.reserved(), reserved.pages);
    CHECK_EQ(pools.groups.reserved(), reserved.groups);
    CHECK_GE(pools.pages.available(), 0);
    CHECK_GE(pools.groups.available(), 0);
  }
}

}  // namespace quire
