# Flags that every target of the project shares.
add_library(tkv_options INTERFACE)
target_include_directories(tkv_options INTERFACE ${PROJECT_SOURCE_DIR}/src
                                                 ${PROJECT_SOURCE_DIR}/include)
# Contraction would let the compiler fuse a*b+c and change the last bit of an encoded row.
target_compile_options(
    tkv_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes
                          -Wmissing-prototypes -ffp-contract=off -fvisibility=hidden)
find_package(OpenMP COMPONENTS C)
if(NOT OpenMP_C_FOUND)
    target_compile_options(tkv_options INTERFACE -Wno-unknown-pragmas)
endif()
if(TKV_WERROR)
    target_compile_options(tkv_options INTERFACE -Werror)
endif()
if(TKV_SANITIZE)
    target_compile_options(tkv_options INTERFACE -fsanitize=${TKV_SANITIZE}
                                                 -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(tkv_options INTERFACE -fsanitize=${TKV_SANITIZE})
    target_compile_definitions(tkv_options INTERFACE TKV_SANITIZED)
endif()
