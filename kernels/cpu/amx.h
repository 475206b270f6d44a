// The tile kernels on real AMX, behind functions that any build can call: whether the processor has the tiles and the
// system lets us use them is asked once, at run time.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cpu/amx_decode.h"

namespace quire {

// True when the processor has AMX-TILE and AMX-BF16 and the kernel has granted this process the tile state
// (asked for on the first call). QUIRE_AMX=0 in the environment says no.
bool HasAmx();

// For tests: from now on the software tiles stand in, and HasAmx() says yes. Slow.
void UseSoftwareTilesForTesting(bool use);

// Scores of `num_pages` whole pages: scores[h * stride + at[i] + slot]. k[i]: [k_dim / 2][page_size][2].
void AmxScorePages(const AmxQueries& q, const BF16* const* k, const int64_t* at, int num_pages, int page_size, float scale,
                   float* scores, int64_t stride);

// See AmxSumPages in amx_decode.h.
void AmxAccumulatePages(const AmxPage* pages, int num_pages, int page_size, int v_dim, const float* weights, int64_t stride,
                        int heads, bool stacked, AmxOperand* operands, float* acc);

}  // namespace quire
