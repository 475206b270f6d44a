#include "kernels/cpu/attention_decode_plan.h"

namespace quire {

size_t AttentionDecodeWorkspace(const AttentionDecodeParams& params) {
  const auto most_pages = [&](int row) { return DecodeWorkspace::LengthPages(params, row); };
  return DecodeWorkspace::Layout(params, DecodePlan::Create(params), most_pages, nullptr, nullptr);
}

}  // namespace quire
