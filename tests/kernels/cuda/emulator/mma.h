// Tensor-core products and matrix loads, computed from the fragment layouts that NVIDIA's PTX manual documents for
// mma.m16n8k16 and ldmatrix.
#pragma once

#include "core/base/dtype.h"
#include "tests/kernels/cuda/emulator/engine.h"

namespace quire::emulator {

// d += a·b, lanes' fragments in and out.
void WarpMma(DType dtype, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Where& where);

// regs [matrices]; row is this lane's row address.
void WarpLoadMatrices(int matrices, bool transpose, uint32_t* regs, const void* row, const Where& where);

}  // namespace quire::emulator
