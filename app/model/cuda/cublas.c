#include "model/cuda/cublas.h"

#include "common/try.h"

#include <cublas_v2.h>
#include <dlfcn.h>
#include <stdlib.h>

#define TKV_STRING(x) #x
#define TKV_LIBRARY_NAME(major) "libcublas.so." TKV_STRING(major)

struct tkv_cublas {
    void *library;
    cublasHandle_t handle;
    cublasStatus_t (*create)(cublasHandle_t *);
    cublasStatus_t (*destroy)(cublasHandle_t);
    cublasStatus_t (*set_stream)(cublasHandle_t, cudaStream_t);
    cublasStatus_t (*set_workspace)(cublasHandle_t, void *, size_t);
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                           const void *, const void *, cudaDataType, int, const void *,
                           cudaDataType, int, const void *, void *, cudaDataType, int,
                           cublasComputeType_t, cublasGemmAlgo_t);
    const char *(*status_name)(cublasStatus_t);
};

static tkv_status check(const tkv_cublas *cublas, cublasStatus_t result, const char *what,
                        tkv_error *error)
{
    if (result == CUBLAS_STATUS_SUCCESS) {
        return TKV_OK;
    }
    return tkv_fail(error, TKV_ERR_DEVICE, "cuBLAS, %s: %s", what, cublas->status_name(result));
}

/* ISO C has no conversion from an object's to a function's address; POSIX has the representation.
 */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    *(void **)function = symbol;
    return symbol != NULL;
}

static tkv_status load(tkv_cublas *cublas, tkv_error *error)
{
    static const char name[] = TKV_LIBRARY_NAME(TKV_CUBLAS_MAJOR);
    cublas->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!cublas->library) {
        /* Where the toolkit was at build time, as an rpath would have it. */
        cublas->library = dlopen(TKV_CUBLAS_DIRECTORY "/libcublas.so", RTLD_NOW | RTLD_LOCAL);
    }
    if (!cublas->library) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "models on CUDA devices need cuBLAS (%s): %.200s", name, dlerror());
    }
    if (!find(cublas->library, "cublasCreate_v2", &cublas->create) ||
        !find(cublas->library, "cublasDestroy_v2", &cublas->destroy) ||
        !find(cublas->library, "cublasSetStream_v2", &cublas->set_stream) ||
        !find(cublas->library, "cublasSetWorkspace_v2", &cublas->set_workspace) ||
        !find(cublas->library, "cublasGemmEx", &cublas->gemm) ||
        !find(cublas->library, "cublasGetStatusName", &cublas->status_name)) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "%s lacks a function: %.200s", name, dlerror());
    }
    return TKV_OK;
}

void tkv_cublas_close(tkv_cublas *cublas)
{
    if (!cublas) {
        return;
    }
    if (cublas->handle) {
        cublas->destroy(cublas->handle);
    }
    if (cublas->library) {
        dlclose(cublas->library);
    }
    free(cublas);
}

static tkv_status start(tkv_cublas *cublas, cudaStream_t stream, void *workspace, size_t bytes,
                        tkv_error *error)
{
    TKV_TRY(load(cublas, error));
    TKV_TRY(check(cublas, cublas->create(&cublas->handle), "starting", error));
    TKV_TRY(check(cublas, cublas->set_stream(cublas->handle, stream), "setting the stream", error));
    return check(cublas, cublas->set_workspace(cublas->handle, workspace, bytes),
                 "setting the workspace", error);
}

tkv_status tkv_cublas_open(cudaStream_t stream, void *workspace, size_t bytes, tkv_cublas **cublas,
                           tkv_error *error)
{
    tkv_cublas *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for cuBLAS's handle");
    }
    const tkv_status status = start(created, stream, workspace, bytes, error);
    if (status != TKV_OK) {
        tkv_cublas_close(created);
        return status;
    }
    *cublas = created;
    return TKV_OK;
}

tkv_status tkv_cublas_multiply(tkv_cublas *cublas, int n_rows, int n_in, int n_out,
                               const uint16_t *x, const uint16_t *w, float *y, tkv_error *error)
{
    const float one = 1.0f;
    const float zero = 0.0f;
    /* cuBLAS counts columns first: what is y here is its transpose there. */
    return check(cublas,
                 cublas->gemm(cublas->handle, CUBLAS_OP_T, CUBLAS_OP_N, n_out, n_rows, n_in, &one,
                              w, CUDA_R_16F, n_in, x, CUDA_R_16F, n_in, &zero, y, CUDA_R_32F, n_out,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                 "multiplying", error);
}
