// Reference append: one element at a time, by the layout's own offsets; metadata recomputed from the page as it stands.
#pragma once

#include "kernels/kv_append.h"

namespace quire::reference {

void KvAppend(const KvAppendParams& params);

}  // namespace quire::reference
