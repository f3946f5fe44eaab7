# `make install`: libraries, header, command, shipped model, pkg-config file and CMake package.
include(CMakePackageConfigHelpers)

install(TARGETS turbokv_static turbokv_shared EXPORT turbokvTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/turbokv.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TKV_COMMAND)
    install(TARGETS turbokv RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    install(FILES models/tiny-q8_0.gguf DESTINATION ${CMAKE_INSTALL_DATADIR}/turbokv/models)
    install(FILES texts/alice.txt texts/README.md DESTINATION ${CMAKE_INSTALL_DATADIR}/turbokv/texts)
endif()

set(TKV_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/turbokv)
install(EXPORT turbokvTargets NAMESPACE turbokv:: DESTINATION ${TKV_PACKAGE_DIR})
configure_package_config_file(cmake/turbokvConfig.cmake.in turbokvConfig.cmake
                              INSTALL_DESTINATION ${TKV_PACKAGE_DIR})
write_basic_package_version_file(turbokvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/turbokvConfig.cmake
              ${PROJECT_BINARY_DIR}/turbokvConfigVersion.cmake
        DESTINATION ${TKV_PACKAGE_DIR})

# The file finds its prefix from its own place, so that an installed tree can be moved.
file(RELATIVE_PATH TKV_PREFIX_FROM_PC /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
set(TKV_PRIVATE_LIBRARIES "-lm ${CMAKE_THREAD_LIBS_INIT}")
if(TKV_HAVE_CUDA)
    string(APPEND TKV_PRIVATE_LIBRARIES " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt")
endif()
configure_file(cmake/turbokv.pc.in turbokv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/turbokv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
