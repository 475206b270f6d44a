#include "core/base/log.h"

#include <unistd.h>

#include <atomic>
#include <string>

namespace quire {
namespace {
std::atomic<LogLevel> log_level{LogLevel::kInfo};
}  // namespace

void SetLogLevel(LogLevel level) { log_level = level; }

void Log(LogLevel level, std::string_view message) {
  if (level > log_level.load()) return;
  std::string line = "quire: ";
  if (level == LogLevel::kError) line += "error: ";
  if (level == LogLevel::kWarning) line += "warning: ";
  line += message;
  line += '\n';
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace quire
