# One test program a layer, and what crosses layers under tests/.
enable_testing()
find_package(GTest REQUIRED)
include(GoogleTest)

function(longstride_test target libraries)
  add_executable(${target} ${ARGN})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE ${libraries} longstride_options GTest::gtest
                                          GTest::gtest_main)
  add_test(NAME ${target} COMMAND ${target} --gtest_brief=1)
  set_tests_properties(${target} PROPERTIES TIMEOUT 1200 LABELS unit)
endfunction()

foreach(library ${LONGSTRIDE_LAYERS})
  string(REPLACE longstride_ "" layer ${library})
  file(GLOB_RECURSE tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${layer}/*_test.cc)
  set(gpu_tests ${tests})
  list(FILTER tests EXCLUDE REGEX "_gpu_test\\.cc$")
  list(FILTER gpu_tests INCLUDE REGEX "_gpu_test\\.cc$")
  if(tests)
    longstride_test(${library}_test ${library} ${tests})
  endif()
  if(gpu_tests AND LONGSTRIDE_HAS_CUDA)
    longstride_test(${library}_gpu_test ${library} ${gpu_tests})
    # Each says "no CUDA device: ..." and is skipped where there is none. One at a time: some fill
    # the card, or look at what is free.
    set_tests_properties(${library}_gpu_test PROPERTIES LABELS gpu RESOURCE_LOCK gpu
                         SKIP_REGULAR_EXPRESSION "no CUDA device")
  endif()
endforeach()

# Python programs that drive the command line as a user does. Each is one test.
file(GLOB scripts CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*_test.py)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
foreach(script ${scripts})
  get_filename_component(name ${script} NAME_WE)
  add_test(NAME ${name} COMMAND ${Python3_EXECUTABLE} ${script})
  set(environment "LONGSTRIDE=$<TARGET_FILE:longstride_cli>;LONGSTRIDE_ROOT=${PROJECT_SOURCE_DIR}")
  if(name MATCHES "^gpu_")
    set_tests_properties(${name} PROPERTIES LABELS gpu RESOURCE_LOCK gpu SKIP_REGULAR_EXPRESSION
                         "no CUDA device")
  else()
    # Bits of the CPU are tested, on a machine with a card too.
    list(APPEND environment "CUDA_VISIBLE_DEVICES=")
    set_tests_properties(${name} PROPERTIES LABELS program)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT 1800 ENVIRONMENT "${environment}")
endforeach()
