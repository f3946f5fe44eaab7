# The public header compiles alone, as C11 and as C++, without a warning.
set(warnings -Wall -Wextra -Wpedantic -Werror -fsyntax-only)
file(WRITE ${WORK}/header.c "#include \"turbokv.h\"\ntkv_context_params params;\n")
execute_process(COMMAND ${CC} -std=c11 ${warnings} -Wstrict-prototypes -I${INCLUDE} ${WORK}/header.c
                COMMAND_ERROR_IS_FATAL ANY)
find_program(CXX NAMES c++ g++ clang++)
if(CXX)
    file(WRITE ${WORK}/header.cc "#include \"turbokv.h\"\ntkv_context_params params;\n")
    execute_process(COMMAND ${CXX} -std=c++11 ${warnings} -I${INCLUDE} ${WORK}/header.cc
                    COMMAND_ERROR_IS_FATAL ANY)
endif()
