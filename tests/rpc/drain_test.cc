// The beginning of a drain, step by step: whoever sees a request refused finds the service not ready.
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rpc/front.h"
#include "tests/rpc/service_fixture.h"

namespace quire::rpc {
namespace {

// What the health service is told: (name, ready).
std::function<void(const std::string&, bool)> on_health;  // empty: servers get gRPC's own health service

class ToldHealth : public grpc::HealthCheckServiceInterface {
 public:
  void SetServingStatus(const std::string& name, bool serving) override {
    if (on_health) on_health(name, serving);
  }
  void SetServingStatus(bool) override {}
};

// Puts a ToldHealth in the place of gRPC's health service.
class HealthPlugin : public grpc::ServerBuilderPlugin {
 public:
  std::string name() override { return "told_health"; }
  void InitServer(grpc::ServerInitializer*) override {}
  void Finish(grpc::ServerInitializer*) override {}
  void ChangeArguments(const std::string&, void*) override {}
  void UpdateChannelArguments(grpc::ChannelArguments* arguments) override {
    if (on_health) arguments->SetPointer(grpc::kHealthCheckServiceInterfaceArg, new ToldHealth);  // the server's
  }
  static std::unique_ptr<grpc::ServerBuilderPlugin> Make() { return std::make_unique<HealthPlugin>(); }
};

class IdleBackend : public Backend {
 public:
  Status Available() const override {
    ++asked;
    while (held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return OkStatus();
  }
  bool Stalled(double) const override { return false; }
  Status Submit(GenerationRequest, const std::string&, EventCallback) override { return Internal("not asked for"); }
  void Cancel(const std::string&) override {}
  const Tokenizer* tokenizer() const override { return nullptr; }
  Result<v1::GetModelInfoResponse> ModelInfo() const override { return Internal("not asked for"); }
  v1::GetLoadResponse Load() const override { return {}; }
  void FillServerInfo(v1::GetServerInfoResponse*) const override {}
  Result<std::vector<TokenizerFile>> TokenizerFiles() const override { return Internal("not asked for"); }

  mutable std::atomic<int> asked = 0;
  std::atomic<bool> held = false;  // Available doesn't return
};

class DrainTest : public testing::Test {
 protected:
  void SetUp() override {
    static const bool once = [] {
      grpc::ServerBuilder::InternalAddPluginFactory(&HealthPlugin::Make);
      return true;
    }();
    (void)once;
    on_health = [this](const std::string& name, bool ready) { OnHealth(name, ready); };
    front_ = std::make_unique<Front>(FrontOptions(), &backend_);
    const Status started = front_->Start({}, {"one.more"});
    ASSERT_TRUE(started.ok()) << started.ToString();
    ASSERT_TRUE(Eventually([this] { return Told(kGenerationName, true) && Told("one.more", true); }));
  }
  void TearDown() override {
    front_.reset();
    on_health = nullptr;
  }

  bool Told(const std::string& name, bool ready) {
    std::lock_guard lock(mutex_);
    return std::find(told_.begin(), told_.end(), std::pair(name, ready)) != told_.end();
  }
  size_t TimesTold() {
    std::lock_guard lock(mutex_);
    return told_.size();
  }
  // Whether a table takes a request; none is left in it.
  static bool Takes(RequestTable* table) {
    static std::atomic<int> names = 0;
    Request::Options options;
    options.id = "r" + std::to_string(++names);
    options.table = table;
    const auto request = std::make_shared<Request>(options, nullptr, [](const std::shared_ptr<Request>&) {});
    request->EndOfSubmissions();
    const bool taken = table->Add(request).ok();
    table->Drop(request);
    return taken;
  }
  // Runs `begin` (of a drain, or of the end) and looks at the service whenever health is told by it.
  void ExpectReadyEndsBeforeTheFirstRefusal(const std::function<void()>& begin) {
    std::vector<std::string> told_off;
    const auto thread = std::this_thread::get_id();
    SetOnTold([&](const std::string& name, bool ready) {
      if (std::this_thread::get_id() != thread) return;
      EXPECT_FALSE(ready);
      EXPECT_EQ(front_->State(), v1::SERVER_STATE_DRAINING);  // as GetServerInfo says
      EXPECT_TRUE(front_->Open().ok());
      EXPECT_TRUE(Takes(&front_->requests()));
      EXPECT_TRUE(Takes(&front_->submissions()));
      EXPECT_FALSE(front_->Drained());
      told_off.push_back(name);
    });
    begin();
    SetOnTold({});
    std::sort(told_off.begin(), told_off.end());
    EXPECT_EQ(told_off, (std::vector<std::string>{"one.more", kGenerationName}));
    EXPECT_EQ(front_->Open().code(), StatusCode::kUnavailable);
    EXPECT_FALSE(Takes(&front_->requests()));
    EXPECT_FALSE(Takes(&front_->submissions()));
  }

  IdleBackend backend_;
  std::unique_ptr<Front> front_;
  std::mutex mutex_;
  std::vector<std::pair<std::string, bool>> told_;

 private:
  void OnHealth(const std::string& name, bool ready) {
    std::function<void(const std::string&, bool)> on_told;
    {
      std::lock_guard lock(mutex_);
      told_.emplace_back(name, ready);
      on_told = on_told_;
    }
    if (on_told) on_told(name, ready);
  }
  void SetOnTold(std::function<void(const std::string&, bool)> on_told) {
    std::lock_guard lock(mutex_);
    on_told_ = std::move(on_told);
  }
  std::function<void(const std::string&, bool)> on_told_;
};

TEST_F(DrainTest, ReadinessEndsBeforeTheFirstRefusal) {
  ExpectReadyEndsBeforeTheFirstRefusal([this] { front_->Drain(60); });
  EXPECT_TRUE(front_->Drained());
}

TEST_F(DrainTest, ReadinessEndsBeforeTheFirstRefusalWithoutADrain) {
  ExpectReadyEndsBeforeTheFirstRefusal([this] { front_->Stop(); });
}

// A tick that has found the service ready just before a drain tells health so before the drain does, never after.
TEST_F(DrainTest, WhatWasSoBeforeIsNotToldAfterwards) {
  backend_.held = true;
  const int asked = backend_.asked;
  ASSERT_TRUE(Eventually([&] { return backend_.asked > asked; }));  // the tick is at it
  const size_t before = TimesTold();
  std::atomic<bool> drained = false;
  std::thread drain([&] {
    front_->Drain(60);
    drained = true;
  });
  (void)Eventually([&] { return drained.load(); }, 0.2);  // it waits for the tick
  backend_.held = false;
  drain.join();
  EXPECT_TRUE(Eventually([&] { return TimesTold() >= before + 8; }));  // two ticks more
  std::lock_guard lock(mutex_);
  const auto off = std::find_if(told_.begin() + static_cast<std::ptrdiff_t>(before), told_.end(),
                                [](const auto& one) { return !one.second; });
  EXPECT_NE(off, told_.end());
  EXPECT_EQ(std::count_if(off, told_.end(), [](const auto& one) { return one.second; }), 0);
}

}  // namespace
}  // namespace quire::rpc
