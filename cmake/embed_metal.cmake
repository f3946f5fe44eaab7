# Joins the shared headers and the Metal kernels to the one source string that the library carries:
#   cmake -DSOURCE_DIR=src -DOUTPUT=kernels.c [-DMETAL_OUTPUT=kernels.metal] -P embed_metal.cmake
# The string has no #include but metal_stdlib; #line tells the compiler where each part is from.
set(parts
    format/constants.h
    format/type_table.h
    device/device_layout.h
    device/geometry.h
    device/metal/launch.h
    device/metal/common.metal
    device/metal/rotation.metal
    device/metal/format.metal
    device/metal/quantise.metal
    device/metal/trellis.metal
    device/metal/store.metal
    device/metal/load.metal
    device/metal/attend.metal
    device/metal/attend_decode.metal
    device/metal/attend_prefill.metal
    device/metal/attend_merge.metal
    device/metal/parts.metal)

set(text "#include <metal_stdlib>\nusing namespace metal;\n")

# The limits of the public header, which Metal cannot read as a whole.
file(STRINGS "${SOURCE_DIR}/../include/turbokv.h" limits
     REGEX "^#define TKV_(PAGE_TOKENS|MAX_HEAD_DIM) ")
foreach(limit IN LISTS limits)
    string(APPEND text "${limit}\n")
endforeach()
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
    file(WRITE "${OUTPUT}" "/* Made by cmake/embed_metal.cmake. */\n#include \"device/metal/metal.h\"\n\n"
                           "const char tkv_metal_source[] = {\n${bytes}0};\n")
endif()
