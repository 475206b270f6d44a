# Steps of the install test; every one ends it with a sentence when it fails.
set(work ${BUILD_DIR}/tests/install/work)
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work}/outside)
file(COPY ${SOURCE_DIR}/tests/install/consumer DESTINATION ${work}/outside)

function(step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

set(flags "")
if(SANITIZE)
  set(flags "-fsanitize=${SANITIZE}")
endif()
step("installing" ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${work}/prefix)
step("configuring the program outside the tree" ${CMAKE_COMMAND} -S ${work}/outside/consumer -B ${work}/outside/build
  -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER} "-DCMAKE_CXX_FLAGS=${flags}" -DCMAKE_PREFIX_PATH=${work}/prefix)
step("building it" ${CMAKE_COMMAND} --build ${work}/outside/build)
step("running it" ${work}/outside/build/consumer ${SOURCE_DIR}/tests/data/stories260K)
# The story goes on with the words of the reference of greedy ids.
if(NOT out MATCHES "there was a")
  message(FATAL_ERROR "the program printed: ${out}")
endif()
file(REMOVE_RECURSE ${work})
