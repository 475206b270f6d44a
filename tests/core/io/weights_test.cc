// Dequantisation against the Python package gguf, slices of quantised tensors, conversions, and dummy weights.
#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/io/dequant.h"
#include "core/io/dummy_weights.h"
#include "core/io/gguf_weights.h"
#include "core/io/safetensors.h"
#include "tests/core/io/file_builders.h"

namespace quire {
namespace {

const std::string kFolder = std::string(QUIRE_SOURCE_DIR) + "/tests/data/gguf/";

std::unique_ptr<WeightSource> OpenGguf(const std::string& path) {
  auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status().ToString();
  auto weights = MakeGgufWeights(std::move(*file));
  EXPECT_TRUE(weights.ok()) << weights.status().ToString();
  return std::move(*weights);
}

std::vector<float> ReadWhole(const WeightSource& source, const std::string& name) {
  const TensorInfo* info = source.Find(name);
  EXPECT_NE(info, nullptr) << name;
  std::vector<float> values(static_cast<size_t>(info->rows * info->cols));
  EXPECT_TRUE(source.Read(name, {0, info->rows, 0, info->cols}, DType::kF32, values.data()).ok());
  return values;
}

TEST(Dequantise, EqualsThePythonPackageGguf) {
  const auto blocks = OpenGguf(kFolder + "blocks.gguf");
  auto expected = OpenSafetensors(kFolder + "blocks.safetensors");
  ASSERT_TRUE(expected.ok()) << expected.status().ToString();
  ASSERT_EQ(blocks->tensors().size(), 11u);
  for (const TensorInfo& info : blocks->tensors()) {
    EXPECT_EQ(StorageTypeName(info.type), info.name);
    const std::vector<float> got = ReadWhole(*blocks, info.name), want = ReadWhole(**expected, info.name);
    // d * scale * q - dmin * m: a rounding or two of the largest term may differ.
    float largest = 0;
    for (const float x : want) largest = std::max(largest, std::fabs(x));
    const float tolerance = BlockElements(info.type) == 1 ? 0.0f : 2 * std::numeric_limits<float>::epsilon() * largest;
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << info.name << " " << i;
  }
}

TEST(Dequantise, SlicesAreCutAnywhereAndCountWhatTheyRead) {
  const auto blocks = OpenGguf(kFolder + "blocks.gguf");
  for (const TensorInfo& info : blocks->tensors()) {
    const std::vector<float> whole = ReadWhole(*blocks, info.name);
    for (const auto& [begin, end] :
         {std::pair{0, 1}, {31, 33}, {255, 257}, {5, 500}, {256, 512}, {511, 512}, {0, 512}}) {
      for (const auto& [first, last] : {std::pair{0, 2}, {1, 2}}) {
        const int64_t before = blocks->bytes_read();
        std::vector<float> part(static_cast<size_t>((last - first) * (end - begin)));
        ASSERT_TRUE(blocks->Read(info.name, {first, last, begin, end}, DType::kF32, part.data()).ok());
        size_t i = 0;
        for (int r = first; r < last; ++r) {
          for (int c = begin; c < end; ++c) ASSERT_EQ(part[i++], whole[static_cast<size_t>(r * 512 + c)]);
        }
        const int block = BlockElements(info.type);
        const int touched = (end + block - 1) / block - begin / block;
        EXPECT_EQ(blocks->bytes_read() - before, (last - first) * touched * BlockBytes(info.type));
        // The 16-bit types are the floats rounded.
        std::vector<uint16_t> bf16(part.size()), f16(part.size());
        ASSERT_TRUE(blocks->Read(info.name, {first, last, begin, end}, DType::kBF16, bf16.data()).ok());
        ASSERT_TRUE(blocks->Read(info.name, {first, last, begin, end}, DType::kF16, f16.data()).ok());
        for (i = 0; i < part.size(); ++i) {
          ASSERT_EQ(bf16[i], ToBF16(part[i]).bits);
          ASSERT_EQ(f16[i], ToF16(part[i]).bits);
        }
      }
    }
  }
}

TEST(Conversions, AgreeWithTheScalarOnesForEveryHalfAndManyFloats) {
  std::vector<uint16_t> bits(65536), back(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> values(65536);
  for (const StorageType type : {StorageType::kF16, StorageType::kBF16}) {
    ConvertToFloat(type, reinterpret_cast<const std::byte*>(bits.data()), 65536, values.data());
    for (size_t i = 0; i < bits.size(); ++i) {
      const float want = type == StorageType::kF16 ? ToFloat(F16{bits[i]}) : ToFloat(BF16{bits[i]});
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(want)) << i;
    }
  }
  // Floats of every exponent, with mantissas that round down, up and to even.
  std::vector<float> floats;
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x7fffu, 0x8000u, 0x8001u, 0xf000u}) {
      floats.push_back(std::bit_cast<float>((high << 16) | low));
    }
  }
  std::vector<uint16_t> rounded(floats.size());
  ConvertFromFloat(floats.data(), static_cast<int64_t>(floats.size()), DType::kBF16, rounded.data());
  for (size_t i = 0; i < floats.size(); ++i) ASSERT_EQ(rounded[i], ToBF16(floats[i]).bits) << i;
  ConvertFromFloat(floats.data(), static_cast<int64_t>(floats.size()), DType::kF16, rounded.data());
  for (size_t i = 0; i < floats.size(); ++i) ASSERT_EQ(rounded[i], ToF16(floats[i]).bits) << i;
}

std::vector<TensorInfo> DummyTensors(StorageType type) {
  return {{"layer.weight", type, 300, 400}, {"layer.bias", type, 1, 4000}, {"input_norm.weight", type, 1, 64}};
}

TEST(DummyWeights, AreNormalReproducibleAndSliceable) {
  const auto source = MakeDummyWeights(DummyTensors(StorageType::kBF16), 7);
  const auto same = MakeDummyWeights(DummyTensors(StorageType::kBF16), 7);
  const auto other = MakeDummyWeights(DummyTensors(StorageType::kBF16), 8);
  const std::vector<float> values = ReadWhole(*source, "layer.weight");
  EXPECT_EQ(values, ReadWhole(*same, "layer.weight"));
  EXPECT_NE(values, ReadWhole(*other, "layer.weight"));
  double sum = 0, squares = 0, fourths = 0, neighbours = 0, below = 0;
  const double deviation = 1.0 / 20.0;  // 1 / sqrt(400)
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values[i] / deviation;
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
    neighbours += i > 0 ? x * values[i - 1] / deviation : 0;
    below += x < -1;
  }
  const double n = static_cast<double>(values.size());
  const double noise = 5 / std::sqrt(n);  // five standard errors
  EXPECT_NEAR(sum / n, 0, noise);
  EXPECT_NEAR(squares / n, 1, noise * std::sqrt(2.0) + 0.01);
  EXPECT_NEAR(fourths / n, 2.7, 0.15);  // a sum of four uniforms: 3 - 6/5/4
  EXPECT_NEAR(neighbours / n, 0, noise);
  EXPECT_NEAR(below / n, 0.16, 0.01);

  std::vector<float> part(10 * 7);
  ASSERT_TRUE(source->Read("layer.weight", {3, 13, 390, 397}, DType::kF32, part.data()).ok());
  for (int r = 0; r < 10; ++r) {
    for (int c = 0; c < 7; ++c)
      EXPECT_EQ(part[static_cast<size_t>(r * 7 + c)], values[static_cast<size_t>((3 + r) * 400 + 390 + c)]);
  }
  EXPECT_EQ(source->Read("layer.weight", {0, 301, 0, 1}, DType::kF32, part.data()).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(source->Read("nothing", {0, 1, 0, 1}, DType::kF32, part.data()).code(), StatusCode::kNotFound);
}

TEST(DummyWeights, EveryReaderSeesTheSameModel) {
  for (const StorageType type : {StorageType::kF32, StorageType::kBF16, StorageType::kF16}) {
    const auto source = MakeDummyWeights(DummyTensors(type), 3);
    const std::vector<float> values = ReadWhole(*source, "layer.bias");
    std::vector<uint16_t> bf16(4000), f16(4000);
    ASSERT_TRUE(source->Read("layer.bias", {0, 1, 0, 4000}, DType::kBF16, bf16.data()).ok());
    ASSERT_TRUE(source->Read("layer.bias", {0, 1, 0, 4000}, DType::kF16, f16.data()).ok());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(bf16[i], ToBF16(values[i]).bits);
      ASSERT_EQ(f16[i], ToF16(values[i]).bits);
      const float own = type == StorageType::kBF16  ? ToFloat(BF16{bf16[i]})
                        : type == StorageType::kF16 ? ToFloat(F16{f16[i]})
                                                    : values[i];
      ASSERT_EQ(own, values[i]);
    }
    EXPECT_EQ(ReadWhole(*source, "input_norm.weight"), std::vector<float>(64, 1.0f));
  }
}

// Expanding a real model: every value finite, and the time said (never asserted).
TEST(SmolLM2Weights, SmolLm2IsExpandedWhole) {
  const char* cache = std::getenv("QUIRE_CACHE");
  const char* home = std::getenv("HOME");
  const std::string folder =
      cache != nullptr ? cache : std::string(home == nullptr ? "." : home).append("/.cache/quire");
  const std::string path = folder + "/models/SmolLM2-135M-Instruct.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "SmolLM2-135M-Instruct.gguf is not in the cache";
  const auto weights = OpenGguf(path);
  std::vector<std::vector<uint16_t>> expanded;
  int64_t elements = 0;
  for (const TensorInfo& info : weights->tensors()) {
    expanded.emplace_back(static_cast<size_t>(info.rows * info.cols));
    elements += info.rows * info.cols;
  }
  const auto begin = std::chrono::steady_clock::now();
  for (size_t i = 0; i < expanded.size(); ++i) {
    const TensorInfo& info = weights->tensors()[i];
    ASSERT_TRUE(weights->Read(info.name, {0, info.rows, 0, info.cols}, DType::kBF16, expanded[i].data()).ok());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("expanded %lld weights from %lld bytes to bf16 in %.3f s\n", static_cast<long long>(elements),
              static_cast<long long>(weights->bytes_read()), seconds);
  EXPECT_GT(elements, 134'000'000);
  for (const auto& tensor : expanded) {
    for (const uint16_t bits : tensor) ASSERT_LT(bits & 0x7fff, 0x7f80);
  }
}

}  // namespace
}  // namespace quire
