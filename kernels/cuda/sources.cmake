# The kernels, for nvcc (here) and for the emulator (tests/kernels/cuda).
set(QUIRE_CUDA_SOURCES
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_decode.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_decode_mma.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_decode_softcap.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_prefill.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_prefill_mma.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_prefill_softcap.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/elementwise.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/hierarchical.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/hybrid.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/kv_append.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/page_fill.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/page_ops.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/quest.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/sinks.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/top_candidates.cu
  ${PROJECT_SOURCE_DIR}/kernels/cuda/top_pages.cu)
