# The CUDA back end. Sets TKV_HAVE_CUDA, and TKV_HAVE_HOPPER if the kernels for that card alone are built
# too. It takes minutes to compile, so AUTO builds it only for a GPU that is here, and for that one alone.
set(TKV_CUDA AUTO CACHE STRING "build the CUDA back end: ON, OFF or AUTO (for the GPU of this machine)")
set_property(CACHE TKV_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TKV_HAVE_CUDA OFF)
set(TKV_HAVE_HOPPER OFF)
# Ampere and newer. A newer card than the last one listed compiles that one's PTX.
set(TKV_CUDA_ARCHITECTURES 80-real 90)

# Sets `result` to the architectures of this machine's GPUs, "80;90", empty if there is none.
function(tkv_find_gpus result)
    try_run(code is_compiled ${PROJECT_BINARY_DIR}/gpus
            ${PROJECT_SOURCE_DIR}/cmake/cuda_architectures.c
            LINK_LIBRARIES ${CMAKE_DL_LIBS} RUN_OUTPUT_VARIABLE found)
    if(NOT is_compiled OR NOT code EQUAL 0)
        set(found)
    endif()
    # Asked anew every time: the driver, or the card, may come later.
    unset(code CACHE)
    unset(is_compiled CACHE)
    set(${result} ${found} PARENT_SCOPE)
endfunction()

# Sets `result` to those of `gpus` that the kernels are for and the compiler knows.
function(tkv_find_targets gpus result)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
    set(targets)
    foreach(gpu IN LISTS gpus)
        if(gpu GREATER_EQUAL 80 AND known MATCHES "compute_${gpu}\n")
            list(APPEND targets ${gpu}-real)
        endif()
    endforeach()
    set(${result} ${targets} PARENT_SCOPE)
endfunction()

# What AUTO does: sets TKV_HAVE_CUDA and the architectures, or says in one line why not.
macro(tkv_look_for_cuda)
    set(TKV_CUDA_REASON)
    tkv_find_gpus(TKV_GPUS)
    if(TKV_GPUS)
        include(CheckLanguage)
        check_language(CUDA)
        # That of the compiler, not that of the nvcc on the PATH.
        get_filename_component(TKV_CUDA_ROOT "${CMAKE_CUDA_COMPILER}/../.." ABSOLUTE)
        if(NOT CUDAToolkit_ROOT AND EXISTS "${TKV_CUDA_ROOT}/bin/nvcc")
            set(CUDAToolkit_ROOT "${TKV_CUDA_ROOT}")
        endif()
        find_package(CUDAToolkit QUIET)
    endif()
    if(NOT TKV_GPUS)
        set(TKV_CUDA_REASON "no NVIDIA GPU with its driver is here")
    elseif(NOT CMAKE_CUDA_COMPILER)
        set(TKV_CUDA_REASON "a GPU is here, but no CUDA compiler, nvcc, on the PATH")
    elseif(NOT CUDAToolkit_FOUND OR CUDAToolkit_VERSION VERSION_LESS 12.0)
        set(TKV_CUDA_REASON "CUDA ${CUDAToolkit_VERSION} is older than 12.0")
    else()
        tkv_find_targets("${TKV_GPUS}" TKV_GPU_TARGETS)
        if(NOT TKV_GPU_TARGETS)
            set(TKV_CUDA_REASON "the GPU is an sm_${TKV_GPUS}: expected sm_80 or a newer one that "
                                "CUDA ${CUDAToolkit_VERSION} knows")
        endif()
    endif()
    if(TKV_CUDA_REASON)
        message(STATUS "CUDA back end: not built, " ${TKV_CUDA_REASON}
                       " (-DTKV_CUDA=ON builds it for sm_80, sm_90 and newer)")
    else()
        set(TKV_HAVE_CUDA ON)
        set(TKV_CUDA_ARCHITECTURES ${TKV_GPU_TARGETS})
    endif()
endmacro()

if(TKV_CUDA STREQUAL AUTO AND (TKV_SANITIZE OR CMAKE_CROSSCOMPILING))
    message(STATUS "CUDA back end: not built with sanitizers or for another processor "
                   "(-DTKV_CUDA=ON forces it)")
elseif(TKV_CUDA STREQUAL AUTO AND NOT APPLE)
    tkv_look_for_cuda()
elseif(TKV_CUDA AND NOT TKV_CUDA STREQUAL AUTO)
    set(TKV_HAVE_CUDA ON)
endif()

if(TKV_HAVE_CUDA)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES ${TKV_CUDA_ARCHITECTURES})
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
