// What goes to stdout: streamed text, tables, or one json object. Everything else (progress, logs) goes to stderr.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"
#include "core/model/decoder.h"
#include "kernels/selection/policy.h"

namespace quire::launch {

using Json = nlohmann::ordered_json;

// Writes and flushes. After the first failure (the reader went away, the disk is full) nothing more is written.
void WriteOut(std::string_view text);
bool OutputBroken();  // a write has failed
// CANCELLED when whoever read stdout went away.
Status OutputStatus();

// One object, indented, with a newline. Bytes that are no UTF-8 become U+FFFD.
void WriteJson(const Json& json);

// Columns padded to their widest cell; the first row is the header.
void WriteTable(const std::vector<std::vector<std::string>>& rows);

std::string Fixed(double value, int digits);  // "12.30"
std::string HumanBytes(double bytes);         // "93.1 MiB"

// The fields that every result row has: {"attention": "quest", "token_budget": 512 (null for a policy without a
// budget), "spec": "quest:token_budget=512"}.
Status AddAttentionFields(const AttentionSpec& spec, int page_size, Json* row);
// pages_read, pages_total, bytes_read, bytes_total.
void AddReads(const AttentionReads& reads, Json* row);
// A command's result: {"results": results} for the format json, the table for text.
void WriteResults(const std::string& format, Json results, const std::vector<std::vector<std::string>>& table);

}  // namespace quire::launch
