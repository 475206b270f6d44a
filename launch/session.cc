// See session.h.
#include "launch/session.h"

#include <iostream>
#include <iterator>
#include <utility>

#include "core/engine/engine_device.h"
#include "core/engine/policy_set.h"
#include "core/io/file_mapping.h"
#include "core/io/tokenizer.h"
#include "launch/output.h"
#include "launch/progress.h"
#include "launch/signals.h"

namespace quire::launch {

Result<std::unique_ptr<Engine>> OpenEngine(const Seat& seat, EngineOptions options) {
  seat.Take(&options);
  auto progress = std::make_shared<Progress>("loading");
  options.progress = [progress, further = options.progress](const std::string& phase, double fraction) {
    progress->Update(fraction, phase);
    if (further) further(phase, fraction);
  };
  auto engine = Engine::Create(std::move(options));
  progress->Finish();
  if (engine.ok() && Interrupted()) return Cancelled("interrupted while loading");
  return engine;
}

Result<std::unique_ptr<Engine>> OpenEngineForTokenIds(const Seat& seat, EngineOptions options) {
  auto engine = OpenEngine(seat, options);
  if (engine.ok() || engine.status().code() != StatusCode::kNotFound) return engine;
  if (const auto tokenizer = LoadTokenizer(options.model);
      tokenizer.ok() || tokenizer.status().code() != StatusCode::kNotFound) {
    return engine;
  }
  options.load_tokenizer = false;
  return OpenEngine(seat, std::move(options));
}

Result<PolicyShape> ShapeOf(const EngineOptions& options, const ModelConfig& config, int local_ranks) {
  DType dtype = config.dtype;
  for (const std::string& name : {options.dtype, options.kv_cache_dtype}) {
    if (name == "auto") continue;
    ASSIGN_OR_RETURN(dtype, ParseFloatDType(name));
  }
  DeviceKind device = options.device == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
  if (options.device == "auto") {
    ASSIGN_OR_RETURN(const Device found, ChooseLocalDevice(options, 0, local_ranks));
    device = found.kind;
  }
  return PolicyShapeOf(config, dtype, options.page_size, device);
}

Status RunToEnd(Engine& engine, const std::vector<std::string>& ids, const std::function<void()>& after_step) {
  bool cancelled = false;
  while (true) {
    if (!cancelled && (Interrupted() || OutputBroken())) {
      cancelled = true;
      for (const std::string& id : ids) engine.Cancel(id);
    }
    ASSIGN_OR_RETURN(const bool worked, engine.Step());
    if (!worked) break;
    if (after_step) after_step();
  }
  if (Interrupted()) return Cancelled("interrupted");
  return OutputStatus();
}

size_t FindInvalidUtf8(const std::string& text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const unsigned char c = s[i];
    // Length of the character and the range of its second byte (Unicode 15, table 3-7).
    size_t length = 0;
    unsigned char low = 0x80, high = 0xbf;
    if (c < 0x80)
      length = 1;
    else if (c >= 0xc2 && c <= 0xdf)
      length = 2;
    else if (c >= 0xe0 && c <= 0xef)
      length = 3, low = c == 0xe0 ? 0xa0 : 0x80, high = c == 0xed ? 0x9f : 0xbf;
    else if (c >= 0xf0 && c <= 0xf4)
      length = 4, low = c == 0xf0 ? 0x90 : 0x80, high = c == 0xf4 ? 0x8f : 0xbf;
    if (length == 0 || i + length > n) return i;
    if (length > 1 && (s[i + 1] < low || s[i + 1] > high)) return i;
    for (size_t k = 2; k < length; ++k) {
      if ((s[i + k] & 0xc0) != 0x80) return i;
    }
    i += length;
  }
  return std::string::npos;
}

Result<std::string> ReadText(const std::string& path) {
  std::string text;
  if (path == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    ASSIGN_OR_RETURN(text, ReadTextFile(path));
  }
  const std::string name = path == "-" ? "stdin" : path;
  if (text.empty()) return InvalidArgument(name + " is empty; it should hold text");
  if (const size_t offset = FindInvalidUtf8(text); offset != std::string::npos) {
    return InvalidArgument(name + " is not valid UTF-8 at byte " + std::to_string(offset) +
                           "; convert it, for instance with iconv");
  }
  return text;
}

Result<std::vector<int32_t>> TokenIdsOf(const Json& json, const std::string& name) {
  if (!json.is_array())
    return InvalidArgument(name + " holds a JSON " + json.type_name() + ", not an array of token ids");
  if (json.empty()) return InvalidArgument(name + " holds no token ids");
  std::vector<int32_t> ids;
  for (const Json& entry : json) {
    const bool fits = entry.is_number_unsigned() ? entry.get<uint64_t>() <= INT32_MAX : entry.is_number_integer();
    if (!fits || entry.get<int64_t>() < 0) {
      return InvalidArgument(name + ": entry " + std::to_string(ids.size()) + " is " +
                             entry.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40) +
                             ", which is no token id");
    }
    ids.push_back(entry.get<int32_t>());
  }
  return ids;
}

Result<std::vector<int32_t>> ReadTokenIds(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument(path + " is not valid JSON; it should be an array of token ids");
  return TokenIdsOf(json, path);
}

}  // namespace quire::launch
