# Install and export. find_package(quire) gives quire::quire: every layer's static library behind one name. The headers
# keep their paths in the repository under include/quire, so both "core/engine/engine.h" and
# <quire/core/engine/engine.h> work in a program that links it. Beside it quire::cuda_kernels, for files that nvcc compiles.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(quire_layers GLOBAL PROPERTY QUIRE_LAYERS)
add_library(quire INTERFACE)
add_library(quire::quire ALIAS quire)
# quire::rpc is linked by its own name (find_package(quire COMPONENTS rpc)), so that an engine alone needs no gRPC.
set(engine_layers ${quire_layers})
list(REMOVE_ITEM engine_layers quire_rpc)
target_link_libraries(quire INTERFACE ${engine_layers})
target_include_directories(quire INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

if(TARGET quire_cuda_kernels)
  list(APPEND quire_layers quire_cuda_kernels)
  target_include_directories(quire_cuda_kernels INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/quire/kernels/cuda/backend>)
endif()
install(TARGETS quire ${quire_layers} EXPORT quireTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET quire_program)
  install(TARGETS quire_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(PROGRAMS ${PROJECT_SOURCE_DIR}/launch/serve_group.sh DESTINATION ${CMAKE_INSTALL_BINDIR} RENAME quire-serve-group)
endif()
foreach(folder core kernels kvstore parallel)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/quire
    FILES_MATCHING PATTERN "*.h" PATTERN "*.cuh")
endforeach()

set(quire_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/quire)
install(EXPORT quireTargets NAMESPACE quire:: DESTINATION ${quire_config_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/quireConfig.cmake.in
  ${PROJECT_BINARY_DIR}/quireConfig.cmake INSTALL_DESTINATION ${quire_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/quireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/quireConfig.cmake ${PROJECT_BINARY_DIR}/quireConfigVersion.cmake
  ${CMAKE_CURRENT_LIST_DIR}/FindNCCL.cmake DESTINATION ${quire_config_dir})
if(TARGET quire_rpc)  # what names no type of gRPC
  install(FILES ${PROJECT_SOURCE_DIR}/rpc/client.h ${PROJECT_SOURCE_DIR}/rpc/coordinator.h
    ${PROJECT_SOURCE_DIR}/rpc/serve.h
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/quire/rpc)
endif()
