#include "parallel/fault.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>

#include "core/base/log.h"

namespace quire::internal {
namespace {

using Fields = std::map<std::string, std::string>;

// "a=1,b=2"; empty when the variable isn't set.
Fields ReadVariable() {
  Fields fields;
  const char* value = std::getenv("QUIRE_FAULT");
  std::string text = value == nullptr ? "" : value;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string item = text.substr(0, comma);
    const size_t equals = item.find('=');
    fields[item.substr(0, equals)] = equals == std::string::npos ? "" : item.substr(equals + 1);
    text = comma == std::string::npos ? "" : text.substr(comma + 1);
  }
  return fields;
}

}  // namespace

FaultSeam::FaultSeam(ProgressMark* mark, Phase phase, Kind kind, int after)
    : mark_(mark), phase_(phase), kind_(kind), left_(after) {
  mark_->set_hook(&FaultSeam::OnEnter, this);
}

FaultSeam::~FaultSeam() { mark_->set_hook(nullptr, nullptr); }

Result<std::unique_ptr<FaultSeam>> FaultSeam::FromEnvironment(int rank, ProgressMark* mark) {
  Fields fields = ReadVariable();
  if (fields.empty() || fields["rank"] != std::to_string(rank) || fields["kind"] == "build") {
    return std::unique_ptr<FaultSeam>();
  }
  const std::map<std::string, Kind> kinds = {
      {"kill", Kind::kKill}, {"stop", Kind::kStop}, {"exit", Kind::kExit}, {"wedge", Kind::kWedge}};
  const auto kind = kinds.find(fields["kind"]);
  int phase = -1;
  for (int p = 0; p <= static_cast<int>(Phase::kStop); ++p) {
    if (fields["phase"] == PhaseName(static_cast<Phase>(p))) phase = p;
  }
  const int after = fields["after"].empty() ? 1 : std::atoi(fields["after"].c_str());
  if (kind == kinds.end() || phase < 0 || after < 1) {
    return InvalidArgument("QUIRE_FAULT is \"" + std::string(std::getenv("QUIRE_FAULT")) +
                           "\"; it takes rank=R,phase=load|idle|broadcast|prefill|decode|stop,kind=kill|stop|exit|wedge,"
                           "after=N. It is for tests: unset it");
  }
  return std::unique_ptr<FaultSeam>(new FaultSeam(mark, static_cast<Phase>(phase), kind->second, after));
}

void FaultSeam::OnEnter(void* seam, Phase phase) {
  auto* self = static_cast<FaultSeam*>(seam);
  if (phase == self->phase_ && --self->left_ == 0) self->Happen();
}

void FaultSeam::Happen() {
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  Log(LogLevel::kInfo, std::string("QUIRE_FAULT happens now, in phase ") + PhaseName(phase_));
  if (kind_ == Kind::kKill) kill(getpid(), SIGKILL);
  if (kind_ == Kind::kStop) kill(getpid(), SIGSTOP);
  if (kind_ == Kind::kExit) _exit(3);
  while (kind_ == Kind::kWedge) std::this_thread::sleep_for(std::chrono::hours(1));
}

bool FakesAnotherBuild(int rank) {
  Fields fields = ReadVariable();
  return fields["kind"] == "build" && fields["rank"] == std::to_string(rank);
}

}  // namespace quire::internal
