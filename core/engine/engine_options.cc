#include "core/engine/engine_options.h"

#include <bit>
#include <string>
#include <utility>

#include "core/engine/byte_stream.h"

namespace quire {

void SerializeOptions(const EngineOptions& o, std::vector<uint8_t>* out) {
  out->clear();
  ByteWriter w(out);
  w.Put(o.model);
  w.Put(o.load_format);
  w.Put(o.dtype);
  w.Put(o.kv_cache_dtype);
  w.Put(o.device);
  w.Put(std::bit_cast<uint64_t>(o.gpu_memory_utilization));
  w.Put(static_cast<uint32_t>(o.share_gpu));
  w.Put(static_cast<uint32_t>(o.enforce_eager));
  w.Put(o.threads);
  w.Put(o.max_model_len);
  w.Put(o.max_num_seqs);
  w.Put(o.max_num_batched_tokens);
  w.Put(o.page_size);
  w.Put(o.kv_cache_bytes);
  w.Put(static_cast<uint32_t>(o.attention.size()));
  for (const AttentionSpec& spec : o.attention) w.Put(spec.ToString());
  w.Put(static_cast<uint32_t>(o.batch_invariant));
  w.Put(static_cast<uint32_t>(o.missing_mass_bound));
  w.Put(o.seed);
}

Result<EngineOptions> ParseOptions(std::span<const uint8_t> bytes) {
  ByteReader r(bytes);
  EngineOptions o;
  o.model = r.GetString();
  o.load_format = r.GetString();
  o.dtype = r.GetString();
  o.kv_cache_dtype = r.GetString();
  o.device = r.GetString();
  o.gpu_memory_utilization = std::bit_cast<double>(r.Get<uint64_t>());
  o.share_gpu = r.Get<uint32_t>() != 0;
  o.enforce_eager = r.Get<uint32_t>() != 0;
  o.threads = r.Get<int>();
  o.max_model_len = r.Get<int64_t>();
  o.max_num_seqs = r.Get<int>();
  o.max_num_batched_tokens = r.Get<int>();
  o.page_size = r.Get<int>();
  o.kv_cache_bytes = r.Get<int64_t>();
  o.attention.clear();
  const uint32_t specs = r.GetCount(sizeof(uint32_t));
  for (uint32_t i = 0; i < specs && r.ok(); ++i) {
    ASSIGN_OR_RETURN(AttentionSpec spec, AttentionSpec::Parse(r.GetString()));
    o.attention.push_back(std::move(spec));
  }
  o.batch_invariant = r.Get<uint32_t>() != 0;
  o.missing_mass_bound = r.Get<uint32_t>() != 0;
  o.seed = r.Get<uint64_t>();
  o.load_tokenizer = false;  // rank 0 alone speaks text
  if (!r.done()) {
    return InvalidArgument("the options of rank 0 are cut short or over-long (" + std::to_string(bytes.size()) +
                           " bytes); all ranks must run the same build of quire");
  }
  return o;
}

}  // namespace quire
