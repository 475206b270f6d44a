// Ctrl-C and closed pipes. The first SIGINT or SIGTERM only sets a flag that the loops look at; the second one ends the
// process as if nobody listened. SIGPIPE is ignored: a failed write says the same (output.h).
#pragma once

namespace quire::launch {

void InstallSignalHandlers();
bool Interrupted();

// SIGUSR1 asks a service to drain: mpirun hands it on to the ranks, where it would follow a SIGTERM with a SIGKILL.
void InstallDrainSignal();
bool DrainRequested();

}  // namespace quire::launch
