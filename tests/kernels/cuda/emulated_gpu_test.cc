// Device memory, streams and the session, on the emulator's GPU; and that the emulator finds what mixes host and device up.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/device_memory.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/device_session.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/machine.h"
#include "kernels/page_ops.h"
#include "kernels/product_rows.h"
#include "tests/kernels/cuda/emulator/device.h"
#include "tests/kernels/cuda/emulator/options.h"
#include "tests/kernels/cuda/typed.h"

namespace quire {
namespace {

constexpr Device kGpu{DeviceKind::kCuda, 0};

TEST(DeviceMemory, IsZeroedAndGoesBothWays) {
  Result<Buffer> buffer = Buffer::Create(1000, kGpu);
  ASSERT_TRUE(buffer.ok()) << buffer.status().ToString();
  EXPECT_EQ(buffer->size(), 1000u);
  EXPECT_EQ(buffer->device(), kGpu);
  std::vector<char> host(1000, 1);
  ASSERT_TRUE(CopyFromDevice(kGpu, host.data(), buffer->data(), 1000).ok());
  EXPECT_EQ(host, std::vector<char>(1000, 0));
  std::iota(host.begin(), host.end(), 0);
  ASSERT_TRUE(CopyToDevice(kGpu, buffer->data(), host.data(), 1000).ok());
  ASSERT_TRUE(CopyOnDevice(kGpu, buffer->data() + 500, buffer->data(), 100).ok());
  ASSERT_TRUE(ClearOnDevice(kGpu, buffer->data(), 10).ok());
  ASSERT_TRUE(CopyRowsOnDevice(kGpu, buffer->data() + 800, 20, buffer->data() + 100, 50, 8, 3).ok());
  std::vector<char> want = host;
  std::copy_n(host.begin(), 100, want.begin() + 500);
  std::fill_n(want.begin(), 10, 0);
  for (int row = 0; row < 3; ++row) std::copy_n(host.begin() + 100 + row * 50, 8, want.begin() + 800 + row * 20);
  std::vector<char> back(1000);
  ASSERT_TRUE(CopyFromDevice(kGpu, back.data(), buffer->data(), 1000).ok());
  EXPECT_EQ(back, want);
}

TEST(DeviceMemory, OutOfMemoryIsAStatusWithTheNumbers) {
  const emulator::ScopedGpu gpu({.devices = 1, .memory_bytes = emulator::CountsOfGpu().bytes + 5000});
  const Result<Buffer> fits = Buffer::Create(3000, kGpu);
  ASSERT_TRUE(fits.ok());
  const Status status = Buffer::Create(3000, kGpu).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("3000 bytes"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("2000 of"), std::string::npos) << status.message();
}

TEST(DeviceMemory, GoesBackWithTheBuffer) {
  const size_t before = emulator::CountsOfGpu().bytes;
  {
    Result<Buffer> a = Buffer::Create(4096, kGpu);
    ASSERT_TRUE(a.ok());
    Buffer b = std::move(a).value();
    EXPECT_EQ(emulator::CountsOfGpu().bytes, before + 4096);
    b = Buffer();
    EXPECT_EQ(emulator::CountsOfGpu().bytes, before);
  }
  EXPECT_EQ(emulator::CountsOfGpu().bytes, before);
}

TEST(DeviceMemory, AMachineWithoutGpusSaysSo) {
  const emulator::ScopedGpu gpu({.devices = 0});
  std::string why;
  EXPECT_EQ(CudaDeviceCount(&why), 0);
  EXPECT_NE(why.find("no GPU"), std::string::npos);
  EXPECT_FALSE(Buffer::Create(1, kGpu).ok());
  EXPECT_FALSE(DeviceSession::Create(kGpu).ok());
}

TEST(DeviceMemory, EventsTellTheTimeBetween) {
  Result<OwnedStream> stream = OwnedStream::Create(kGpu);
  Result<OwnedEvent> first = OwnedEvent::Create(kGpu), second = OwnedEvent::Create(kGpu);
  ASSERT_TRUE(stream.ok() && first.ok() && second.ok());
  ASSERT_TRUE(first->Record(stream->get()).ok());
  ASSERT_TRUE(second->Record(stream->get()).ok());
  ASSERT_TRUE(second->Wait().ok());
  const Result<double> seconds = second->SecondsSince(*first);
  ASSERT_TRUE(seconds.ok());
  EXPECT_GE(*seconds, 0.0);
}

TEST(EmulatedGpuDeathTest, TheHostCannotTouchDeviceMemory) {
  Result<Buffer> buffer = Buffer::Create(64, kGpu);
  ASSERT_TRUE(buffer.ok());
  EXPECT_DEATH({ *reinterpret_cast<volatile char*>(buffer->data()) = 1; }, "");
  EXPECT_DEATH({ static_cast<void>(*reinterpret_cast<volatile const char*>(buffer->data())); }, "");
}

TEST(EmulatedGpu, CopiesAndLaunchesThatMixUpMemoryFail) {
  Result<Buffer> buffer = Buffer::Create(256, kGpu);
  ASSERT_TRUE(buffer.ok());
  std::vector<float> host(64);
  EXPECT_THROW(static_cast<void>(CopyToDevice(kGpu, host.data(), host.data(), 64)), emulator::Error);
  EXPECT_THROW(static_cast<void>(CopyFromDevice(kGpu, buffer->data(), host.data(), 64)), emulator::Error);
  EXPECT_THROW(static_cast<void>(CopyOnDevice(kGpu, buffer->data(), host.data(), 64)), emulator::Error);
  auto* device = reinterpret_cast<float*>(buffer->data());
  ASSERT_TRUE(cuda::SiluMul({}, DType::kF32, DType::kF32, device, device + 32, 1, 16).ok());
  EXPECT_THROW(static_cast<void>(cuda::SiluMul({}, DType::kF32, DType::kF32, host.data(), device, 1, 16)), emulator::Error);
  EXPECT_THROW(static_cast<void>(cuda::SiluMul({}, DType::kF32, DType::kF32, device, host.data(), 1, 16)), emulator::Error);
}

// What is put on a stream is done when the host waits, no sooner.
TEST(EmulatedGpu, StreamsWorkLate) {
  Result<OwnedStream> stream = OwnedStream::Create(kGpu);
  Result<Buffer> buffer = Buffer::Create(64, kGpu);
  Result<HostBuffer> in = HostBuffer::Create(kGpu, 64), out = HostBuffer::Create(kGpu, 64);
  ASSERT_TRUE(stream.ok() && buffer.ok() && in.ok() && out.ok());
  std::memset(in->data(), 1, 64);
  std::memset(out->data(), 9, 64);
  ASSERT_TRUE(CopyToDevice(kGpu, buffer->data(), in->data(), 64, stream->get()).ok());
  std::memset(in->data(), 2, 64);  // too early: this is what arrives
  ASSERT_TRUE(CopyFromDevice(kGpu, out->data(), buffer->data(), 64, stream->get()).ok());
  EXPECT_EQ(out->data()[0], std::byte{9});
  ASSERT_TRUE(Synchronize(kGpu, stream->get()).ok());
  EXPECT_EQ(out->data()[0], std::byte{2});
  // Ordinary memory is copied out of when the call returns, and copied into likewise.
  std::vector<std::byte> host(64, std::byte{3});
  ASSERT_TRUE(CopyToDevice(kGpu, buffer->data(), host.data(), 64, stream->get()).ok());
  host.assign(64, std::byte{4});
  ASSERT_TRUE(CopyFromDevice(kGpu, host.data(), buffer->data(), 64, stream->get()).ok());
  EXPECT_EQ(host[0], std::byte{3});
}

// A graph does again what was recorded, with the arguments and addresses of then and what lies there now.
TEST(EmulatedGpu, GraphsDoWhatWasRecordedAgain) {
  Result<OwnedStream> stream = OwnedStream::Create(kGpu);
  Result<Buffer> buffer = Buffer::Create(128, kGpu);
  Result<HostBuffer> host = HostBuffer::Create(kGpu, 64);
  ASSERT_TRUE(stream.ok() && buffer.ok() && host.ok());
  std::byte* at = buffer->data();
  const auto read = [&](size_t offset) {
    std::vector<std::byte> got(1);
    EXPECT_TRUE(CopyFromDevice(kGpu, got.data(), at + offset, 1, stream->get()).ok());
    return static_cast<int>(got[0]);
  };
  ASSERT_TRUE(OwnedGraph::Begin(kGpu, stream->get()).ok());
  std::memset(host->data(), 1, 64);
  ASSERT_TRUE(CopyToDevice(kGpu, at, host->data(), 64, stream->get()).ok());
  ASSERT_TRUE(CopyOnDevice(kGpu, at + 64, at, 64, stream->get()).ok());
  Result<OwnedGraph> graph = OwnedGraph::End(kGpu, stream->get());
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  EXPECT_EQ(read(64), 0);  // recorded, not done
  for (int value = 2; value < 4; ++value) {
    std::memset(host->data(), value, 64);
    ASSERT_TRUE(graph->Launch(stream->get()).ok());
    EXPECT_EQ(read(64), value);
  }
}

TEST(EmulatedGpu, WhatMayNotBeCapturedSpoilsTheCapture) {
  Result<OwnedStream> stream = OwnedStream::Create(kGpu);
  Result<Buffer> buffer = Buffer::Create(64, kGpu);
  ASSERT_TRUE(stream.ok() && buffer.ok());
  std::vector<std::byte> ordinary(64, std::byte{7});
  const auto fails = [&](auto&& call) {
    EXPECT_TRUE(OwnedGraph::Begin(kGpu, stream->get()).ok());
    EXPECT_TRUE(ClearOnDevice(kGpu, buffer->data(), 64, stream->get()).ok());
    EXPECT_FALSE(call().ok());
    const Result<OwnedGraph> graph = OwnedGraph::End(kGpu, stream->get());
    EXPECT_EQ(graph.status().code(), StatusCode::kInternal);
  };
  fails([&] { return Buffer::Create(64, kGpu).status(); });
  fails([&] { return HostBuffer::Create(kGpu, 64).status(); });
  fails([&] { return Synchronize(kGpu, stream->get()); });
  fails([&] { return CopyToDevice(kGpu, buffer->data(), ordinary.data(), 64, stream->get()); });
  fails([&] { return CopyFromDevice(kGpu, ordinary.data(), buffer->data(), 64, stream->get()); });
  // The stream is as before, and nothing of it was done.
  ASSERT_TRUE(CopyToDevice(kGpu, buffer->data(), ordinary.data(), 64, stream->get()).ok());
  ordinary.assign(64, std::byte{0});
  ASSERT_TRUE(CopyFromDevice(kGpu, ordinary.data(), buffer->data(), 64, stream->get()).ok());
  EXPECT_EQ(ordinary[0], std::byte{7});
}

// A context for the GPU, over a session.
struct Session {
  Session() {
    auto made = DeviceSession::Create(kGpu);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    session = std::move(made).value();
    ctx.device = kGpu;
    ctx.stream = session->stream();
    ctx.session = session.get();
    ctx.pool = &pool;
  }
  ThreadPool pool{1};
  std::unique_ptr<DeviceSession> session;
  Context ctx;
};

TEST(DeviceSession, OperationsGoToTheGpu) {
  Session s;
  std::vector<float> x(48), want(24), got(24);
  std::iota(x.begin(), x.end(), -20.0f);
  Context cpu;
  cpu.pool = &s.pool;
  SiluMul(cpu, x.data(), 2, 12, want.data());
  Result<Buffer> device = Buffer::Create(72 * sizeof(float), kGpu);
  ASSERT_TRUE(device.ok());
  auto* at = reinterpret_cast<float*>(device->data());
  ASSERT_TRUE(CopyToDevice(kGpu, at, x.data(), 48 * sizeof(float), s.ctx.stream).ok());
  const int64_t launches = emulator::CountsOfGpu().launches;
  SiluMul(s.ctx, at, 2, 12, at + 48);
  ASSERT_TRUE(CopyFromDevice(kGpu, got.data(), at + 48, 24 * sizeof(float), s.ctx.stream).ok());
  ASSERT_TRUE(s.session->Synchronize().ok());
  EXPECT_EQ(emulator::CountsOfGpu().launches, launches + 1);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5f * std::abs(want[i]) + 1e-12f) << i;
}

TEST(DeviceSession, KeepsTheFirstErrorAndLeavesTheRestOut) {
  Session s;
  s.session->Keep(Internal("first"));
  s.session->Keep(Internal("second"));
  Result<Buffer> device = Buffer::Create(256, kGpu);
  auto* at = reinterpret_cast<float*>(device->data());
  const int64_t launches = emulator::CountsOfGpu().launches;
  Add(s.ctx, at, 1, 8, at + 32);
  ASSERT_TRUE(Synchronize(kGpu, s.ctx.stream).ok());
  EXPECT_EQ(emulator::CountsOfGpu().launches, launches);
  EXPECT_EQ(s.session->Synchronize().message(), "first");
}

TEST(DeviceSession, WhatFailsInACaptureIsForgottenWithIt) {
  Session s;
  Result<Buffer> device = Buffer::Create(256, kGpu);
  auto* at = reinterpret_cast<float*>(device->data());
  ASSERT_TRUE(s.session->BeginCapture().ok());
  Add(s.ctx, at, 1, 8, at + 32);
  const std::vector<int> ids = {1, 2};
  s.session->Keep(s.session->Upload(ids.data(), sizeof(int) * ids.size()).status());
  EXPECT_FALSE(s.session->EndCapture().ok());
  EXPECT_TRUE(s.session->Synchronize().ok());

  const int64_t launches = emulator::CountsOfGpu().launches;
  ASSERT_TRUE(s.session->BeginCapture().ok());
  Add(s.ctx, at, 1, 8, at + 32);
  const Result<OwnedGraph> graph = s.session->EndCapture();
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(graph->Launch(s.ctx.stream).ok());
  ASSERT_TRUE(s.session->Synchronize().ok());
  EXPECT_EQ(emulator::CountsOfGpu().launches, launches + 3);
}

// Lists of page operations that meet in every way, batched on the GPU, one after the other on the CPU: the same bytes.
TEST(PageOps, BatchesDoWhatOneAfterTheOtherDoes) {
  constexpr int kLayers = 2, kPages = 6, kGroups = 4;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Result<PageFormat> format = PageFormat::Create(dtype, 4, 2, 8, 8);
    ASSERT_TRUE(format.ok());
    const int64_t size = ElementSize(dtype);
    const int64_t k = kPages * format->k_page_stride, v = kPages * format->v_page_stride;
    const int64_t meta = kGroups * format->meta_group_stride, over = kGroups * format->over_group_stride;
    const size_t bytes = static_cast<size_t>(kLayers * (k + v + meta + over) * size);
    const auto layers_at = [&](std::byte* base) {
      LayersOfPages layers;
      layers.first.k = base;
      layers.first.v = base + kLayers * k * size;
      layers.first.meta = base + kLayers * (k + v) * size;
      layers.first.over = base + kLayers * (k + v + meta) * size;
      layers.format = *format;
      layers.layers = kLayers;
      layers.k_layer_stride = k;
      layers.v_layer_stride = v;
      layers.meta_layer_stride = meta;
      layers.over_layer_stride = over;
      return layers;
    };
    Session s;
    Context cpu;
    cpu.pool = &s.pool;
    Result<Buffer> device = Buffer::Create(bytes, kGpu);
    ASSERT_TRUE(device.ok());
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      std::mt19937_64 random(seed);
      const auto below = [&](int n) { return static_cast<int32_t>(random() % static_cast<uint64_t>(n)); };
      testing::Typed host(dtype, testing::SeededFloats(bytes / static_cast<size_t>(size), seed));
      ASSERT_TRUE(CopyToDevice(kGpu, device->data(), host.data(), bytes, s.ctx.stream).ok());
      std::vector<PageOp> ops;
      std::vector<int32_t> listed;
      for (int i = 0; i < 12; ++i) {
        PageOp op;
        op.kind = static_cast<PageOp::Kind>(below(5));
        const bool of_page = op.kind == PageOp::Kind::kZeroPage || op.kind == PageOp::Kind::kCopyPage;
        op.to = below(of_page ? kPages : kGroups);
        if (op.kind == PageOp::Kind::kCopyPage) op.from = (op.to + 1 + below(kPages - 1)) % kPages;
        if (op.kind == PageOp::Kind::kCopyGroup) op.from = (op.to + 1 + below(kGroups - 1)) % kGroups;
        op.columns = 1 + below(op.kind == PageOp::Kind::kRecomputeMetadata ? 3 : kPagesPerGroup);
        op.slots = 1 + below(4);
        op.pages_begin = static_cast<int32_t>(listed.size());
        if (op.kind == PageOp::Kind::kRecomputeMetadata) {
          for (int c = 0; c < op.columns; ++c) listed.push_back(below(kPages));
        }
        ops.push_back(op);
      }
      RunPageOps(s.ctx, layers_at(device->data()), ops, listed);
      RunPageOps(cpu, layers_at(static_cast<std::byte*>(host.data())), ops, listed);
      std::vector<std::byte> back(bytes);
      ASSERT_TRUE(CopyFromDevice(kGpu, back.data(), device->data(), bytes, s.ctx.stream).ok());
      ASSERT_TRUE(s.session->Synchronize().ok());
      EXPECT_EQ(back, host.bytes()) << DTypeName(dtype) << " seed " << seed;
    }
  }
}

TEST(PageOps, ManyZeroedPagesAreOneLaunchOfEachKind) {
  const Result<PageFormat> format = PageFormat::Create(DType::kF32, 4, 1, 8, 8);
  ASSERT_TRUE(format.ok());
  Session s;
  Result<Buffer> device = Buffer::Create(static_cast<size_t>(10 * (format->k_page_stride + format->v_page_stride) * 4), kGpu);
  ASSERT_TRUE(device.ok());
  LayersOfPages layers;
  layers.first.k = device->data();
  layers.first.v = device->data() + 10 * format->k_page_stride * 4;
  layers.format = *format;
  std::vector<PageOp> ops(10);
  for (int i = 0; i < 10; ++i) ops[static_cast<size_t>(i)].to = i;
  const emulator::GpuCounts before = emulator::CountsOfGpu();
  RunPageOps(s.ctx, layers, ops, {});
  ASSERT_TRUE(s.session->Synchronize().ok());
  EXPECT_EQ(emulator::CountsOfGpu().launches - before.launches, 2);  // K and V
  EXPECT_EQ(emulator::CountsOfGpu().copies - before.copies, 1);
}

// Products on the GPU round x to the weight's type, and nothing else.
TEST(LinearOnGpu, IsThatOfRoundedRows) {
  const int64_t m = 3, rows = 5, cols = 24, x_stride = 26, out_stride = 7;
  for (const DType dtype : testing::kFloatDTypes) {
    Session s;
    const std::vector<float> x = testing::SeededFloats(static_cast<size_t>(m * x_stride), 1);
    const testing::Typed w(dtype, testing::SeededFloats(static_cast<size_t>(rows * cols), 2));
    const std::vector<float> bias = testing::SeededFloats(static_cast<size_t>(rows), 3);
    const std::vector<float> before = testing::SeededFloats(static_cast<size_t>(m * out_stride), 4);
    const auto bring = [&](const void* data, size_t bytes) {
      Result<Buffer> buffer = Buffer::Create(bytes, kGpu);
      EXPECT_TRUE(CopyToDevice(kGpu, buffer->data(), data, bytes, s.ctx.stream).ok());
      return std::move(buffer).value();
    };
    Buffer dx = bring(x.data(), x.size() * 4), dw = bring(w.data(), w.bytes().size()), db = bring(bias.data(), bias.size() * 4);
    Result<Weight> weight = Weight::Borrow(dw.data(), dtype, rows, cols);
    ASSERT_TRUE(weight.ok());
    ASSERT_TRUE(PrepareWeight(s.ctx, *weight).ok());
    for (const bool accumulate : {false, true}) {
      Buffer out = bring(before.data(), before.size() * 4);
      Linear(s.ctx, reinterpret_cast<float*>(dx.data()), x_stride, m, *weight, reinterpret_cast<float*>(db.data()),
             reinterpret_cast<float*>(out.data()), out_stride, accumulate);
      std::vector<float> got(before.size());
      ASSERT_TRUE(CopyFromDevice(kGpu, got.data(), out.data(), got.size() * 4, s.ctx.stream).ok());
      ASSERT_TRUE(s.session->Synchronize().ok());
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t r = 0; r < out_stride; ++r) {
          const auto at = static_cast<size_t>(i * out_stride + r);
          if (r >= rows) {
            EXPECT_EQ(got[at], before[at]);
            continue;
          }
          double want = bias[static_cast<size_t>(r)] + (accumulate ? double{before[at]} : 0.0);
          for (int64_t c = 0; c < cols; ++c) {
            const float xv = x[static_cast<size_t>(i * x_stride + c)];
            const double rounded = VisitFloatDType(dtype, [&](auto t) { return double{ToFloat(FromFloat<decltype(t)>(xv))}; });
            want += rounded * double{w.At(static_cast<size_t>(r * cols + c))};
          }
          EXPECT_NEAR(got[at], want, 1e-5) << DTypeName(dtype) << " " << i << " " << r;
        }
      }
    }
  }
}

// Rows that a norm made for a product meet it as those that the product rounds itself, in a kernel less.
TEST(LinearOnGpu, TakesRowsMadeInTheWeightsType) {
  const int64_t m = 3, rows = 5, cols = 24;
  for (const DType dtype : testing::kFloatDTypes) {
    Session s;
    const std::vector<float> x = testing::SeededFloats(static_cast<size_t>(m * cols), 1);
    const std::vector<float> scale = testing::SeededFloats(static_cast<size_t>(cols), 3);
    const testing::Typed w(dtype, testing::SeededFloats(static_cast<size_t>(rows * cols), 2));
    const auto bring = [&](const void* data, size_t bytes) {
      Result<Buffer> buffer = Buffer::Create(bytes, kGpu);
      EXPECT_TRUE(CopyToDevice(kGpu, buffer->data(), data, bytes, s.ctx.stream).ok());
      return std::move(buffer).value();
    };
    Buffer dx = bring(x.data(), x.size() * 4), dw = bring(w.data(), w.bytes().size()), ds = bring(scale.data(), scale.size() * 4);
    Buffer normed = bring(x.data(), x.size() * 4), out = bring(x.data(), static_cast<size_t>(m * rows) * 4);
    const auto floats = [](Buffer& buffer) { return reinterpret_cast<float*>(buffer.data()); };
    Result<Weight> weight = Weight::Borrow(dw.data(), dtype, rows, cols);
    ASSERT_TRUE(weight.ok());
    EXPECT_EQ(ProductType(s.ctx, *weight), dtype);
    Context cpu;
    EXPECT_EQ(ProductType(cpu, *weight), DType::kF32);
    std::vector<std::vector<float>> got;
    std::vector<int64_t> launches;
    for (const ProductRows& made : {ProductRows(floats(normed)), ProductRows(normed.data(), dtype)}) {
      const int64_t before = emulator::CountsOfGpu().launches;
      RmsNorm(s.ctx, floats(dx), floats(ds), 1e-5f, m, cols, made);
      Linear(s.ctx, made, cols, m, *weight, nullptr, floats(out), rows);
      got.emplace_back(static_cast<size_t>(m * rows));
      ASSERT_TRUE(CopyFromDevice(kGpu, got.back().data(), out.data(), got.back().size() * 4, s.ctx.stream).ok());
      ASSERT_TRUE(s.session->Synchronize().ok());
      launches.push_back(emulator::CountsOfGpu().launches - before);
    }
    EXPECT_EQ(got[0], got[1]) << DTypeName(dtype);
    EXPECT_EQ(launches[0], launches[1] + (dtype == DType::kF32 ? 0 : 1));
  }
}

TEST(MeasureGpu, GivesRates) {
  Session s;
  const Result<MachineRates> rates = MeasureGpu(*s.session, 0.001, 1 << 20);
  ASSERT_TRUE(rates.ok()) << rates.status().ToString();
  EXPECT_GT(rates->copy_gb_s, 0);
  EXPECT_GT(rates->matmul_gflop_s, 0);
}

}  // namespace
}  // namespace quire
