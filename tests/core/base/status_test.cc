#include "core/base/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace quire {
namespace {

TEST(Status, CodesCarryGrpcNumbers) {
  EXPECT_EQ(static_cast<int>(StatusCode::kInvalidArgument), 3);
  EXPECT_EQ(static_cast<int>(StatusCode::kUnauthenticated), 16);
  EXPECT_EQ(StatusCodeName(StatusCode::kResourceExhausted), "RESOURCE_EXHAUSTED");
}

TEST(Status, ContextGoesBeforeTheMessage) {
  EXPECT_EQ(NotFound("x").WithContext("loading").ToString(), "NOT_FOUND: loading: x");
  EXPECT_TRUE(OkStatus().WithContext("loading").ok());
}

Result<std::unique_ptr<int>> Make(bool good) {
  if (!good) return InvalidArgument("bad");
  return std::make_unique<int>(7);
}

Result<int> Use(bool good) {
  ASSIGN_OR_RETURN(auto p, Make(good));
  return *p;
}

TEST(Result, CarriesMoveOnlyValuesAndErrors) {
  EXPECT_EQ(*Use(true), 7);
  EXPECT_EQ(Use(false).status().code(), StatusCode::kInvalidArgument);
}

TEST(ResultDeathTest, ReadingAnErrorAborts) {
  EXPECT_DEATH((void)*Use(false), "a failed Result was read: INVALID_ARGUMENT: bad");
}

}  // namespace
}  // namespace quire
