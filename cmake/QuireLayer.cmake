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

# quire_test(NAME SOURCES … [DEPS …] [LABELS …] [ALSO label] [LARGE test …] [PREFIX p]): one GoogleTest executable a folder. Every test
# gets the label fast unless LABELS says otherwise; suites named Slow… are labelled slow,
# suites named SmolLM2… need the fetched model and are labelled model. ALSO: a second label for all but the last; the tests of
# LARGE, too long for fast, have that one alone. PREFIX: before the names, where two executables have the same tests.
function(quire_test name)
  cmake_parse_arguments(ARG "" "ALSO;PREFIX" "SOURCES;DEPS;LABELS;LARGE" ${ARGN})
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
  if(ARG_ALSO)
    set(labels "${ARG_ALSO}")  # ctest adds labels to those that are there
  else()
    set(labels "${ARG_LABELS}")
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 TEST_PREFIX "${ARG_PREFIX}" TEST_FILTER "-Slow*:SmolLM2*"
    PROPERTIES LABELS "${labels}" ${common})
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 TEST_PREFIX "${ARG_PREFIX}" TEST_FILTER "Slow*"
    TEST_LIST ${name}_SLOW PROPERTIES LABELS slow ${common})
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 TEST_PREFIX "${ARG_PREFIX}" TEST_FILTER "SmolLM2*"
    TEST_LIST ${name}_MODEL PROPERTIES LABELS model ${common})
  if(ARG_ALSO)
    # gtest_discover_tests passes no lists as properties; ctest reads this after the lists of tests it writes.
    set(file ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
    file(WRITE ${file} "\
foreach(test IN LISTS ${name}_TESTS)
  if(NOT \";${ARG_LARGE};\" MATCHES \";\${test};\")
    set_tests_properties(\${test} PROPERTIES LABELS \"${ARG_LABELS}\")
  endif()
endforeach()
foreach(test IN LISTS ${name}_SLOW)
  set_tests_properties(\${test} PROPERTIES LABELS \"${ARG_ALSO}\")
endforeach()
")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${file})
  endif()
endfunction()
