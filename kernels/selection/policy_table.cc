// The table of attention policies, the spec's syntax, and MakePolicy. A new policy is one file and one row here.
#include <algorithm>
#include <cctype>
#include <deque>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/selection/add_policy.h"
#include "kernels/selection/policies.h"

namespace quire {
namespace {

struct Row {
  PolicyInfo info;
  PolicyFactory make;
};

template <Result<std::unique_ptr<AttentionPolicy>> (*Make)(const PolicyOptions&, int)>
Result<std::unique_ptr<AttentionPolicy>> OfPageSize(const PolicyOptions& options, const PolicyShape& shape) {
  return Make(options, shape.page_size);
}

// The library's own rows, then those that AddPolicy has added. Whoever has a table keeps it: they only grow, and a longer
// one is another object.
struct Table {
  explicit Table(std::vector<Row> all) : rows(std::move(all)) {
    for (const Row& row : rows) infos.push_back(row.info);
  }
  const std::vector<Row> rows;
  std::vector<PolicyInfo> infos;
};

std::vector<Row> OwnRows() {
  return {
      {DensePolicyInfo(), OfPageSize<MakeDensePolicy>},
      {QuestPolicyInfo(), OfPageSize<MakeQuestPolicy>},
      {HierarchicalPolicyInfo(), OfPageSize<MakeHierarchicalPolicy>},
      {HybridPolicyInfo(), OfPageSize<MakeHybridPolicy>},
      {SparqPolicyInfo(), MakeSparqPolicy},
      {SwaPolicyInfo(), OfPageSize<MakeSwaPolicy>},
      {StreamingPolicyInfo(), OfPageSize<MakeStreamingPolicy>},
      {H2oPolicyInfo(), OfPageSize<MakeH2oPolicy>},
      {TovaPolicyInfo(), OfPageSize<MakeTovaPolicy>},
      {TopPPolicyInfo(), OfPageSize<MakeTopPPolicy>},
      {AutoPolicyInfo(), MakeAutoPolicy},
  };
}

struct Tables {
  std::mutex mutex;
  std::deque<Table> versions;  // the last one holds
  std::deque<std::string> texts;  // of added rows
};

Tables& AllTables() {
  static Tables* tables = [] {
    auto* made = new Tables;
    made->versions.emplace_back(OwnRows());
    return made;
  }();
  return *tables;
}

const Table& CurrentTable() {
  Tables& tables = AllTables();
  std::lock_guard lock(tables.mutex);
  return tables.versions.back();
}

}  // namespace

SinkWindow AttentionPolicy::WindowAt(int64_t) const { return {}; }

void AttentionPolicy::Remember(const AttentionMass&, int, PageHistory*) const {
  CHECK_EQ(Declare().history, 0);  // who declares a history makes one
}

void AttentionPolicy::RememberRows(const Context& ctx, const RememberParams& p) const {
  const auto remember = [&](int row, int head) {
    const int64_t list = int64_t{row} * p.kv_heads + head;
    AttentionMass mass;
    mass.position = p.row_pos[row];
    mass.mass = p.mass + list * p.mass_pages;
    if (p.selection != nullptr) {
      mass.read = p.selection->pages + list * p.selection->max_pages;
      mass.read_count = p.selection->counts[list];
    }
    PageHistory history = p.history[p.one_sequence ? 0 : row];
    Remember(mass, head, &history);
  };
  const int apart = p.one_sequence ? 1 : p.rows, together = p.one_sequence ? p.rows : 1;
  Dispatch(
      ctx,
      [&] {
        ctx.pool->ParallelFor(int64_t{apart} * p.kv_heads, [&](int64_t task, int) {
          const int first = static_cast<int>(task / p.kv_heads), head = static_cast<int>(task % p.kv_heads);
          for (int i = 0; i < together; ++i) remember(first + i, head);
        });
      },
      [&](Stream stream) { return RememberOnGpu(stream, p); });
}

Status AttentionPolicy::RememberOnGpu(Stream, const RememberParams&) const {
  return Internal("attention policy '" + std::string(name()) + "' remembers nothing on a GPU");
}

int32_t AttentionPolicy::Evict(int64_t, int, SlotMap*) const {
  CHECK_GT(capacity(), 0);  // who has a capacity says what leaves
  return 0;
}

void AttentionPolicy::RememberSlots(const float*, int64_t, int, SlotMap*) const { CHECK(!Declare().slot_map); }

void AttentionPolicy::EvictRows(const Context& ctx, const EvictParams& p) const {
  Dispatch(
      ctx,
      [&] {
        ctx.pool->ParallelFor(int64_t{p.kv_heads} * p.rows, [&](int64_t i, int) {
          const int head = static_cast<int>(i / p.rows), row = static_cast<int>(i % p.rows);
          SlotMap map = p.maps[row];
          p.taken[i] = Evict(p.row_pos[row], head, &map);
        });
      },
      [&](Stream stream) { return EvictOnGpu(stream, p); });
}

void AttentionPolicy::RememberSlotRows(const Context& ctx, const RememberSlotsParams& p) const {
  const int apart = p.one_sequence ? 1 : p.rows, together = p.one_sequence ? p.rows : 1;
  Dispatch(
      ctx,
      [&] {
        ctx.pool->ParallelFor(int64_t{apart} * p.kv_heads, [&](int64_t task, int) {
          const int first = static_cast<int>(task / p.kv_heads), head = static_cast<int>(task % p.kv_heads);
          SlotMap map = p.maps[first];
          for (int row = first; row < first + together; ++row) {
            RememberSlots(p.mass + (int64_t{row} * p.kv_heads + head) * p.mass_slots, p.row_len[row], head, &map);
          }
        });
      },
      [&](Stream stream) { return RememberSlotsOnGpu(stream, p); });
}

Status AttentionPolicy::EvictOnGpu(Stream, const EvictParams&) const {
  return Internal("attention policy '" + std::string(name()) + "' evicts nothing on a GPU");
}

Status AttentionPolicy::RememberSlotsOnGpu(Stream, const RememberSlotsParams&) const {
  return Internal("attention policy '" + std::string(name()) + "' remembers no slots on a GPU");
}

void AttentionPolicy::Fork(const PageHistory& from, PageHistory* to) const {
  CHECK_EQ(from.kv_heads, to->kv_heads);
  CHECK_LE(from.pages * from.width, to->head_stride);
  for (int h = 0; h < from.kv_heads; ++h) std::copy_n(from.Head(h), from.pages * from.width, to->Head(h));
  to->pages = from.pages;
  to->width = from.width;
}

void AttentionPolicy::Truncate(int64_t length, int page_size, PageHistory* history) const {
  const int64_t pages = (length + page_size - 1) / page_size;
  if (pages >= history->pages) return;
  for (int h = 0; h < history->kv_heads; ++h) {
    float* head = history->Head(h);
    std::fill(head + pages * history->width, head + history->pages * history->width, 0.0f);
  }
  history->pages = pages;
}

Result<AttentionSpec> AttentionSpec::Parse(std::string_view text) {
  const auto bad = [&](const std::string& why) {
    return InvalidArgument("attention '" + std::string(text) + "' " + why + "; write NAME or NAME:option=value:option=value");
  };
  AttentionSpec spec;
  size_t begin = 0;
  for (bool first = true; begin <= text.size(); first = false) {
    const size_t end = std::min(text.find(':', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    begin = end + 1;
    if (first) {
      if (part.empty()) return bad("has no policy name");
      spec.name = part;
      continue;
    }
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == part.size()) {
      return bad("has the part '" + std::string(part) + "', which is not option=value");
    }
    std::string name(part.substr(0, equals));
    if (!spec.options.emplace(name, part.substr(equals + 1)).second) return bad("names the option '" + name + "' twice");
  }
  return spec;
}

std::string AttentionSpec::ToString() const {
  std::string text = name;
  for (const auto& [option, value] : options) text += ":" + option + "=" + value;
  return text;
}

const std::vector<PolicyInfo>& PolicyTable() { return CurrentTable().infos; }

Status AddPolicy(const PolicyInfo& info, PolicyFactory make) {
  const std::string name(info.name);
  const bool spells = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-';
  });
  if (!spells) return InvalidArgument("a policy can't be called '" + name + "'; use letters, digits, '_' and '-'");
  if (!make) return InvalidArgument("policy '" + name + "' comes without a function that makes it");
  Tables& tables = AllTables();
  std::lock_guard lock(tables.mutex);
  std::vector<Row> rows = tables.versions.back().rows;
  for (const Row& row : rows) {
    if (row.info.name == info.name) {
      return Status(StatusCode::kAlreadyExists, "there is a policy '" + name + "' already; give yours another name");
    }
  }
  PolicyInfo kept = info;
  for (std::string_view* text : {&kept.name, &kept.paper, &kept.reads}) *text = tables.texts.emplace_back(*text);
  rows.push_back({std::move(kept), std::move(make)});
  tables.versions.emplace_back(std::move(rows));
  return OkStatus();
}

bool RemembersLayer(const AttentionPolicy& policy, int layer, int page_size) {
  return policy.Declare().history > 0 && !policy.IsDense(std::numeric_limits<int64_t>::max(), layer, page_size);
}

bool RememberAlike(const SpelledPolicy& a, const SpelledPolicy& b) {
  if (a.policy.Declare().history == 0 && b.policy.Declare().history == 0) return true;
  const auto without_budget = [](AttentionSpec spec) {
    spec.options.erase("token_budget");
    return spec;
  };
  return without_budget(a.spec) == without_budget(b.spec);
}

int64_t DenseUpTo(const AttentionPolicy& policy, int64_t longest, int page_size) {
  constexpr int kLastLayer = std::numeric_limits<int>::max();  // dense layers are the first ones
  int64_t dense = 0, sparse = longest + 1;                     // policies that are dense at a length are so below it
  while (sparse - dense > 1) {
    const int64_t middle = dense + (sparse - dense) / 2;
    (policy.IsDense(middle, kLastLayer, page_size) ? dense : sparse) = middle;
  }
  return dense;
}

Result<std::unique_ptr<AttentionPolicy>> MakePolicy(const AttentionSpec& spec, int page_size) {
  PolicyShape shape;
  shape.page_size = page_size;
  return MakePolicy(spec, shape);
}

Result<std::unique_ptr<AttentionPolicy>> MakePolicy(const AttentionSpec& spec, const PolicyShape& shape) {
  if (shape.page_size < 1) {
    return InvalidArgument("page size " + std::to_string(shape.page_size) + " is below 1; use 16, 32 or 64");
  }
  std::string names;
  for (const Row& row : CurrentTable().rows) {
    if (row.info.name == spec.name) return row.make(spec.options, shape);
    names += (names.empty() ? "" : ", ") + std::string(row.info.name);
  }
  return InvalidArgument("unknown attention policy '" + spec.name + "'; there are " + names);
}

}  // namespace quire
