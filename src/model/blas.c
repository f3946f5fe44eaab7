#include "model/blas.h"

#include <stddef.h>

#if defined(TKV_HAVE_OPENBLAS) && defined(__x86_64__)
#include <cblas.h>
#include <stdlib.h>
#include <string.h>

/* What OpenBLAS falls back to in 64-bit processes. */
#define FALLBACK "Prescott"

const char *tkv_blas_better_kernels(void)
{
    if (getenv(TKV_BLAS_VARIABLE) || strcmp(openblas_get_corename(), FALLBACK) != 0) {
        return NULL;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd")) {
        return "SkylakeX";
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "Haswell" : NULL;
}
#else
const char *tkv_blas_better_kernels(void)
{
    return NULL;
}
#endif
