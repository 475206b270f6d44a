// kernels/cuda/matmul.h for the emulator: one dot product after the other, in the order of the columns, summed in double.
#include <memory>

#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/emulator/engine.h"

namespace quire::cuda {
namespace {

class HostMatmul : public Matmul {
 public:
  size_t workspace_bytes() const override { return 0; }
  Status Run(Stream stream, const MatmulParams& params) override {
    emulator::Submit(stream.handle, [params] { Multiply(params); });
    return OkStatus();
  }

 private:
  static void Multiply(const MatmulParams& p) {
    const void* addresses[] = {p.x, p.w, p.bias, p.out};  // not the struct, whose gaps may hold anything
    emulator::RunHostTask("matmul", addresses, sizeof(addresses), [&] {
      VisitFloatDType(p.dtype, [&](auto t) {
        using T = decltype(t);
        for (int64_t i = 0; i < p.m; ++i) {
          const T* x = static_cast<const T*>(p.x) + i * p.x_stride;
          for (int64_t row = 0; row < p.rows; ++row) {
            const T* w = static_cast<const T*>(p.w) + row * p.cols;
            double sum = p.bias != nullptr ? p.bias[row] : 0.0;
            for (int64_t c = 0; c < p.cols; ++c) sum += double{quire::ToFloat(x[c])} * double{quire::ToFloat(w[c])};
            float& out = p.out[i * p.out_stride + row];
            out = static_cast<float>(p.accumulate ? sum + double{out} : sum);
          }
        }
      });
    });
  }
};

}  // namespace

Result<std::unique_ptr<Matmul>> MakeMatmul(Device) { return std::unique_ptr<Matmul>(std::make_unique<HostMatmul>()); }

}  // namespace quire::cuda
