#include "kernels/page_table.h"

#include <string>

namespace quire {

Result<PageFormat> PageFormat::Create(DType dtype, int page_size, int kv_heads, int k_dim, int v_dim) {
  if (page_size < 1) return InvalidArgument("page size " + std::to_string(page_size) + " is below 1; use 16, 32 or 64");
  if (kv_heads < 1 || k_dim < 1 || v_dim < 1) {
    return InvalidArgument("a cache of " + std::to_string(kv_heads) + " KV heads with K width " + std::to_string(k_dim) +
                           " and V width " + std::to_string(v_dim) + " can't be made; all must be at least 1");
  }
  PageFormat f;
  f.dtype = dtype;
  f.word = 4 / ElementSize(dtype);
  if (k_dim % f.word != 0) {
    return InvalidArgument("head_dim " + std::to_string(k_dim) + " is not a multiple of " + std::to_string(f.word) +
                           ", the elements of a 32-bit word of a " + std::string(DTypeName(dtype)) + " cache");
  }
  f.page_size = page_size;
  f.kv_heads = kv_heads;
  f.k_dim = k_dim;
  f.v_dim = v_dim;
  f.k_head_stride = int64_t{page_size} * k_dim;
  f.k_page_stride = kv_heads * f.k_head_stride;
  f.v_head_stride = int64_t{(page_size + f.word - 1) / f.word} * f.word * v_dim;
  f.v_page_stride = kv_heads * f.v_head_stride;
  f.meta_head_stride = int64_t{2} * k_dim * kPagesPerGroup;
  f.meta_group_stride = kv_heads * f.meta_head_stride;
  f.over_head_stride = int64_t{2} * k_dim;
  f.over_group_stride = kv_heads * f.over_head_stride;
  return f;
}

}  // namespace quire
