// Telemetry of sparse attention: how much of dense attention's softmax mass may have been left out, by quest's page bounds
// (Tang et al., arXiv 2406.10774). For a query head let U be the sum over pages left out of tokens · exp(score bound), and
// S = exp(lse of what was read); then the share left out is at most U / (U + S).
#pragma once

#include "core/base/context.h"
#include "kernels/selection/policy.h"

namespace quire {

// Bytes.
size_t MissingMassWorkspace(const Context& ctx, const SelectParams& params);
// sums[row] becomes the sum of the bounds over the row's query heads, each in [0, 1]; on a GPU all arrays are in its memory.
// params: as for Select, with page metadata (pages.meta) and `longest`; its queries are those that attended. selection: of
// whole pages. lse: [rows][q_heads], natural, of scores scaled by params.scale and capped where softcap > 0.
// Reads the min and max of all pages once a query head (a GPU: once for up to eight of a group, and only where a page was
// left out): as much as quest's selection for each head of a group.
void MissingMassBounds(const Context& ctx, const SelectParams& params, const SelectionView& selection, const float* lse,
                       float softcap, float* sums, void* workspace);

}  // namespace quire
