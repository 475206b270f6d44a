// The steps of a tokenizer.json: normalizer, pre-tokenizer, post-processor and decoder, each a tree of
// {"type": …} objects, flattened into the lists of tokenizer_pipeline.h. Unknown types are refused by name.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/status.h"
#include "core/io/tokenizer_pipeline.h"

namespace quire {

using Json = nlohmann::json;

// Reads the members of an object by type; remembers the first one that has the wrong type.
class Fields {
 public:
  // Both must outlive the Fields; `object` is a JSON object.
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}
  // The member, or `absent` when it is missing or null.
  std::string String(const char* key, std::string absent);
  bool Bool(const char* key, bool absent);
  int64_t Integer(const char* key, int64_t absent);
  const Status& status() const { return status_; }

 private:
  const Json* Find(const char* key) const;  // nullptr: missing or null
  void Fail(const char* key, const char* wanted);

  const Json& object_;
  std::string where_;
  Status status_;
};

// Each appends what `json` (null: nothing) describes; `depth` counts the sequences around it.
Status ParseNormalizer(const Json& json, int depth, std::vector<NormalizerStep>* steps);
Status ParsePreTokenizer(const Json& json, int depth, std::vector<PreTokenizerStep>* steps);
Status ParsePostProcessor(const Json& json, int depth, PipelineSpec* spec);
// INVALID_ARGUMENT for null: joining tokens by spaces, as the library does then, can't be streamed.
Status ParseDecoder(const Json& json, int depth, PipelineSpec* spec);

}  // namespace quire
