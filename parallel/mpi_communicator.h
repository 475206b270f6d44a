// Ranks as processes of an MPI job. No MPI header is needed to use this; a build without MPI has the same functions,
// which then say so.
#pragma once

#include <memory>
#include <string>

#include "core/base/status.h"
#include "parallel/communicator.h"

namespace quire {

// True when this build has MPI.
bool HasMpi();

// True when the process was started by an MPI launcher (judged by the environment; starts nothing).
bool LaunchedByMpi();

// True between MPI's initialisation and its end, whoever called them. Thread safe.
bool MpiRunning();

// This process's rank in the launcher's job, from the environment as well; 0 outside one. For what must be known before
// MPI is up, as whether to print a message that all ranks have.
int LaunchedRank();

// Owns MPI_Init_thread and MPI_Finalize, unless the program has initialised MPI itself: then it does neither. An MPI_Init
// that doesn't end within QUIRE_START_SECONDS (60) ends the process with a sentence, and so the job.
class MpiEnvironment {
 public:
  // FAILED_PRECONDITION when MPI gives less than MPI_THREAD_SERIALIZED; UNIMPLEMENTED in a build without MPI.
  static Result<std::unique_ptr<MpiEnvironment>> Create();
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

 private:
  explicit MpiEnvironment(bool owned) : owned_(owned) {}
  bool owned_;
};

// All ranks of the world, over a communicator of our own with MPI_ERRORS_RETURN. Collective.
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator();

// Ends the whole job with `code`, from any thread and rank. Does not return.
[[noreturn]] void AbortMpiJob(int code);

}  // namespace quire
