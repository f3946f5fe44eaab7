# Installs into a staging tree, then builds and runs a program against it with pkg-config and with
# find_package, static and shared.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
set(ENV{DESTDIR} "")
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/moved
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE pc ${WORK}/moved/turbokv.pc)
get_filename_component(pc_directory ${pc} DIRECTORY)
set(ENV{PKG_CONFIG_PATH} ${pc_directory})
execute_process(COMMAND pkg-config --cflags --libs turbokv OUTPUT_VARIABLE flags
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")
get_filename_component(libraries ${pc_directory} DIRECTORY)
execute_process(COMMAND ${CC} ${CONSUMER}/main.c ${flags} -Wl,-rpath,${libraries} -o ${WORK}/by_pkg_config
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/by_pkg_config COMMAND_ERROR_IS_FATAL ANY)

execute_process(COMMAND ${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/moved
                        -DCMAKE_C_COMPILER=${CC}
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
foreach(kind static shared)
    execute_process(COMMAND ${WORK}/build/consumer_${kind} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
