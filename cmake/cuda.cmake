# The CUDA back end: built where there is a CUDA compiler, or said why not. Sets TKV_HAVE_CUDA, and
# TKV_HAVE_HOPPER if the kernels for that card alone are built too.
set(TKV_CUDA AUTO CACHE STRING "build the CUDA back end: ON, OFF or AUTO (if nvcc is found)")
set_property(CACHE TKV_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TKV_HAVE_CUDA OFF)
set(TKV_HAVE_HOPPER OFF)

if(TKV_CUDA STREQUAL AUTO AND (TKV_SANITIZE OR CMAKE_CROSSCOMPILING))
    message(STATUS "CUDA back end: not built with sanitizers or for another processor "
                   "(-DTKV_CUDA=ON forces it)")
elseif(TKV_CUDA STREQUAL AUTO)
    include(CheckLanguage)
    check_language(CUDA)
    # That of the compiler, not that of the nvcc on the PATH.
    get_filename_component(TKV_CUDA_ROOT "${CMAKE_CUDA_COMPILER}/../.." ABSOLUTE)
    if(NOT CUDAToolkit_ROOT AND EXISTS "${TKV_CUDA_ROOT}/bin/nvcc")
        set(CUDAToolkit_ROOT "${TKV_CUDA_ROOT}")
    endif()
    find_package(CUDAToolkit QUIET)
    if(NOT CMAKE_CUDA_COMPILER)
        message(STATUS "CUDA back end: not built, no CUDA compiler (nvcc) found")
    elseif(NOT CUDAToolkit_FOUND OR CUDAToolkit_VERSION VERSION_LESS 12.0)
        message(STATUS "CUDA back end: not built, CUDA ${CUDAToolkit_VERSION} is older than 12.0")
    else()
        set(TKV_HAVE_CUDA ON)
    endif()
elseif(TKV_CUDA)
    set(TKV_HAVE_CUDA ON)
endif()

if(TKV_HAVE_CUDA)
    # Ampere and newer. A newer card than the last one listed compiles that one's PTX.
    if(NOT CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit 12.0 REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    message(STATUS "CUDA back end: CUDA ${CUDAToolkit_VERSION}, ${CMAKE_CUDA_ARCHITECTURES}")
    # Older assemblers know no wgmma of signed and unsigned bytes.
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
        message(STATUS "CUDA back end: prefill goes through decode's kernels, "
                       "Hopper's own need CUDA 12.4")
    elseif(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)(90|all|native)")
        set(TKV_HAVE_HOPPER ON)
    endif()
endif()
