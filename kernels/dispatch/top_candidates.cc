#include "kernels/top_candidates.h"

#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cuda/top_candidates.h"
#include "kernels/dispatch/dispatch.h"

namespace quire {

void TopCandidates(const Context& ctx, const TopCandidatesParams& p) {
  Dispatch(
      ctx, [&] { cpu::TopCandidates(ctx, p); },
      [&](Stream stream) -> Status {
        if (p.rows == 0) return OkStatus();
        const auto config = cuda::TopCandidatesConfig::For(p.rows, p.vocab, p.k);
        ASSIGN_OR_RETURN(void* workspace, ctx.session->Scratch(config.workspace_bytes));
        return cuda::TopCandidates(stream, DType::kF32,
                                   {p.logits, p.stride, p.rows, p.vocab, p.vocab_begin, p.k, p.ids, p.values, p.lse, workspace,
                                    p.row_of, p.edits});
      });
}

int MostCandidates(const Context& ctx) {
  return DispatchValue(
      ctx, [] { return std::numeric_limits<int>::max(); }, [] { return cuda::kMaxCandidates; });
}

size_t TopCandidatesScratch(const Context& ctx, int64_t rows, int64_t vocab, int k) {
  return DispatchValue(
      ctx, [] { return size_t{0}; }, [&] { return cuda::TopCandidatesConfig::For(rows, vocab, k).workspace_bytes; });
}

void GatherLogits(const Context& ctx, const GatherLogitsParams& p) {
  Dispatch(
      ctx, [&] { cpu::GatherLogits(ctx, p); },
      [&](Stream stream) {
        return cuda::GatherLogits(stream, DType::kF32,
                                  {p.logits, p.stride, p.rows, p.vocab, p.vocab_begin, p.k, p.row_of, p.ids, p.out});
      });
}

}  // namespace quire
