// LocalCandidates: what one step asks of this rank's slice of the vocabulary, found where the logits are: the best
// candidates of rows, as they are or edited and scaled, with the slice's log-sum-exp, and the logits of given tokens.
//
// On a GPU a step's lists are brought there by one copy and the answers come back by one; whole rows never do, but where more
// candidates are wanted than its kernel takes (MostCandidates): then of the rows that want them. What is launched follows
// from sizes alone. Memory for usual steps is made at the start; a step with more edits or candidates than any before grows it.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/context.h"
#include "core/base/device_memory.h"
#include "core/base/status.h"
#include "core/model/decoder_scratch.h"
#include "kernels/top_candidates.h"
#include "parallel/shard_plan.h"

namespace quire {

// Candidates asked for at first where a draw is made from them.
inline constexpr int kFirstCandidates = 64;

struct CandidateWants {
  int rows = 0;  // the best of each of the step's rows as they are: all of them, or 0
  int k = 1;     // of each
  std::vector<CandidateRow> works;  // edited and scaled rows
  std::vector<LogitEdit> edits;     // of the works, those of this slice
  int work_k = 1;                   // candidates of each work
  bool work_raw = false;            // … with the logits that they had before
  std::vector<CandidateRow> known_rows;  // [known] rows and tokens whose logits are wanted as they are
  std::vector<int32_t> known_ids;        // [known]
  void Clear();
};

class LocalCandidates {
 public:
  // slice: of this rank, may be empty.
  static Result<LocalCandidates> Create(const Context& ctx, Range slice, int max_rows, int max_works);
  // Of the device's memory, that Create takes.
  static size_t ScratchBytes(const Context& ctx, int64_t local_vocab, int max_rows, int max_works);

  // logits: [rows][slice]. On a GPU enqueued: both arguments stay as they are until the step's end, and Finish comes after
  // the host has waited.
  Status Find(const float* logits, int rows, const CandidateWants& wants);
  Status Finish();

  // One list; k of the slice's, fewer than wanted where it is smaller.
  struct List {
    float lse = -std::numeric_limits<float>::infinity();
    const float* values = nullptr;  // [k]
    const int32_t* ids = nullptr;   // [k]
    const float* raw = nullptr;     // [k] when wanted
    int k = 0;
  };
  List Row(int row) const { return At(rows_, row); }
  List Work(int work) const { return At(works_, work); }
  // 0 where the token is another slice's.
  float Known(int i) const { return known_at(Results())[i]; }

  // The best k of some of the works, in their order: Work(0) … are theirs from then on. Waits for a GPU.
  Status FindMore(std::span<const int> works, int k);

  // Since Create, on a GPU: rows that came to the host whole, and calls of FindMore.
  int64_t whole_rows() const { return whole_rows_; }
  int64_t searches_again() const { return searches_again_; }

 private:
  // Lists of one kind in the results: lse [rows], values [rows][k], ids [rows][k], raw [rows][k] when with_raw; from word `at`.
  struct Block {
    size_t at = 0;
    int rows = 0, k = 0;
    bool with_raw = false;
    size_t entries() const { return static_cast<size_t>(rows) * static_cast<size_t>(k); }
    size_t end() const { return at + static_cast<size_t>(rows) + (with_raw ? 3 : 2) * entries(); }
  };
  // A step's lists where the kernels read them.
  struct Inputs {
    const CandidateRow* works = nullptr;
    const LogitEdit* edits = nullptr;
    const CandidateRow* known_rows = nullptr;
    const int32_t* known_ids = nullptr;
  };

  LocalCandidates() = default;
  bool on_gpu() const { return ctx_.device.kind != DeviceKind::kCpu; }
  int Own(int64_t k) const { return static_cast<int>(k < slice_.size() ? k : slice_.size()); }
  float* Results() const { return reinterpret_cast<float*>(host_results_.data()); }
  const float* known_at(const float* results) const { return results + works_.end(); }
  List At(const Block& block, int row) const;
  Inputs OfHost() const;
  Result<Inputs> Bring();
  Status ReserveResults(size_t words);
  void FindBlock(const Context& ctx, const float* logits, const CandidateRow* row_of, const LogitEdit* edits,
                 const Block& block, float* results);
  void FindAll(const Context& ctx, const float* logits, const Inputs& inputs, float* results);
  Status BringRows(std::span<CandidateRow> rows);

  Context ctx_;       // where the logits are
  Context host_ctx_;  // the CPU
  Range slice_;
  // Of the latest Find.
  const float* logits_ = nullptr;  // on the device
  const CandidateWants* wants_ = nullptr;
  Inputs inputs_;
  Block rows_, works_;
  bool whole_ = false;  // on a GPU: all rows are in host_rows_, and what is wanted is found by the CPU
  std::vector<CandidateRow> again_;  // of FindMore
  // Memory.
  HostBuffer staging_;      // of a GPU's inputs
  GrowBuffer inputs_memory_;
  GrowBuffer device_results_;
  HostBuffer host_results_;
  HostBuffer host_rows_;    // [rows][slice]
  GrowBuffer work_;         // [works][slice] edited rows, of the CPU
  int64_t whole_rows_ = 0, searches_again_ = 0;
};

}  // namespace quire
