# quire_layer(NAME SOURCES … [DEPS …] [PRIVATE_LIBS …]): one static library per layer, included by
# repository-relative paths ("core/base/status.h"). Exported as quire::NAME.
function(quire_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_LIBS" ${ARGN})
  set(target quire_${name})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(quire::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include/quire>)
  target_link_libraries(${target} PUBLIC Threads::Threads)
  foreach(dep ${ARG_DEPS})
    target_link_libraries(${target} PUBLIC quire_${dep})
  endforeach()
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:quire_options> ${ARG_PRIVATE_LIBS})
  set_property(GLOBAL APPEND PROPERTY QUIRE_LAYERS ${target})
endfunction()

# quire_test(NAME SOURCES … [DEPS …] [LABELS …] [LONG test …] [PREFIX p]): one GoogleTest executable a folder. Every test
# gets the label fast unless LABELS says otherwise, but for those of LONG (suite.test, * allowed), which take seconds and
# are labelled long; suites named Slow… are labelled slow, suites named SmolLM2… need the fetched model and are labelled
# model. PREFIX: before the names, where two executables have the same tests.
function(quire_test name)
  cmake_parse_arguments(ARG "" "PREFIX" "SOURCES;DEPS;LABELS;LONG" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE quire_options GTest::gtest GTest::gtest_main)
  foreach(dep ${ARG_DEPS})
    target_link_libraries(${name} PRIVATE quire_${dep})
  endforeach()
  target_compile_definitions(${name} PRIVATE
    QUIRE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" QUIRE_BINARY_DIR="${PROJECT_BINARY_DIR}")
  if(NOT ARG_LABELS)
    set(ARG_LABELS fast)
  endif()
  set(common SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
  if(QUIRE_SANITIZE)  # also of a process that the test kills, or whose exit code it doesn't ask for
    list(APPEND common FAIL_REGULAR_EXPRESSION "ThreadSanitizer: |AddressSanitizer: |LeakSanitizer: |runtime error: ")
  endif()
  list(JOIN ARG_LONG ":" long)
  # discover(FILTER LABELS SUFFIX)
  macro(discover filter labels suffix)
    gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 TEST_PREFIX "${ARG_PREFIX}" TEST_FILTER "${filter}"
      TEST_LIST ${name}_${suffix} PROPERTIES LABELS "${labels}" ${common})
  endmacro()
  discover("-Slow*:SmolLM2*:${long}" "${ARG_LABELS}" TESTS)
  if(long)
    discover("${long}" long LONG)
  endif()
  discover("Slow*" slow SLOW)
  discover("SmolLM2*" model MODEL)
endfunction()
