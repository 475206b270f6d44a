// Products and row-wise kernels timed beside the machine's own rates, measured in the same run.
//   dense_bench [threads] [seconds per figure] [all | decode | float32 | bfloat16 | float16 | prefill | rows]
// Weights of one product together exceed the last-level cache by far (kWeightBytes), so that decode figures are memory's.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/machine.h"
#include "kernels/top_candidates.h"

namespace quire {
namespace {

constexpr int64_t kWeightBytes = int64_t{256} << 20;
constexpr int64_t kWindowBytes = int64_t{12} << 20;

template <typename F>
double BestSeconds(double seconds, F&& f) {
  f();
  double best = 1e30;
  const double end = NowSeconds() + seconds;
  do {
    const double start = NowSeconds();
    f();
    best = std::min(best, NowSeconds() - start);
  } while (NowSeconds() < end);
  return best;
}

Tensor Random(DType dtype, int64_t rows, int64_t cols) {
  Tensor tensor = Tensor::Create(dtype, {rows, cols}).value();
  uint32_t state = 1;
  VisitFloatDType(dtype, [&](auto t) {
    auto* to = tensor.data<decltype(t)>();
    for (int64_t i = 0; i < rows * cols; ++i) {
      state = state * 1664525u + 1013904223u;
      to[i] = FromFloat<decltype(t)>((static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * 0.1f);
    }
  });
  return tensor;
}

struct Shape2 {
  const char* name;
  int64_t rows, cols;
};
// A 246M-parameter Llama: hidden 1024, 16 query and 4 KV heads of 64, ffn 2816, vocabulary 49152.
constexpr Shape2 kShapes[] = {
    {"qkv", 1536, 1024}, {"out", 1024, 1024}, {"gate_up", 5632, 1024}, {"down", 1024, 2816}, {"logits", 49152, 1024}};

void Decode(const Context& ctx, double seconds, DType dtype, double read_gb_s) {
  for (const Shape2& shape : kShapes) {
    const int64_t one = shape.rows * shape.cols * ElementSize(dtype);
    const int64_t copies = std::max<int64_t>(1, kWeightBytes / one);
    const Tensor data = Random(dtype, copies * shape.rows, shape.cols);
    std::vector<Weight> weights;
    for (int64_t c = 0; c < copies; ++c) {
      weights.push_back(Weight::Borrow(data.data<std::byte>() + c * one, dtype, shape.rows, shape.cols).value());
    }
    for (int64_t m : {1, 2, 4, 8, 16}) {
      Tensor x = Random(DType::kF32, m, shape.cols), y = Random(DType::kF32, m, shape.rows);
      // One pass takes as many weights as kWindowBytes, going round; see MeasureMachine.
      const int64_t window = std::min(copies, std::max<int64_t>(1, kWindowBytes / one));
      int64_t at = 0;
      const double s = BestSeconds(seconds, [&] {
        for (int64_t w = 0; w < window; ++w, at = (at + 1) % copies) {
          Linear(ctx, x.data<float>(), shape.cols, m, weights[static_cast<size_t>(at)], nullptr, y.data<float>(), shape.rows);
        }
      });
      const double gb_s = static_cast<double>(window * one) / s * 1e-9;
      std::printf("decode %-8s %-8s m %2d  %6.1f GB/s  %5.1f %% of read  %6.1f GFLOP/s\n", DTypeName(dtype).data(), shape.name,
                  static_cast<int>(m), gb_s, 100 * gb_s / read_gb_s,
                  2e-9 * static_cast<double>(m * shape.rows * shape.cols * window) / s);
    }
  }
}

void Prefill(const Context& ctx, double seconds, DType dtype, double library) {
  for (const Shape2& shape : kShapes) {
    if (shape.rows > 10000) continue;
    Weight weight = Weight::Own(Random(dtype, shape.rows, shape.cols)).value();
    for (int64_t m : {17, 32, 64, 128, 512, 2048}) {
      Tensor x = Random(DType::kF32, m, shape.cols), y = Random(DType::kF32, m, shape.rows);
      const double flop = 2e-9 * static_cast<double>(m * shape.rows * shape.cols);
      const double ours = BestSeconds(seconds, [&] {
        Linear(ctx, x.data<float>(), shape.cols, m, weight, nullptr, y.data<float>(), shape.rows);
      });
      std::printf("prefill %-8s %-8s m %4d  %6.1f GFLOP/s  %5.1f %% of library", DTypeName(dtype).data(), shape.name,
                  static_cast<int>(m), flop / ours, 100 * flop / ours / library);
      if (dtype == DType::kF32) {
        const auto onednn = cpu::OneDnnMatmul::Create(ctx, weight.data(), dtype, shape.rows, shape.cols);
        const double theirs = BestSeconds(seconds, [&] {
          (*onednn)->Run(ctx, x.data<float>(), shape.cols, m, nullptr, y.data<float>(), shape.rows, false);
        });
        std::printf("  oneDNN here %6.1f", flop / theirs);
      }
      std::printf("\n");
    }
  }
}

void RowWise(const Context& ctx, double seconds) {
  for (int64_t rows : {1, 8, 512}) {
    const int64_t width = 2816;
    Tensor gate_up = Random(DType::kF32, rows, 2 * width), out = Random(DType::kF32, rows, width);
    Tensor weight = Random(DType::kF32, 1, width);
    double s = BestSeconds(seconds, [&] { SiluMul(ctx, gate_up.data<float>(), rows, width, out.data<float>()); });
    std::printf("silu_mul rows %3d  %8.2f us\n", static_cast<int>(rows), s * 1e6);
    s = BestSeconds(seconds, [&] {
      RmsNorm(ctx, gate_up.data<float>(), weight.data<float>(), 1e-5f, rows, width, out.data<float>());
    });
    std::printf("rms_norm rows %3d  %8.2f us\n", static_cast<int>(rows), s * 1e6);
  }
  for (int64_t rows : {1, 8}) {
    const int64_t vocab = 151936;
    Tensor logits = Random(DType::kF32, rows, vocab);
    for (int k : {1, 64, 1000}) {
      std::vector<int32_t> ids(static_cast<size_t>(rows * k));
      std::vector<float> values(ids.size()), lse(static_cast<size_t>(rows));
      TopCandidatesParams p;
      p.logits = logits.data<float>();
      p.stride = p.vocab = vocab;
      p.rows = rows;
      p.k = k;
      p.ids = ids.data();
      p.values = values.data();
      p.lse = lse.data();
      const double s = BestSeconds(seconds, [&] { TopCandidates(ctx, p); });
      std::printf("top_candidates rows %d k %4d of 151936  %8.1f us\n", static_cast<int>(rows), k, s * 1e6);
    }
  }
}

int Main(int argc, char** argv) {
  const std::string part = argc > 3 ? argv[3] : "all";
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.2;
  Context ctx;
  ctx.pool = &pool;
  const MachineRates rates = MeasureMachine(ctx, std::max(1.0, 10 * seconds));
  std::printf("machine: %d threads, read %.1f GB/s, copy %.1f GB/s, %s %.1f GFLOP/s\n", pool.threads(), rates.read_gb_s,
              rates.copy_gb_s, rates.matmul_name, rates.matmul_gflop_s);
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (part == "all" || part == "decode" || part == DTypeName(dtype)) Decode(ctx, seconds, dtype, rates.read_gb_s);
  }
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    if (part == "all" || part == "prefill") Prefill(ctx, seconds, dtype, rates.matmul_gflop_s);
  }
  if (part == "all" || part == "rows") RowWise(ctx, seconds);
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
