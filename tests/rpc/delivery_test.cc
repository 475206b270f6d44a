// Who tells readers of news, when, and together with what.
#include "rpc/delivery.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"

namespace quire::rpc {
namespace {

std::shared_ptr<Request> MakeRequest(const std::string& id) {
  Request::Options options;
  options.id = id;
  return std::make_shared<Request>(options, nullptr, [](const std::shared_ptr<Request>&) {});
}

// What a Delivery has told: the ids of each time, and by which thread.
class Told {
 public:
  Delivery::OnNews OnNews() {
    return [this](const std::vector<std::shared_ptr<Request>>& noted) {
      if (noted.empty()) return;
      std::string ids;
      for (const auto& request : noted) ids += request->id();
      std::lock_guard lock(mutex_);
      times_.push_back(ids);
      thread_ = std::this_thread::get_id();
    };
  }
  std::vector<std::string> times() {
    std::lock_guard lock(mutex_);
    return times_;
  }
  std::thread::id thread() {
    std::lock_guard lock(mutex_);
    return thread_;
  }
  std::vector<std::string> Wait(size_t count) {
    const double end = NowSeconds() + 10;
    while (times().size() < count && NowSeconds() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return times();
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> times_;
  std::thread::id thread_;
};

TEST(Delivery, ABatchIsHandedOverWhole) {
  Told told;
  Delivery delivery(told.OnNews(), [](double) {}, 0.01);
  const auto a = MakeRequest("a"), b = MakeRequest("b");
  {
    const DeliveryBatch batch(DeliveryBatch::AtEnd::kHandOver);
    delivery.Note(a);
    delivery.Note(b);
    delivery.Note(a);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(told.times().empty());
  }
  EXPECT_EQ(told.Wait(1), (std::vector<std::string>{"ab"}));
  EXPECT_NE(told.thread(), std::this_thread::get_id());
  delivery.Note(a);  // news again, with no batch
  EXPECT_EQ(told.Wait(2), (std::vector<std::string>{"ab", "a"}));
}

TEST(Delivery, ABatchIsToldByItsOwnThread) {
  Told told;
  Delivery delivery(told.OnNews(), [](double) {}, 0.01);
  const auto a = MakeRequest("a"), b = MakeRequest("b");
  {
    const DeliveryBatch batch(DeliveryBatch::AtEnd::kTell);
    delivery.Note(a);
    std::thread([&] { delivery.Note(b); }).join();  // another thread's is not of the batch
    EXPECT_EQ(told.Wait(1), (std::vector<std::string>{"b"}));
    EXPECT_NE(told.thread(), std::this_thread::get_id());
  }
  EXPECT_EQ(told.times(), (std::vector<std::string>{"b", "a"}));
  EXPECT_EQ(told.thread(), std::this_thread::get_id());
}

TEST(Delivery, NothingIsToldBehindItsEnd) {
  Told told;
  Delivery delivery(told.OnNews(), [](double) {}, 0.01);
  for (const auto at_end : {DeliveryBatch::AtEnd::kHandOver, DeliveryBatch::AtEnd::kTell}) {
    const auto a = MakeRequest("a");
    const DeliveryBatch batch(at_end);
    delivery.Note(a);
    delivery.Stop();
  }
  EXPECT_TRUE(told.times().empty());
}

TEST(Delivery, NotesBeforeTheEndAreToldAtTheEnd) {
  Told told;
  {
    Delivery delivery(told.OnNews(), [](double) {}, 0.01);
    const auto a = MakeRequest("a");
    delivery.Note(a);
  }
  EXPECT_EQ(told.times(), (std::vector<std::string>{"a"}));
}

}  // namespace
}  // namespace quire::rpc
