// See delivery.h.
#include "rpc/delivery.h"

#include <chrono>
#include <utility>

#include "core/base/clock.h"

namespace quire::rpc {
namespace {

thread_local DeliveryBatch* batch_of_thread = nullptr;

}  // namespace

DeliveryBatch::DeliveryBatch(AtEnd at_end) : at_end_(at_end) { batch_of_thread = this; }

DeliveryBatch::~DeliveryBatch() {
  batch_of_thread = nullptr;
  if (delivery_ != nullptr) delivery_->End(*this);
}

Delivery::Delivery(OnNews on_news, std::function<void(double now)> on_tick, double tick_s)
    : on_news_(std::move(on_news)), on_tick_(std::move(on_tick)), tick_s_(tick_s), thread_([this] { Run(); }) {}

Delivery::~Delivery() { Stop(); }

void Delivery::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Delivery::Note(const std::shared_ptr<Request>& request) {
  if (request->noted.exchange(true)) return;
  if (batch_of_thread != nullptr) {
    batch_of_thread->delivery_ = this;
    batch_of_thread->noted_.push_back(request);
    return;
  }
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    first = noted_.empty();
    noted_.push_back(request);
  }
  if (first) wake_.notify_one();
}

void Delivery::End(const DeliveryBatch& batch) {
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    if (batch.at_end_ == DeliveryBatch::AtEnd::kHandOver) {
      first = noted_.empty();
      noted_.insert(noted_.end(), batch.noted_.begin(), batch.noted_.end());
    }
  }
  if (batch.at_end_ == DeliveryBatch::AtEnd::kTell) return Tell(batch.noted_);
  if (first) wake_.notify_one();
}

void Delivery::Tell(const std::vector<std::shared_ptr<Request>>& noted) {
  // Before they are looked at: what comes from now on is news again.
  for (const auto& request : noted) request->noted = false;
  on_news_(noted);
}

void Delivery::Run() {
  double next_tick = NowSeconds() + tick_s_;
  std::vector<std::shared_ptr<Request>> noted;
  std::unique_lock lock(mutex_);
  while (true) {
    const double wait = next_tick - NowSeconds();
    if (noted_.empty() && !stopping_ && wait > 0) wake_.wait_for(lock, std::chrono::duration<double>(wait));
    noted.swap(noted_);
    if (stopping_ && noted.empty()) return;
    lock.unlock();
    Tell(noted);
    noted.clear();
    if (const double now = NowSeconds(); now >= next_tick) {
      on_tick_(now);
      next_tick = now + tick_s_;
    }
    lock.lock();
  }
}

}  // namespace quire::rpc
