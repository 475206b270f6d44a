# Installs into a scratch prefix, builds gpu_consumer/ outside the tree against it, with nvcc for one architecture, and runs
# it: where there is no GPU it must say so, where there is one it compares.
if(NOT CUDA)
  message("SKIPPED: this build has no CUDA kernels (nvcc 12.8 or later was not found, or QUIRE_CUDA is OFF)")
  return()
endif()
include(${CMAKE_CURRENT_LIST_DIR}/steps.cmake)
set(work ${BUILD_DIR}/tests/install/gpu_work)
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work}/outside)
file(COPY ${SOURCE_DIR}/tests/install/gpu_consumer DESTINATION ${work}/outside)
install_into(${work}/prefix)

# That of the GPU, where there is one.
execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
  RESULT_VARIABLE no_gpu OUTPUT_VARIABLE capability ERROR_QUIET)
if(no_gpu EQUAL 0 AND capability MATCHES "^([0-9]+)\\.([0-9]+)")
  set(architecture ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
else()
  set(architecture ${ARCHITECTURE})
endif()
step("configuring the program outside the tree" ${CMAKE_COMMAND} -S ${work}/outside/gpu_consumer -B ${work}/outside/build
  -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CUDA_COMPILER=${CUDA_COMPILER}
  -DCMAKE_CUDA_ARCHITECTURES=${architecture} -DCMAKE_PREFIX_PATH=${work}/prefix)
step("building it" ${CMAKE_COMMAND} --build ${work}/outside/build)
execute_process(COMMAND ${work}/outside/build/gpu_flex RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE err)
if(no_gpu EQUAL 0)
  if(NOT result EQUAL 0 OR NOT out MATCHES "own functors on the GPU: largest difference")
    message(FATAL_ERROR "the program ended with ${result} on a GPU (${architecture}): ${out}${err}")
  endif()
elseif(NOT result EQUAL 2 OR NOT out MATCHES "no GPU here: ")
  message(FATAL_ERROR "the program ended with ${result} where nvidia-smi finds no GPU: ${out}${err}")
endif()
message("${out}")
file(REMOVE_RECURSE ${work})
