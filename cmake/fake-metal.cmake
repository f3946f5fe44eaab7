# Initial cache (cmake -C) of the build that tests the Metal back end on Linux. Only clang knows
# Apple's Objective-C ABI, and Metal's sources need this version or a newer one.
find_program(TKV_CLANG NAMES clang-19 clang REQUIRED)
set(CMAKE_C_COMPILER ${TKV_CLANG} CACHE FILEPATH "")
set(CMAKE_OBJC_COMPILER ${TKV_CLANG} CACHE FILEPATH "")
set(TKV_FAKE_METAL ON CACHE BOOL "")
set(TKV_COMMAND OFF CACHE BOOL "")
set(TKV_CUDA OFF CACHE STRING "")
