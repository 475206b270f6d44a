// EngineRank: one rank's share of an engine: weights, cache and executor, made the same way on every rank. Leader
// (EngineImpl) and followers (group.cc) hold one each.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/thread_pool.h"
#include "core/engine/engine.h"
#include "core/engine/engine_plan.h"
#include "core/engine/executor.h"
#include "core/model/model_weights.h"
#include "kernels/device_session.h"
#include "parallel/counted_communicator.h"
#include "parallel/group_topology.h"

namespace quire {

struct EngineRank {
  ModelConfig config;
  EnginePlan plan;  // capacity and every automatic option as on all ranks
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<DeviceSession> session;     // on a GPU
  std::unique_ptr<Communicator> self;         // when there is no other
  std::unique_ptr<Communicator> devices;      // for tensors of GPUs, over the group's own
  std::unique_ptr<CountedCommunicator> comm;  // what the executor uses
  GroupTopology topology;
  ModelWeights weights;
  std::unique_ptr<Executor> executor;
  std::vector<RankInfo> reports;  // of all ranks, by rank
  ProgressMark* mark = nullptr;   // may be null

  bool alone() const { return comm->size() == 1; }
  void Enter(Phase phase) const {
    if (mark != nullptr) mark->Enter(phase);
  }
  // Executes a plan, with the phase in the mark.
  Status Execute(const StepPlan& step, StepResult* result) const;

  // A collective of all ranks of options.comm, whose other options are the same on all. After each phase (opening the
  // checkpoint, planning, loading, making the executor) the ranks tell each other how it went, so that what fails on
  // one is returned by all. prepare, which may be empty, runs between planning and loading, on this rank alone.
  static Result<std::unique_ptr<EngineRank>> Create(EngineOptions options,
                                                    const std::function<Status(const EngineOptions&)>& prepare = {});

 private:
  // Makes what ctx's device needs, where that is a GPU: its session, and with several ranks their way to each other.
  Status UseGpu(const EngineOptions& options, Context* ctx);
};

}  // namespace quire
