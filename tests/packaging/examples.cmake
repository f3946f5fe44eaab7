# Installs into a staging tree, then builds and runs the examples against it, as their head says.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
set(ENV{DESTDIR} "")
# A component has a manifest of its own: that of the user's last `make install` stays.
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --component Unspecified
                        --prefix ${WORK}/installed
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE ${BUILD}/install_manifest_Unspecified.txt)
execute_process(COMMAND ${CMAKE_COMMAND} -S ${EXAMPLES} -B ${WORK}/build
                        -DCMAKE_PREFIX_PATH=${WORK}/installed -DCMAKE_C_COMPILER=${CC}
                        -DCMAKE_BUILD_TYPE=Release
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_CTEST_COMMAND} --test-dir ${WORK}/build --output-on-failure
                COMMAND_ERROR_IS_FATAL ANY)
