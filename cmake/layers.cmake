# longstride_layer(NAME USES ...): src/NAME/**/*.cc become the library longstride_NAME; *_test.cc
# there become the program longstride_NAME_test (cmake/tests.cmake).
add_library(longstride_options INTERFACE)
target_include_directories(longstride_options INTERFACE ${PROJECT_SOURCE_DIR}/include
                                                        ${PROJECT_SOURCE_DIR}/src)
# -Wrestrict: false alarms of g++ 12 on "text" + std::string (its bug 105651).
target_compile_options(
  longstride_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Werror;-Wno-restrict;-ffp-contract=off>")
# Arm: NEON. Vectors of SVE have no size at compile time, which arrays of them need.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  target_compile_definitions(
    longstride_options
    INTERFACE "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
endif()
if(LONGSTRIDE_SANITIZE)
  target_compile_options(longstride_options INTERFACE -fsanitize=address,undefined
                                                      -fno-sanitize-recover=all -O1 -g)
  target_link_options(longstride_options INTERFACE -fsanitize=address,undefined)
endif()

function(longstride_layer name)
  cmake_parse_arguments(layer "" "" "USES" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cc)
  list(FILTER sources EXCLUDE REGEX "_(test|fuzz)\\.cc$")
  if(LONGSTRIDE_HAS_CUDA)
    file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cu)
    list(APPEND sources ${kernels})
    list(FILTER sources EXCLUDE REGEX "_no_cuda\\.cc$")
  else()
    set(refusing ${sources})
    list(FILTER refusing INCLUDE REGEX "_no_cuda\\.cc$")
    list(FILTER sources EXCLUDE REGEX "(_cuda\\.cc|/cuda/[^/]*\\.cc)$")
    list(APPEND sources ${refusing})
  endif()
  if(name STREQUAL "model")
    include(${PROJECT_SOURCE_DIR}/cmake/presets.cmake)
    list(APPEND sources ${LONGSTRIDE_PRESETS_CC})
  endif()
  set(target longstride_${name})
  if(sources)
    add_library(${target} STATIC ${sources})
    set(how PUBLIC)
    target_link_libraries(${target} PRIVATE longstride_options)
  else()
    add_library(${target} INTERFACE)
    set(how INTERFACE)
  endif()
  foreach(used ${layer_USES})
    target_link_libraries(${target} ${how} longstride_${used})
  endforeach()
  target_link_libraries(${target} ${how} OpenMP::OpenMP_CXX DNNL::dnnl hwy::hwy fmt::fmt
                        nlohmann_json::nlohmann_json tomlplusplus::tomlplusplus PNG::PNG
                        PkgConfig::XXHASH Random123::Random123)
  if(LONGSTRIDE_HAS_CUDA)
    target_link_libraries(${target} ${how} CUDA::cudart_static CUDA::cublasLt)
  endif()
  set(LONGSTRIDE_LAYERS ${LONGSTRIDE_LAYERS} ${target} PARENT_SCOPE)
endfunction()
