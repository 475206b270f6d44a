// AttentionPolicy: how a request chooses the pages that a decode step reads. One file per policy in this folder, one
// reference in kernels/reference, one row in policy_table.cc. The decode kernel knows no policy.
//
// Rules for all (DESIGN.md, ALGORITHMS.md): sinks, the recent window and the last partial page are inside the budget;
// budget ≥ length is the dense path; dense-or-sparse depends on lengths and the layer alone; ids ascend, equal scores go
// to the lower index, NaN never wins.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/context.h"
#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/status.h"
#include "kernels/page_history.h"
#include "kernels/page_table.h"
#include "kernels/selection.h"
#include "kernels/slot_map.h"

namespace quire {

// "quest:token_budget=512:dense_layers=0" → name and options, not yet checked.
struct AttentionSpec {
  std::string name = "dense";
  std::map<std::string, std::string> options;
  static Result<AttentionSpec> Parse(std::string_view text);
  std::string ToString() const;
  bool operator==(const AttentionSpec&) const = default;
};

// What a policy may know of the model and the cache when it is made: the same on all ranks, whatever part each holds.
struct PolicyShape {
  int page_size = 16;
  int k_dim = 128;
  int v_dim = 128;
  DType dtype = DType::kBF16;  // of the cache
  int query_group = 4;         // query heads of a KV head, in the whole model
  DeviceKind device = DeviceKind::kCpu;  // that steps run on

  int64_t TokenBytes() const { return int64_t{k_dim + v_dim} * ElementSize(dtype); }        // K and V, of a KV head
  int64_t MetadataBytes() const { return int64_t{2} * k_dim * ElementSize(dtype); }         // min and max of a page
  bool operator==(const PolicyShape&) const = default;
};

// Page data a policy reads; the engine keeps the union over the policies that requests may use.
struct PageDataNeeds {
  bool min_max = false;  // LayerPages::meta and over
  bool codes = false;    // LayerPages::codes; needs min_max
  int history = 0;       // floats that it remembers per (sequence, layer, KV head, logical page); 0: none
  int history_rows = 0;  // of a prefill chunk, the last so many rows are shown to Remember; 0: all
  bool queries = true;   // Select looks at them; if not, ranks that share a KV head needn't gather its group's
  bool mass = true;      // the history is made by Remember, of attention mass; if not, Select makes it itself
  bool slots = false;       // Select fills SelectionView::slot_mask
  bool correction = false;  // Select fills SelectionView::alpha and v_mean
  bool slot_map = false;  // an evicting policy that weighs its slots: it has a SlotMap a sequence and layer
};

struct SelectParams {
  const float* q = nullptr;  // [rows][q_heads][k_dim], row stride q_stride; rotated
  int64_t q_stride = 0;
  int rows = 0;
  int q_heads = 0;
  const int32_t* row_seq = nullptr;  // [rows] index into table
  const int32_t* row_len = nullptr;  // [rows] tokens in the cache, the current one included
  int layer = 0;
  LayerPages pages;
  PageTableView table;
  float scale = 0;  // of q·k before the softmax; 0: 1 / √k_dim
  const PageHistory* history = nullptr;  // [rows] this layer's, of the row's sequence; null unless declared. Select may
                                         // write their values where Remember makes none
  // Of the q_heads, those whose alpha the caller wants: [first_head, first_head + heads). heads 0: all. Ranks that share a
  // KV head see its whole group, and attend with a part of it.
  int first_head = 0;
  int heads = 0;
  // At least the longest row_len; 0: whoever asks looks into row_len. Given where the arrays are a GPU's.
  int32_t longest = 0;
};

// A row that sees the first `sinks` tokens, for which its query stands `shift` positions further back, and the last
// `window` tokens, which don't meet the first. window 0: no such row; the selection says what it sees.
struct SinkWindow {
  int sinks = 0;
  int window = 0;
  int64_t shift = 0;
};

class AttentionPolicy {
 public:
  virtual ~AttentionPolicy() = default;
  virtual std::string_view name() const = 0;
  // This object's own in the process: what is made for it is known by this, for another may have its address one day.
  uint64_t serial() const { return serial_; }
  virtual int64_t token_budget() const = 0;  // 0: none (dense)
  // Select, RememberRows, EvictRows and RememberSlotRows take a GPU's context, with all arrays in its memory; what is remembered
  // there is forked as it is.
  virtual bool RunsOnGpu() const { return false; }
  virtual PageDataNeeds Declare() const = 0;
  // True when a sequence of `length` tokens is attended densely in `layer`.
  virtual bool IsDense(int64_t length, int layer, int page_size) const = 0;
  // The most pages Select can list for one (row, KV head) at any length up to `length`.
  virtual int MaxPages(int64_t length, int page_size) const = 0;
  virtual size_t SelectWorkspace(const SelectParams& params) const = 0;
  // Bytes of page data that Select reads for these rows, by the policy's formula; the queries are not looked at.
  virtual int64_t SelectBytes(const SelectParams& params) const = 0;
  // The same counted in whole 64-byte lines, where a policy reads parts of lines and the queries say which.
  virtual int64_t SelectLineBytes(const SelectParams& params) const { return SelectBytes(params); }
  // Fills selection (pages, counts) for every (row, KV head). Rows have IsDense == false. Deterministic.
  virtual void Select(const Context& ctx, const SelectParams& params, SelectionView selection, void* workspace) const = 0;
  // For policies whose positions count inside what is kept: how a row of `length` tokens attends where IsDense is false.
  // sinks and window are the same at all such lengths. The selection's pages are those of both parts.
  virtual SinkWindow WindowAt(int64_t length) const;
  // A row has attended in a layer where this policy is not always dense: what history makes of it. Called for each
  // decode row, and of prompts for the rows that Declare asks for, in the order of positions, after Select; the history
  // has entries for all pages that the row saw, and perhaps for later ones. Different heads from different threads.
  virtual void Remember(const AttentionMass& mass, int head, PageHistory* history) const;
  // The same of many rows, on the context's device.
  void RememberRows(const Context& ctx, const RememberParams& params) const;
  virtual Status RememberOnGpu(Stream stream, const RememberParams& params) const;
  // A sequence is forked: `to` (as many KV heads, room for from.pages entries) becomes a copy of `from`. Policies whose
  // history says more than a number a page change it on the way.
  virtual void Fork(const PageHistory& from, PageHistory* to) const;
  // The sequence now has `length` tokens: entries of later pages become 0, as they were before their page was written. The
  // last page's entry stays: what it has gathered belongs to its remaining tokens too.
  virtual void Truncate(int64_t length, int page_size, PageHistory* history) const;

  // Evicting policies. A sequence keeps this many tokens in each layer and KV head; 0: all of them. As long as it has
  // no more, it is dense and the token at position p lies in slot p. From then on each token overwrites another, and
  // attends to all slots (or by WindowAt, whose sinks and window are slots then). Select is never called.
  virtual int64_t capacity() const { return 0; }
  // Positions count inside what is kept, so a sequence may be longer than any position that the model knows.
  virtual bool CountsInside() const { return false; }
  // The slot in [0, capacity) that the token at `position` ≥ capacity takes, which `map` (null unless declared) knows
  // from now on. Different heads from different threads.
  virtual int32_t Evict(int64_t position, int head, SlotMap* map) const;
  // A row has attended to slots [0, slots), giving each mass[slot] summed over the query group: as Remember, by slots.
  virtual void RememberSlots(const float* mass, int64_t slots, int head, SlotMap* map) const;
  // Both of many rows, with maps, on the context's device.
  void EvictRows(const Context& ctx, const EvictParams& params) const;
  virtual Status EvictOnGpu(Stream stream, const EvictParams& params) const;
  void RememberSlotRows(const Context& ctx, const RememberSlotsParams& params) const;
  virtual Status RememberSlotsOnGpu(Stream stream, const RememberSlotsParams& params) const;

 private:
  static uint64_t NextSerial() {
    static std::atomic<uint64_t> next{1};
    return next++;
  }
  const uint64_t serial_ = NextSerial();
};

// One row of the policy table; --help and the README are written from it.
struct PolicyInfo {
  std::string_view name;
  std::string_view paper;
  std::string_view reads;    // vectors or bytes read per step, as a formula
  std::string options;       // "token_budget (default 2048), …"
  bool evicts = false;       // takes evict=true
};
const std::vector<PolicyInfo>& PolicyTable();

// Whether the policy keeps a history of a layer: it declares one, and selects there at some length.
bool RemembersLayer(const AttentionPolicy& policy, int layer, int page_size);

// A policy and how it is spelled.
struct SpelledPolicy {
  const AttentionSpec& spec;
  const AttentionPolicy& policy;
};
// Whether a prompt leaves both with the same history, so that either may go on behind it: none, or that of policies that
// differ in their token_budget alone, which is for choosing.
bool RememberAlike(const SpelledPolicy& a, const SpelledPolicy& b);

// INVALID_ARGUMENT for an unknown name, an unknown option or a value out of range (the sentence lists what there is);
// e.g. a budget smaller than sinks + recent + one page at this page size. "dense" gives a policy whose IsDense is always true.
// With a page size alone, the rest of the shape is PolicyShape's own: enough to tell whether a spec is right.
Result<std::unique_ptr<AttentionPolicy>> MakePolicy(const AttentionSpec& spec, const PolicyShape& shape);
Result<std::unique_ptr<AttentionPolicy>> MakePolicy(const AttentionSpec& spec, int page_size);

// The longest length, up to `longest`, at which the policy attends densely in every layer: 0 ≤ it ≤ longest.
int64_t DenseUpTo(const AttentionPolicy& policy, int64_t longest, int page_size);

}  // namespace quire
