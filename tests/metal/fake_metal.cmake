# The library fake_metal: the executor and a Metal that runs on it, as a stand-in for Apple's frameworks.
set(METAL_STUB_OPTIONS -fobjc-runtime=macosx-13 -fobjc-arc -fblocks -std=gnu11)

add_library(fake_metal SHARED
    executor/executor.c executor/fibre.c
    runtime/objc.c runtime/blocks.c runtime/foundation.m runtime/collections.m
    runtime/regions.c runtime/device.m runtime/library.m runtime/encoder.m runtime/queue.m)
target_include_directories(fake_metal PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(fake_metal SYSTEM PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_compile_options(fake_metal PRIVATE -Wall -Wextra -Wshadow -Wstrict-prototypes
                                          -Wmissing-prototypes)
# Host code is compiled with these too.
target_compile_options(fake_metal PUBLIC $<$<COMPILE_LANGUAGE:OBJC>:${METAL_STUB_OPTIONS}>)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
target_compile_definitions(fake_metal PRIVATE
    FAKE_METAL_PYTHON="${Python3_EXECUTABLE}"
    FAKE_METAL_COMPILER="${CMAKE_CURRENT_SOURCE_DIR}/msl"
    FAKE_METAL_DEFAULT_CACHE="${CMAKE_BINARY_DIR}/metal-cache")
find_package(Threads REQUIRED)
target_link_libraries(fake_metal PRIVATE Threads::Threads ${CMAKE_DL_LIBS} -Wl,--no-as-needed m)
if(TKV_WERROR)
    target_compile_options(fake_metal PRIVATE -Werror)
endif()
if(TKV_SANITIZE)
    target_compile_options(fake_metal PRIVATE -fsanitize=${TKV_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(fake_metal PRIVATE -fsanitize=${TKV_SANITIZE})
endif()
# What switches stacks and copies for kernels must not look like a kernel's own accesses.
set_source_files_properties(executor/executor.c executor/fibre.c PROPERTIES
                            COMPILE_OPTIONS "-fno-builtin;-fno-sanitize=thread")
if(TKV_SANITIZE MATCHES thread)
    set_source_files_properties(executor/executor.c executor/fibre.c PROPERTIES
                                COMPILE_DEFINITIONS HAVE_THREAD_SANITIZER)
endif()

# Sanitizers name functions and lines with this program's help.
find_program(TKV_SYMBOLIZER NAMES llvm-symbolizer-19 llvm-symbolizer HINTS /usr/lib/llvm-19/bin)
set(METAL_TEST_ENVIRONMENT)
if(TKV_SYMBOLIZER)
    foreach(sanitizer ASAN TSAN)
        list(APPEND METAL_TEST_ENVIRONMENT
             ${sanitizer}_OPTIONS=external_symbolizer_path=${TKV_SYMBOLIZER})
    endforeach()
endif()
