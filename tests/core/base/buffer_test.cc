#include "core/base/buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "core/base/tensor.h"

namespace quire {
namespace {

TEST(Buffer, IsZeroedAndAligned) {
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{3} << 20}) {
    Result<Buffer> buffer = Buffer::Create(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % Buffer::kAlignment, 0u);
    for (size_t i = 0; i < bytes; i += 37) ASSERT_EQ(buffer->data()[i], std::byte{0});
    EXPECT_EQ(buffer->size(), bytes);
  }
  EXPECT_EQ(Buffer::Create(0)->data(), nullptr);
}

TEST(Buffer, MoreThanTheMachineHasIsAStatus) {
  EXPECT_EQ(Buffer::Create(size_t{1} << 50).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Buffer::Create(SIZE_MAX).status().code(), StatusCode::kResourceExhausted);
}

TEST(Tensor, KnowsItsShapeAndBytes) {
  Result<Tensor> tensor = Tensor::Create(DType::kBF16, {3, 5});
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(tensor->bytes(), 30u);
  EXPECT_EQ(tensor->shape().ToString(), "[3, 5]");
}

}  // namespace
}  // namespace quire
