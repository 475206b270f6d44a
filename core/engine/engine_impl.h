// The one implementation of Engine: glue between the queue of submissions, the scheduler, the executor and the clients'
// callbacks. Submit and Cancel only put things into an inbox under a lock; everything else belongs to the thread that
// runs Step.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/engine/engine.h"
#include "core/engine/engine_rank.h"
#include "core/engine/group_channel.h"
#include "core/engine/scheduler.h"
#include "core/engine/sequence.h"

namespace quire {

class EngineImpl : public Engine {
 public:
  static Result<std::unique_ptr<EngineImpl>> Create(EngineOptions options);
  ~EngineImpl() override;

  Result<std::string> Submit(GenerationRequest request, EventCallback callback) override;
  void Cancel(const std::string& request_id) override;
  Result<bool> Step() override;
  Status Run() override;
  EngineStats Stats() const override;
  MemoryBytes Memory() const override;
  const ModelConfig& config() const override { return config_; }
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }
  const EngineOptions& options() const override { return plan_.options; }
  double load_seconds() const override { return load_seconds_; }
  Result<std::string> SubmitRandomCache(int64_t length, int steps, uint64_t seed,
                                        std::optional<AttentionSpec> attention, EventCallback callback) override;
  void set_selection_observer(SelectionObserver* observer) override {
    rank_->executor->set_observer(observer);
  }
  std::vector<RankInfo> Ranks() const override { return rank_->reports; }

  const Scheduler& scheduler() const { return *scheduler_; }  // for tests
  SlotMaps& slot_maps() { return rank_->executor->slot_maps(); }  // of this rank; for tests

 private:
  EngineImpl(std::unique_ptr<EngineRank> rank, std::unique_ptr<Tokenizer> tokenizer);
  Result<std::string> Queue(std::unique_ptr<RequestState> state);

  void TakeInbox();
  void StartDecoder(Sequence* sequence);
  void Abort(RequestState* request);
  void Fail(RequestState* request, const Status& status);
  void FailAll(const Status& status, bool also_waiting);
  // Tells the other ranks what to do, and does this rank's part.
  Status Execute(const StepPlan& plan, StepResult* result);
  void ApplyScores(const Scheduler::Planned& planned, const StepResult& result);
  void ApplyToken(Sequence* sequence, const SampledToken& token, double now);
  void FinishSequence(Sequence* sequence, TokenEvent* event, double now);
  void CountFinished(const TokenEvent& event);
  void DropFinished();
  void Tell(RequestState* request, TokenEvent event);  // by the next Deliver
  void Deliver();
  void UpdateCounts();  // what runs, waits, has ended, and pages
  void UpdateStats(const Scheduler::Planned& planned, const StepResult& result, double seconds);

  std::unique_ptr<EngineRank> rank_;
  const ModelConfig& config_;  // rank_'s
  const EnginePlan& plan_;     // rank_'s
  GroupChannel channel_;
  std::vector<uint8_t> message_;
  Status broken_;  // why the group of ranks is lost, once it is
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Scheduler> scheduler_;
  double load_seconds_ = 0;

  mutable std::mutex inbox_mutex_;
  std::vector<std::unique_ptr<RequestState>> submitted_;
  std::vector<std::string> cancelled_;
  std::unordered_set<std::string> ids_;  // in flight
  uint64_t arrivals_ = 0;

  // Of the thread that runs Step.
  std::unordered_map<std::string, std::unique_ptr<RequestState>> requests_;
  std::vector<std::string> done_;  // finished in this step
  std::vector<std::pair<RequestState*, TokenEvent>> events_;    // to be delivered, in order
  std::vector<std::unique_ptr<RequestState>> dropped_;          // finished, and named by events_

  mutable std::mutex stats_mutex_;
  EngineStats stats_;
  int64_t finished_ = 0;
  double broadcast_seconds_ = 0;
  size_t scratch_bytes_ = 0;
};

}  // namespace quire
