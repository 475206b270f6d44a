// Traces of what real services were asked: when requests came and how long they and their answers were. Two published
// formats are read, told apart by their first line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace quire::launch {

// Tokens of a prompt that one of a Mooncake trace's hashes stands for.
inline constexpr int64_t kTraceBlock = 512;

struct TraceRequest {
  double time_s = 0;  // since the trace's first
  int64_t input_tokens = 0, output_tokens = 0;
  // One for each kTraceBlock tokens of the prompt, the same where prompts begin alike; empty where the trace has none.
  std::vector<int64_t> blocks;
};

// The first `limit` requests, by time:
//   Azure's CSV      TIMESTAMP,ContextTokens,GeneratedTokens        2023-11-16 18:15:46.6805900,374,44
//   Mooncake's JSONL {"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}
// INVALID_ARGUMENT names the line at fault.
Result<std::vector<TraceRequest>> ReadTrace(const std::string& path, int64_t limit);

}  // namespace quire::launch
