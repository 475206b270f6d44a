#include "kvstore/page_pool.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

TEST(PagePool, HandsOutTheLowestIdsFirstAndTheLastFreedNext) {
  PagePool pool(4);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_TRUE(pool.Release(0));
  EXPECT_TRUE(pool.Release(1));
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 3);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.used(), 4);
}

TEST(PagePool, AnIdIsFreeWhenItsLastReferenceGoes) {
  PagePool pool(2);
  const int32_t id = pool.Allocate();
  pool.AddRef(id);
  EXPECT_EQ(pool.refs(id), 2);
  EXPECT_FALSE(pool.Release(id));
  EXPECT_EQ(pool.free(), 1);
  EXPECT_TRUE(pool.Release(id));
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.refs(id), 0);
}

TEST(PagePool, WhatIsPromisedIsNotAvailable) {
  PagePool pool(5);
  EXPECT_TRUE(pool.Reserve(3));
  EXPECT_EQ(pool.available(), 2);
  EXPECT_FALSE(pool.Reserve(3));
  EXPECT_EQ(pool.reserved(), 3);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ(pool.AllocateReserved(), 2);
  EXPECT_EQ(pool.reserved(), 2);
  pool.Unreserve(2);
  EXPECT_EQ(pool.available(), 2);
}

TEST(PagePoolDeathTest, MisuseIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  PagePool pool(2);
  EXPECT_DEATH(pool.Release(0), "CHECK");
  EXPECT_DEATH(pool.AddRef(1), "CHECK");
  EXPECT_DEATH(pool.Unreserve(1), "CHECK");
  EXPECT_TRUE(pool.Reserve(2));
  EXPECT_DEATH(pool.Allocate(), "CHECK");
}

}  // namespace
}  // namespace quire
