# Joins the shared headers and the Metal kernels to the one source string that the library carries:
#   cmake -DSOURCE_DIR=src -DOUTPUT=kernels.c [-DMETAL_OUTPUT=kernels.metal] -P embed_metal.cmake
# The string has no #include but metal_stdlib; #line tells the compiler where each part is from.
set(parts
    codec/constants.h
    backend/device_layout.h
    backend/metal/launch.h
    backend/metal/common.metal
    backend/metal/rotation.metal
    backend/metal/format.metal
    backend/metal/quantise.metal
    backend/metal/trellis.metal
    backend/metal/store.metal
    backend/metal/load.metal
    backend/metal/attend.metal
    backend/metal/attend_decode.metal
    backend/metal/attend_prefill.metal
    backend/metal/attend_merge.metal
    backend/metal/parts.metal)

set(text "#include <metal_stdlib>\nusing namespace metal;\n")
foreach(part IN LISTS parts)
    file(READ "${SOURCE_DIR}/${part}" content)
    string(REGEX REPLACE "#include [^\n]*" "" content "${content}")
    string(APPEND text "#line 1 \"${part}\"\n${content}")
endforeach()

if(METAL_OUTPUT)
    file(WRITE "${METAL_OUTPUT}" "${text}")
endif()
if(OUTPUT)
    string(HEX "${text}" hex)
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
    set(line "0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,")
    string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
    file(WRITE "${OUTPUT}" "/* Made by cmake/embed_metal.cmake. */\n#include \"backend/metal/metal.h\"\n\n"
                           "const char tkv_metal_source[] = {\n${bytes}0};\n")
endif()
