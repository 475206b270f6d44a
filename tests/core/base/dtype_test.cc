#include "core/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace quire {
namespace {

// Every finite binary16 goes to float and back unchanged; every float rounds to the nearest of them.
TEST(DType, F16RoundTripsAllBitPatterns) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const F16 x{static_cast<uint16_t>(bits)};
    const float f = ToFloat(x);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToF16(f))));
    } else {
      EXPECT_EQ(ToF16(f).bits, x.bits) << f;
    }
  }
}

TEST(DType, F16RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = ToFloat(F16{static_cast<uint16_t>(bits)});
    const float high = ToFloat(F16{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;  // exact in float
    const uint16_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(ToF16(middle).bits, even);
    ASSERT_EQ(ToF16(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(ToF16(std::nextafter(middle, 1e30f)).bits, bits + 1);
  }
  EXPECT_EQ(ToF16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToF16(65519.0f).bits, 0x7bff);
}

TEST(DType, BF16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(ToBF16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBF16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);
  EXPECT_EQ(ToBF16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_TRUE(std::isnan(ToFloat(ToBF16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(ToFloat(ToBF16(std::numeric_limits<float>::max()))));
}

TEST(DType, NamesParseAsHuggingFaceSpellsThem) {
  EXPECT_EQ(*ParseFloatDType("bfloat16"), DType::kBF16);
  EXPECT_EQ(*ParseFloatDType("half"), DType::kF16);
  EXPECT_EQ(ParseFloatDType("int3").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
