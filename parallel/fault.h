// For tests only: makes a rank fail at a chosen moment, as QUIRE_FAULT says, so that what is done about failing ranks is
// tested with real processes. QUIRE_FAULT="rank=1,phase=decode,kind=stop,after=3": when rank 1 enters the phase for the
// third time (the first without `after`), it lingers for half a second, so that its peers have heard of the phase, and then
//   kill   sends itself SIGKILL        stop    sends itself SIGSTOP
//   exit   calls _exit(3)              wedge   lets the working thread sleep for ever
// kind=build (no phase) makes the rank say another build id at the start. Without the variable nothing here does anything.
#pragma once

#include <memory>

#include "core/base/progress.h"
#include "core/base/status.h"

namespace quire::internal {

// Hooks itself into a mark for as long as it lives.
class FaultSeam {
 public:
  // Null where QUIRE_FAULT is not set or names another rank. INVALID_ARGUMENT when it can't be read.
  static Result<std::unique_ptr<FaultSeam>> FromEnvironment(int rank, ProgressMark* mark);
  ~FaultSeam();
  FaultSeam(const FaultSeam&) = delete;
  FaultSeam& operator=(const FaultSeam&) = delete;

 private:
  enum class Kind { kKill, kStop, kExit, kWedge };
  FaultSeam(ProgressMark* mark, Phase phase, Kind kind, int after);
  static void OnEnter(void* seam, Phase phase);
  void Happen();

  ProgressMark* mark_;
  Phase phase_;
  Kind kind_;
  int left_;  // entries until it happens
};

// True on the rank that QUIRE_FAULT's kind=build names.
bool FakesAnotherBuild(int rank);

}  // namespace quire::internal
