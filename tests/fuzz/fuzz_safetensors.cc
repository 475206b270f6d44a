// Any bytes as a safetensors file: a status or tensors that can be read.
#include <memory>
#include <utility>

#include "core/io/safetensors.h"
#include "tests/fuzz/read_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto tensors = quire::ParseSafetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  if (tensors.ok()) quire::ReadTensors(quire::MappedWeights(std::move(*tensors), nullptr));
  return 0;
}
