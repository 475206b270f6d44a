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
                                   {p.logits, p.stride, p.rows, p.vocab, p.vocab_begin, p.k, p.ids, p.values, p.lse, workspace});
      });
}

int MostCandidates(const Context& ctx) {
  return DispatchValue(
      ctx, [] { return std::numeric_limits<int>::max(); }, [] { return cuda::kMaxCandidates; });
}

}  // namespace quire
