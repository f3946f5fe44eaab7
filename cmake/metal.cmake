# The Metal back end: on macOS, and on Linux over the fake Metal of tests/metal. The kernels are
# compiled at run time from one string that embed_metal.cmake makes.
if(NOT APPLE AND NOT TKV_FAKE_METAL)
    return()
endif()

set(TKV_METAL_FOLDER ${PROJECT_SOURCE_DIR}/src/device/metal)
file(GLOB TKV_METAL_KERNELS CONFIGURE_DEPENDS ${TKV_METAL_FOLDER}/*.metal)
set(TKV_METAL_SOURCE ${CMAKE_CURRENT_BINARY_DIR}/metal_source.c)
add_custom_command(
    OUTPUT ${TKV_METAL_SOURCE} ${CMAKE_CURRENT_BINARY_DIR}/kernels.metal
    COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR}/src -DOUTPUT=${TKV_METAL_SOURCE}
            -DMETAL_OUTPUT=${CMAKE_CURRENT_BINARY_DIR}/kernels.metal
            -P ${PROJECT_SOURCE_DIR}/cmake/embed_metal.cmake
    DEPENDS ${TKV_METAL_KERNELS} ${TKV_METAL_FOLDER}/launch.h
            ${PROJECT_SOURCE_DIR}/src/format/constants.h
            ${PROJECT_SOURCE_DIR}/src/format/type_table.h
            ${PROJECT_SOURCE_DIR}/src/device/device_layout.h
            ${PROJECT_SOURCE_DIR}/src/device/geometry.h
            ${PROJECT_SOURCE_DIR}/include/turbokv.h
            ${PROJECT_SOURCE_DIR}/cmake/embed_metal.cmake
    COMMENT "Embedding the Metal kernels")

target_sources(tkv_objects PRIVATE ${TKV_METAL_SOURCE} ${TKV_METAL_FOLDER}/metal.m
               ${TKV_METAL_FOLDER}/memory.m
               ${TKV_METAL_FOLDER}/pipelines.m ${TKV_METAL_FOLDER}/kernels.m
               ${TKV_METAL_FOLDER}/attend.m ${TKV_METAL_FOLDER}/parts.m)
target_compile_definitions(tkv_options INTERFACE TKV_HAVE_METAL)
if(TKV_FAKE_METAL) # has the flags of Objective-C, too
    set(TKV_METAL_LIBRARIES $<BUILD_INTERFACE:fake_metal>)
else()
    set(TKV_METAL_LIBRARIES "-framework Metal" "-framework Foundation")
    target_compile_options(tkv_objects PRIVATE $<$<COMPILE_LANGUAGE:OBJC>:-fobjc-arc>)
endif()
target_link_libraries(tkv_objects PRIVATE ${TKV_METAL_LIBRARIES})
target_link_libraries(turbokv_static PUBLIC ${TKV_METAL_LIBRARIES})
target_link_libraries(turbokv_shared PUBLIC ${TKV_METAL_LIBRARIES})
