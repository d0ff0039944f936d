# How every target of this tree is compiled. `replica_engine_library` adds the rules that hold in
# engine/ only: no exceptions, no RTTI (docs/architecture.md, "Errors").
add_library(replica_options INTERFACE)
target_compile_options(replica_options INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Werror
    $<$<COMPILE_LANGUAGE:CXX>:-Wconversion -Wswitch-enum -Wnon-virtual-dtor -Wold-style-cast>)
target_include_directories(replica_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
if(REPLICA_EXPENSIVE_ASSERT)
    target_compile_definitions(replica_options INTERFACE REPLICA_EXPENSIVE_ASSERT=1)
endif()
if(REPLICA_SANITIZE)
    target_compile_options(replica_options INTERFACE
        -fsanitize=${REPLICA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
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

# replica_test(NAME LIBS... SOURCES...): one Catch2 program, one ctest entry.
function(replica_test name)
    cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE replica_options ${arg_LIBS} replica_test_main)
    add_test(NAME ${name} COMMAND ${name})
endfunction()
