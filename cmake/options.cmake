# Flags that every target of the project shares.
add_library(tkv_options INTERFACE)
target_include_directories(tkv_options INTERFACE ${PROJECT_SOURCE_DIR}/include)
# What is inside the library, for itself and its tests.
add_library(tkv_internal INTERFACE)
target_link_libraries(tkv_internal INTERFACE tkv_options)
target_include_directories(tkv_internal INTERFACE ${PROJECT_SOURCE_DIR}/src)
# Contraction would let the compiler fuse a*b+c and change the last bit of an encoded row.
target_compile_options(
    tkv_options
    INTERFACE $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes
              -Wmissing-prototypes -ffp-contract=off -fvisibility=hidden>)
# The code that nvcc hands to the host's compiler is C++ without its library: its stubs' statics, which
# CUDA 13 has, are the same value whoever sets them.
target_compile_options(
    tkv_options
    INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-fvisibility=hidden
              -Xcompiler=-Wall,-Wextra,-Wshadow,-Wno-unknown-pragmas>)
find_package(Threads REQUIRED)
if(TKV_WERROR)
    target_compile_options(tkv_options INTERFACE $<$<COMPILE_LANGUAGE:C>:-Werror>
                                                 $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
if(TKV_SANITIZE)
    target_compile_options(tkv_options INTERFACE -fsanitize=${TKV_SANITIZE}
                                                 -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(tkv_options INTERFACE -fsanitize=${TKV_SANITIZE})
    target_compile_definitions(tkv_options INTERFACE TKV_SANITIZED)
endif()
if(TKV_ASSERTIONS)
    target_compile_definitions(tkv_internal INTERFACE TKV_ASSERTIONS)
endif()

# Coverage for the targets of tests/fuzz.
if(TKV_LIBFUZZER)
    target_compile_options(tkv_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
