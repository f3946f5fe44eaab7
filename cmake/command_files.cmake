# Man pages, and completions for bash, zsh and fish: made from the command's option tables after it
# is built, and installed. Needs Python 3; without it they are left out.
find_program(TKV_PYTHON3 python3 PATHS /usr/bin NO_DEFAULT_PATH)
find_program(TKV_PYTHON3 python3)
if(NOT TKV_PYTHON3)
    message(STATUS "man pages and completions: not made, no python3")
    return()
endif()

set(TKV_COMMAND_FILES ${PROJECT_BINARY_DIR}/command_files)
set(TKV_OPTION_TABLES ${PROJECT_BINARY_DIR}/option_tables.json)
add_custom_command(
    OUTPUT ${TKV_OPTION_TABLES}
    COMMAND turbokv help --dump > ${TKV_OPTION_TABLES}
    COMMAND ${TKV_PYTHON3} ${PROJECT_SOURCE_DIR}/tools/make_command_files.py ${TKV_OPTION_TABLES}
            ${PROJECT_SOURCE_DIR}/tools/turbokv.1.in ${TKV_COMMAND_FILES}
    DEPENDS turbokv ${PROJECT_SOURCE_DIR}/tools/make_command_files.py
            ${PROJECT_SOURCE_DIR}/tools/turbokv.1.in
    COMMENT "Making man pages and completions"
    VERBATIM)
add_custom_target(command_files ALL DEPENDS ${TKV_OPTION_TABLES})

install(DIRECTORY ${TKV_COMMAND_FILES}/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(DIRECTORY ${TKV_COMMAND_FILES}/bash/
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(DIRECTORY ${TKV_COMMAND_FILES}/zsh/
        DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(DIRECTORY ${TKV_COMMAND_FILES}/fish/
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
