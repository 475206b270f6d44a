# Steps of the install test; every one ends it with a sentence when it fails. `out` is what a step wrote to stdout: MPI says
# things on stderr that are none of the program's.
set(work ${BUILD_DIR}/tests/install/work)
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work}/outside)
file(COPY ${SOURCE_DIR}/tests/install/consumer DESTINATION ${work}/outside)

function(step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${out}\n${err}")
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
# A program that owns MPI itself, where MPI is found. Not with sanitizers: MPI's library leaks at its end.
if(MPIEXEC AND NOT SANITIZE)
  file(COPY ${SOURCE_DIR}/launch/examples/mpi_program DESTINATION ${work}/outside)
  step("configuring the MPI program" ${CMAKE_COMMAND} -S ${work}/outside/mpi_program -B ${work}/outside/mpi_build
    -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${work}/prefix)
  step("building the MPI program" ${CMAKE_COMMAND} --build ${work}/outside/mpi_build)
  foreach(ranks 1 2)
    step("running it on ${ranks} ranks" ${SOURCE_DIR}/tests/mpirun.sh ${MPIEXEC} ${ranks}
      ${work}/outside/mpi_build/mpi_program ${SOURCE_DIR}/tests/data/stories260K "Once upon a time")
    set(printed_${ranks} "${out}")
  endforeach()
  if(NOT printed_2 MATCHES "there was a" OR NOT printed_2 STREQUAL printed_1)
    message(FATAL_ERROR "the MPI program printed on two ranks: ${printed_2}\nand on one: ${printed_1}")
  endif()
endif()
file(REMOVE_RECURSE ${work})
