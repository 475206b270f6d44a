// mpi_group MODEL, on the ranks of an mpirun job: rank 0 runs the model alone, then the group runs it; tokens,
// log-probabilities and the pages of every rank must be those of one rank (group_run.h). Exits 77 where the model has
// not been fetched.
#include <cstdio>

#include "core/engine/group.h"
#include "core/model/families.h"
#include "core/model/weight_slices.h"
#include "parallel/mpi_communicator.h"
#include "parallel/rank_numbers.h"
#include "tests/core/engine/group_run.h"

namespace quire {
namespace {

Result<PageChoices> GatherPages(Communicator& comm, const PageChoices& mine, bool* replicas_agree) {
  std::vector<int32_t> words = Flatten(mine);
  const int64_t size = static_cast<int64_t>(words.size());
  ASSIGN_OR_RETURN(const std::vector<int64_t> counts, GatherNumbers(comm, {&size, 1}));
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  std::vector<int32_t> all(static_cast<size_t>(total));
  RETURN_IF_ERROR(
      comm.AllGatherV({words.data(), DType::kI32, {size}, {}}, {all.data(), DType::kI32, {total}, {}}, counts));
  PageChoices group;
  *replicas_agree = true;
  int64_t at = 0;
  for (const int64_t count : counts) {
    *replicas_agree &= Merge(Unflatten({all.data() + at, static_cast<size_t>(count)}), &group);
    at += count;
  }
  return group;
}

Status Run(const std::string& name) {
  ASSIGN_OR_RETURN(const auto environment, MpiEnvironment::Create());
  ASSIGN_OR_RETURN(const auto comm, MakeMpiCommunicator());
  GroupRun run = MakeGroupRun(name);
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(run.options.model, run.options.load_format));
  ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(NumbersOf(checkpoint.config), comm->size(), comm->rank()));
  PageRecorder pages(static_cast<int>(plan.kv_heads.begin)), one_pages;
  GroupOutput one, many;
  if (comm->rank() != 0) {
    RETURN_IF_ERROR(FollowLeader({.comm = comm.get(), .observer = &pages}));
  } else {
    {
      ASSIGN_OR_RETURN(const auto alone, Engine::Create(run.options));
      alone->set_selection_observer(&one_pages);
      one = Generate(*alone, run);
    }
    run.options.comm = comm.get();
    {
      ASSIGN_OR_RETURN(const auto engine, Engine::Create(run.options));
      engine->set_selection_observer(&pages);
      many = Generate(*engine, run);
    }
    RETURN_IF_ERROR(ReleaseFollowers(comm.get()));
  }
  bool replicas_agree = false;
  ASSIGN_OR_RETURN(const PageChoices group, GatherPages(*comm, pages.choices, &replicas_agree));
  if (comm->rank() != 0) return OkStatus();
  if (!replicas_agree) return Internal("replicas of a KV head chose different pages");
  const std::string wrong =
      CompareGroupRuns(name, comm->size(), one, one_pages.choices, many, group, checkpoint.config.head_dim);
  return wrong.empty() ? OkStatus() : Internal(wrong);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "smollm2" && quire::SmolLM2Path().empty()) return 77;
  const quire::Status status = quire::Run(name);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    quire::AbortMpiJob(1);
  }
  return 0;
}
