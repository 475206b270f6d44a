// An engine whose steps a test lets go one by one: what ends a request is then counted in steps, however slow or busy
// the machine.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/engine.h"

namespace quire {

// Thread safe.
class StepGate {
 public:
  // From now on no step begins; waits for the one that is running.
  void Hold() {
    std::unique_lock lock(mutex_);
    held_ = true;
    changed_.wait(lock, [this] { return !running_; });
  }
  // Lets one step go, and waits for its end. False when none comes in a minute.
  bool LetOne() {
    std::unique_lock lock(mutex_);
    const int64_t after = ended_ + 1;
    ++allowed_;
    changed_.notify_all();
    return changed_.wait_for(lock, std::chrono::minutes(1), [&] { return ended_ >= after; });
  }
  void Release() {
    std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  int submits() const {  // that have come to the engine
    std::lock_guard lock(mutex_);
    return submits_;
  }
  int cancels() const {
    std::lock_guard lock(mutex_);
    return cancels_;
  }
  EngineStats Stats() const {
    std::lock_guard lock(mutex_);
    return engine_->Stats();
  }
  // Nothing runs, nothing waits, every page is free.
  bool Empty() const {
    const EngineStats stats = Stats();
    return stats.running == 0 && stats.waiting == 0 && stats.pages_free == stats.pages_total;
  }

 private:
  friend class HeldEngine;
  void BeginStep() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !held_ || allowed_ > 0; });
    if (held_) --allowed_;
    running_ = true;
  }
  void EndStep() {
    std::lock_guard lock(mutex_);
    running_ = false;
    ++ended_;
    changed_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  const Engine* engine_ = nullptr;
  bool held_ = false, running_ = false;
  int64_t allowed_ = 0, ended_ = 0;
  int submits_ = 0, cancels_ = 0;
};

class HeldEngine : public Engine {
 public:
  // gate outlives it, and is released before its service ends.
  HeldEngine(std::unique_ptr<Engine> engine, StepGate* gate) : engine_(std::move(engine)), gate_(gate) {
    gate_->engine_ = engine_.get();
  }

  Result<bool> Step() override {
    gate_->BeginStep();
    auto worked = engine_->Step();
    gate_->EndStep();
    return worked;
  }
  void Cancel(const std::string& request_id) override {
    engine_->Cancel(request_id);
    std::lock_guard lock(gate_->mutex_);
    ++gate_->cancels_;
  }
  Result<std::string> Submit(GenerationRequest request, EventCallback callback) override {
    auto id = engine_->Submit(std::move(request), std::move(callback));
    std::lock_guard lock(gate_->mutex_);
    ++gate_->submits_;
    return id;
  }
  Status Run() override { return engine_->Run(); }
  EngineStats Stats() const override { return engine_->Stats(); }
  MemoryBytes Memory() const override { return engine_->Memory(); }
  const ModelConfig& config() const override { return engine_->config(); }
  const Tokenizer* tokenizer() const override { return engine_->tokenizer(); }
  const EngineOptions& options() const override { return engine_->options(); }
  double load_seconds() const override { return engine_->load_seconds(); }
  std::vector<RankInfo> Ranks() const override { return engine_->Ranks(); }
  Result<std::string> SubmitRandomCache(int64_t length, int steps, uint64_t seed,
                                        std::optional<AttentionSpec> attention, EventCallback callback) override {
    return engine_->SubmitRandomCache(length, steps, seed, std::move(attention), std::move(callback));
  }
  void set_selection_observer(SelectionObserver* observer) override { engine_->set_selection_observer(observer); }

 private:
  const std::unique_ptr<Engine> engine_;
  StepGate* const gate_;
};

}  // namespace quire
