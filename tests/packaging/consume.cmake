# Installs into a staging tree, then builds and runs a program against it with pkg-config and with
# find_package, static and shared; uninstalls, and nothing is left.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
set(ENV{DESTDIR} "")
# A component has a manifest of its own: that of the user's last `make install` stays.
set(manifest ${BUILD}/install_manifest_Unspecified.txt)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --component Unspecified
                        --prefix ${WORK}/moved
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(STRINGS ${manifest} installed)

file(GLOB_RECURSE pc ${WORK}/moved/turbokv.pc)
get_filename_component(pc_directory ${pc} DIRECTORY)
set(ENV{PKG_CONFIG_PATH} ${pc_directory})
execute_process(COMMAND pkg-config --cflags --libs turbokv OUTPUT_VARIABLE flags
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")
execute_process(COMMAND pkg-config --modversion turbokv OUTPUT_VARIABLE version
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT version STREQUAL VERSION)
    message(FATAL_ERROR "turbokv.pc says version ${version}, expected ${VERSION}")
endif()
get_filename_component(libraries ${pc_directory} DIRECTORY)
execute_process(COMMAND ${CC} ${CONSUMER}/main.c ${flags} -Wl,-rpath,${libraries} -o ${WORK}/by_pkg_config
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/by_pkg_config ${VERSION} COMMAND_ERROR_IS_FATAL ANY)

execute_process(COMMAND ${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/moved
                        -DCMAKE_C_COMPILER=${CC} -DVERSION=${VERSION}
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
foreach(kind static shared)
    execute_process(COMMAND ${WORK}/build/consumer_${kind} ${VERSION} COMMAND_ERROR_IS_FATAL ANY)
endforeach()

execute_process(COMMAND ${CMAKE_COMMAND} -DMANIFEST=${manifest} -P ${UNINSTALL}
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(GLOB_RECURSE left LIST_DIRECTORIES false ${WORK}/moved/*)
file(GLOB_RECURSE folders LIST_DIRECTORIES true RELATIVE ${WORK}/moved ${WORK}/moved/*)
list(FILTER folders INCLUDE REGEX /turbokv)
list(LENGTH installed count)
if(left OR folders OR count LESS 6 OR EXISTS ${manifest})
    message(FATAL_ERROR "of ${count} files installed uninstall left: ${left} ${folders}")
endif()
execute_process(COMMAND ${CMAKE_COMMAND} -DMANIFEST=${manifest} -P ${UNINSTALL}
                RESULT_VARIABLE failed ERROR_VARIABLE message)
string(REGEX REPLACE "[ \n]+" " " message "${message}") # lines are broken anywhere
if(NOT failed OR NOT message MATCHES "nothing was installed")
    message(FATAL_ERROR "uninstalling twice: status ${failed}, ${message}")
endif()
