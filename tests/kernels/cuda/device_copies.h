// For tests of operations of kernels/*.h on a GPU, real or the emulator's: a session, and copies of the host's arrays in memory
// that the host can't touch.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/device_memory.h"
#include "kernels/device_session.h"
#include "tests/kernels/paged_cache.h"

namespace quire::testing {

inline constexpr Device kGpu{DeviceKind::kCuda, 0};

// Where there is no GPU the tests are skipped; the emulator always has one.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (CudaDeviceCount(&why) == 0) GTEST_SKIP() << why;
  }
};

class DeviceCopies {
 public:
  DeviceCopies() : pool_(1) {
    auto session = DeviceSession::Create(kGpu);
    EXPECT_TRUE(session.ok()) << session.status().ToString();
    session_ = std::move(session).value();
    ctx_.device = kGpu;
    ctx_.pool = &pool_;
    ctx_.session = session_.get();
    ctx_.stream = session_->stream();
  }
  const Context& ctx() const { return ctx_; }

  template <typename T>
  T* Zeros(size_t count) {
    auto buffer = Buffer::Create(std::max<size_t>(count, 1) * sizeof(T), kGpu);
    EXPECT_TRUE(buffer.ok()) << buffer.status().ToString();
    return reinterpret_cast<T*>(buffers_.emplace_back(std::move(buffer).value()).data());
  }
  template <typename T>
  T* Copy(const T* from, size_t count) {
    T* to = Zeros<T>(count);
    EXPECT_TRUE(CopyToDevice(kGpu, to, from, count * sizeof(T), ctx_.stream).ok());
    return to;
  }
  template <typename T>
  T* Copy(const std::vector<T>& from) {
    return Copy(from.data(), from.size());
  }
  // Memory full of what an earlier call might have left: NaN, and numbers that win.
  void* Dirty(size_t bytes) {
    std::vector<uint8_t> left(bytes);
    for (size_t i = 0; i < bytes; ++i) left[i] = i / 4 % 2 == 0 ? 0xff : 0x4b;
    return Copy(left);
  }
  // pages and table become those of the copy.
  void CopyCache(const PagedCache& cache, LayerPages* pages, PageTableView* table) {
    *pages = {};
    *table = cache.table();
    const auto sequences = static_cast<size_t>(table->num_seqs);
    pages->k = Copy(cache.k());
    pages->v = Copy(cache.v());
    const auto index = [&](const int32_t*& ids, const int32_t*& begins) {
      ids = Copy(ids, static_cast<size_t>(begins[sequences]));
      begins = Copy(begins, sequences + 1);
    };
    index(table->page_ids, table->page_begin);
    if (table->group_ids == nullptr) return;
    pages->meta = Copy(cache.meta());
    pages->over = Copy(cache.over());
    pages->codes = Copy(cache.codes());
    index(table->group_ids, table->group_begin);
  }
  // Waits for all work; as much as `to` has.
  template <typename T>
  void Back(const T* from, std::vector<T>* to) {
    EXPECT_TRUE(CopyFromDevice(kGpu, to->data(), from, to->size() * sizeof(T), ctx_.stream).ok());
    const Status status = session_->Synchronize();
    EXPECT_TRUE(status.ok()) << status.ToString();
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<DeviceSession> session_;
  Context ctx_;
  std::vector<Buffer> buffers_;
};

}  // namespace quire::testing
