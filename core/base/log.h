// Log lines on stderr, one write each, so that lines of several ranks don't mix.
#pragma once

#include <string_view>

namespace quire {

enum class LogLevel { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3 };

void SetLogLevel(LogLevel level);      // default kInfo
// Prints "quire: message" (errors and warnings say so). Thread safe.
void Log(LogLevel level, std::string_view message);

}  // namespace quire
