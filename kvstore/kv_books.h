// KvBooks: who owns which page. Pure bookkeeping of all sequences on rank 0: page tables, reference counts,
// reservations. It touches no memory; each call appends to a list of CacheOps what the memory must do, for every rank
// to execute.
//
// Sharing: Fork shares all pages and metadata groups. Full ones are never written again; the page and the group that a
// sequence is about to write are copied first when somebody else holds them too (copy on write).
// Reservations: a sequence added with max_tokens > 0 always has promised what it may still need to reach that
// length, copies included, so its Append can't fail. Those added with 0 take what is left over.
// A call that returns an error has changed nothing. Not thread safe.
//
// A step: ReleaseOutOfWindow and Append for each sequence of the step, any Fork, Truncate or Free of others, then
// TakeOps. Tokens appended in a step are in memory only when it has run: Fork and Truncate of a sequence that has
// been appended to since the last TakeOps are bugs (CHECK).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/base/status.h"
#include "kvstore/cache_config.h"
#include "kvstore/cache_ops.h"
#include "kvstore/page_pool.h"
#include "kvstore/page_table.h"

namespace quire {

// A slot number, 0, 1, …; the lowest free one is used again.
using SeqId = int32_t;

class KvBooks {
 public:
  // capacity: one per cache group, the minimum over ranks. max_append: the most tokens one sequence is appended in one
  // step (it bounds what a windowed sequence holds). max_sequences 0: any number.
  static Result<KvBooks> Create(CacheConfig config, std::vector<GroupCapacity> capacity, int max_append,
                                int max_sequences = 0);

  // An empty sequence. max_tokens > 0 reserves for that length; RESOURCE_EXHAUSTED when it can't be promised now.
  Result<SeqId> AddSequence(int64_t max_tokens);

  // Room for `tokens` (≥ 0) more. RESOURCE_EXHAUSTED, with numbers, when pages or metadata groups run out, which never
  // happens within the reservation (windowed groups: if ReleaseOutOfWindow was called before, and tokens ≤ max_append).
  Status Append(SeqId seq, int64_t tokens);

  // A second sequence with the same tokens. max_tokens as in AddSequence.
  Result<SeqId> Fork(SeqId seq, int64_t max_tokens);

  // The same with pages of its own, copied from the sequence's, which may then be written over anywhere. No cache group
  // has a window. max_tokens: at least the sequence's length, and reserved.
  Result<SeqId> Copy(SeqId seq, int64_t max_tokens);

  // Keeps the first new_length (≤ length) tokens. FAILED_PRECONDITION when the window has already freed pages that a
  // query at new_length would see; RESOURCE_EXHAUSTED when the copy of a shared group or the reservation can't be had.
  Status Truncate(SeqId seq, int64_t new_length);

  void Free(SeqId seq);

  // Frees the pages that no query at or after the sequence's length sees, length as before this step's Append.
  void ReleaseOutOfWindow(SeqId seq);

  // What the memory has to do since the last call, in order.
  CacheOps TakeOps();
  const CacheOps& pending_ops() const { return ops_; }

  bool Exists(SeqId seq) const;
  int64_t Length(SeqId seq) const;
  int64_t max_tokens(SeqId seq) const;  // what was reserved for; 0 for none
  int num_sequences() const { return num_sequences_; }
  const PageTable& Table(SeqId seq, int cache_group) const;
  const CacheConfig& config() const { return config_; }
  int num_cache_groups() const { return static_cast<int>(pools_.size()); }
  // Free, used, reserved and available counts, and references.
  const PagePool& pages(int cache_group) const { return pools_[static_cast<size_t>(cache_group)].pages; }
  const PagePool& metadata_groups(int cache_group) const { return pools_[static_cast<size_t>(cache_group)].groups; }

  // OK when a sequence of `tokens` fits in the whole cache with nothing else in it; RESOURCE_EXHAUSTED with the
  // numbers otherwise (requests that can never run are refused at the door).
  Status CheckFits(int64_t tokens) const;

  // Recounts references and reservations from the tables and CHECKs that they agree. For tests and debugging.
  void CheckInvariants() const;

 private:
  struct Pools {
    int window = 0;
    PagePool pages;
    PagePool groups;
  };
  struct GroupState {  // one sequence in one cache group
    PageTable table;
    int64_t reserved_pages = 0;
    int64_t reserved_groups = 0;
  };
  struct Sequence {
    bool live = false;
    int64_t length = 0;
    int64_t committed = 0;  // length at the last TakeOps
    int64_t max_tokens = 0;
    std::vector<GroupState> groups;  // [cache group]
  };
  struct Need {
    int64_t pages = 0;
    int64_t groups = 0;
  };

  KvBooks() = default;
  Sequence& Get(SeqId seq);
  const Sequence& Get(SeqId seq) const;
  Result<SeqId> NewSlot(int64_t max_tokens);
  void DropSlot(SeqId seq);
  // Drops all that the sequence holds or has reserved. True, like Drop, when something has a single holder left.
  bool DropTables(Sequence& s);

  // Whether appending writes into a page (a metadata group) that somebody else holds too.
  bool WritesSharedPage(const PageTable& table, const Pools& pools) const;
  bool WritesSharedGroup(const PageTable& table, const Pools& pools) const;
  // What a sequence may still take from the pools on its way to max_tokens, which is what is reserved for it.
  // owns_last_group: count the last metadata group as copied already.
  Need NeedOf(const PageTable& table, int64_t max_tokens, int cache_group, bool owns_last_group = false) const;
  static void SetReservation(GroupState& state, Pools& pools, Need need);
  // Sets the reservations of these sequences to their needs, or fails and changes nothing.
  Status ReserveFor(std::initializer_list<Sequence*> sequences);
  // Sets the reservation to the need; it is known to be there.
  void Rebalance(Sequence& s);
  // After something shared has got a single holder: whoever that is needs one copy less.
  void RebalanceAll();
  static int32_t Take(PagePool& pool, int64_t& reserved);
  // Drops one reference; true when exactly one is left.
  static bool Drop(PagePool& pool, int32_t id);
  void AddOp(const CacheOp& op) { ops_.ops.push_back(op); }
  Status Exhausted(int cache_group, const char* what, const PagePool& pool, int64_t wanted, int64_t in_hand) const;

  CacheConfig config_;
  int max_append_ = 0;
  int max_sequences_ = 0;
  int num_sequences_ = 0;
  std::vector<Pools> pools_;  // [cache group]
  std::vector<Sequence> sequences_;
  CacheOps ops_;
};

}  // namespace quire
