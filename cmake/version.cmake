# The version has one place, the public header. Sets TKV_VERSION; a change of the header configures anew.
set(header ${CMAKE_CURRENT_SOURCE_DIR}/include/turbokv.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${header})
set(TKV_VERSION)
foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${header} line REGEX "^#define TKV_VERSION_${part} +[0-9]+$")
    if(NOT line)
        message(FATAL_ERROR "${header} does not say TKV_VERSION_${part}: expected a line "
                            "'#define TKV_VERSION_${part} NUMBER'")
    endif()
    string(REGEX REPLACE ".* " "" number "${line}")
    list(APPEND TKV_VERSION ${number})
endforeach()
list(JOIN TKV_VERSION . TKV_VERSION)
