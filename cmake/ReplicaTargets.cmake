# SPDX-License-Identifier: Apache-2.0
# How every target of this tree is compiled and how every test is registered.
# `replica_engine_library` adds the rules that hold in engine/ only: no exceptions, no RTTI
# (docs/architecture.md, "Errors").
add_library(replica_options INTERFACE)
target_compile_options(replica_options INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Werror
    $<$<COMPILE_LANGUAGE:CXX>:-Wconversion -Wswitch-enum -Wnon-virtual-dtor -Wold-style-cast>)
target_include_directories(replica_options INTERFACE
    ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
if(REPLICA_EXPENSIVE_ASSERT)
    target_compile_definitions(replica_options INTERFACE REPLICA_EXPENSIVE_ASSERT=1)
endif()
if(REPLICA_SANITIZE)
    # The vptr check needs the RTTI that engine/ does without, and g++ 12 sees uninitialised
    # variables in its own instrumentation of library headers.
    target_compile_options(replica_options INTERFACE
        -fsanitize=${REPLICA_SANITIZE} -fno-sanitize=vptr -fno-sanitize-recover=all
        -fno-omit-frame-pointer $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(replica_options INTERFACE -fsanitize=${REPLICA_SANITIZE})
endif()

find_program(REPLICA_CCACHE ccache)
if(REPLICA_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${REPLICA_CCACHE})
    set(CMAKE_C_COMPILER_LAUNCHER ${REPLICA_CCACHE})
endif()

# replica_engine_library(NAME SOURCES...): a static library of engine/.
function(replica_engine_library name)
    add_library(${name} STATIC ${ARGN})
    target_link_libraries(${name} PUBLIC replica_options)
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions -fno-rtti>)
endfunction()

# Everything that the sanitizer stage of scripts/test.sh builds: the programs of replica_test.
if(REPLICA_BUILD_TESTS)
    add_custom_target(unit_tests)
endif()

# replica_test(NAME LIBS... SOURCES... [LABEL unit] [TIMEOUT s] [LOCKS loop netns...] [ARGS...]):
# one Catch2 program, one ctest entry. The label says which stage of scripts/test.sh runs it: `unit`
# (the default) also runs under the sanitizers, `integration` only in full builds. LOCKS names what
# must not be shared with another test that runs at the same time.
function(replica_test name)
    cmake_parse_arguments(arg "" "LABEL;TIMEOUT" "SOURCES;LIBS;LOCKS;ARGS" ${ARGN})
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE replica_options ${arg_LIBS} replica_test_main)
    add_test(NAME ${name} COMMAND ${name} ${arg_ARGS})
    replica_test_properties(${name} "${arg_LABEL}" "${arg_TIMEOUT}" "${arg_LOCKS}")
    if(NOT arg_LABEL OR arg_LABEL STREQUAL "unit")
        add_dependencies(unit_tests ${name})
    endif()
endfunction()

# replica_script_test(NAME COMMAND... [LABEL integration] [TIMEOUT s] [LOCKS...]): a test that is
# not a Catch2 program. Exit code 77 means skipped, and the script has to say loudly why.
function(replica_script_test name)
    cmake_parse_arguments(arg "" "LABEL;TIMEOUT" "COMMAND;LOCKS" ${ARGN})
    if(NOT arg_LABEL)
        set(arg_LABEL integration)
    endif()
    add_test(NAME ${name} COMMAND ${arg_COMMAND})
    replica_test_properties(${name} "${arg_LABEL}" "${arg_TIMEOUT}" "${arg_LOCKS}")
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

# Every test ends by itself: one that hangs must not take the whole run with it. The limit is far
# from what it takes, because a busy machine may be ten times slower than an idle one.
function(replica_test_properties name label timeout locks)
    if(NOT label)
        set(label unit)
    endif()
    if(NOT timeout)
        set(timeout 300)
    endif()
    set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout})
    if(locks)
        set_tests_properties(${name} PROPERTIES RESOURCE_LOCK "${locks}")
    endif()
endfunction()
