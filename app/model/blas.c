#include "model/blas.h"

#include "common/try.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __APPLE__
#include <Accelerate/Accelerate.h>
#else
#include <cblas.h>
#endif

/* OpenBLAS takes 128 MiB of addresses for each thread that multiplies. */
#define BUFFER_BYTES ((size_t)128 << 20)
/* What else the process may ask for before it comes to that. */
#define SPARE_BYTES ((size_t)64 << 20)

typedef void (*sgemm_function)(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE transpose_a,
                               enum CBLAS_TRANSPOSE transpose_b, int m, int n, int k, float alpha,
                               const float *a, int lda, const float *b, int ldb, float beta,
                               float *c, int ldc);

struct tkv_blas {
    int n_threads;
    sgemm_function sgemm;
};

#ifdef TKV_OPENBLAS_PATH

/* A symbol of the library as a pointer to a function. */
static tkv_status find_symbol(void *library, const char *name, void *function, size_t size,
                              tkv_error *error)
{
    void *symbol = dlsym(library, name);
    if (!symbol) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "OpenBLAS has no %s", name);
    }
    memcpy(function, &symbol, size);
    return TKV_OK;
}

/* The variable by which OpenBLAS is told its kernels; it reads it as it is loaded. */
#define KERNELS_VARIABLE "OPENBLAS_CORETYPE"
/* What it falls back to on a processor whose name it does not know, since that is newer: SSE3. */
#define FALLBACK "Prescott"

/* The kernels that OpenBLAS should have taken; NULL if it did well, or was told. */
static const char *better_kernels(void *library)
{
#ifdef __x86_64__
    char *(*name)(void) = NULL;
    if (getenv(KERNELS_VARIABLE) ||
        find_symbol(library, "openblas_get_corename", &name, sizeof name, NULL) != TKV_OK ||
        strcmp(name(), FALLBACK) != 0) {
        return NULL;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        return "SkylakeX";
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "Haswell" : NULL;
#else
    (void)library;
    return NULL;
#endif
}

static void *open_library(int flags)
{
    void *library = dlopen("libopenblas.so.0", flags);
    return library ? library : dlopen(TKV_OPENBLAS_PATH, flags);
}

/* It stays loaded: its threads and buffers do not end with a session. */
static void *open_with_best_kernels(void)
{
    const int flags = RTLD_NOW | RTLD_LOCAL;
    void *library = open_library(flags);
    const char *kernels = library ? better_kernels(library) : NULL;
    if (kernels) {
        dlclose(library);
        setenv(KERNELS_VARIABLE, kernels, 1);
        library = open_library(flags);
        unsetenv(KERNELS_VARIABLE);
    }
    return library ? open_library(flags | RTLD_NODELETE) : NULL;
}

static tkv_status load(tkv_blas *blas, tkv_error *error)
{
    void *library = open_with_best_kernels();
    if (!library) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "cannot load OpenBLAS: %s", dlerror());
    }
    void (*set_num_threads)(int) = NULL;
    TKV_TRY(find_symbol(library, "cblas_sgemm", &blas->sgemm, sizeof blas->sgemm, error));
    TKV_TRY(find_symbol(library, "openblas_set_num_threads", &set_num_threads,
                        sizeof set_num_threads, error));
    /* The threads are ours; OpenBLAS would start its own in each of them. */
    set_num_threads(1);
    return TKV_OK;
}

/* As many threads as there is room for the buffers of. */
static int threads_with_room(int n_threads)
{
    for (int n = n_threads; n > 0; n--) {
        const size_t bytes = (size_t)n * BUFFER_BYTES + SPARE_BYTES;
        void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room != MAP_FAILED) {
            munmap(room, bytes);
            return n;
        }
    }
    return 0;
}

#else

static tkv_status load(tkv_blas *blas, tkv_error *error)
{
    (void)error;
    blas->sgemm = cblas_sgemm;
    return TKV_OK;
}

static int threads_with_room(int n_threads)
{
    return n_threads;
}

#endif

tkv_status tkv_blas_open(int n_threads, tkv_blas **blas, tkv_error *error)
{
    *blas = NULL;
    if (threads_with_room(n_threads) == 0) {
        return TKV_OK;
    }
    tkv_blas *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the BLAS");
    }
    const tkv_status status = load(created, error);
    /* Again, since the library has taken some of the room. */
    created->n_threads = status == TKV_OK ? threads_with_room(n_threads) : 0;
    if (created->n_threads == 0) {
        free(created);
        return status;
    }
    *blas = created;
    return TKV_OK;
}

void tkv_blas_free(tkv_blas *blas)
{
    free(blas);
}

int tkv_blas_threads(const tkv_blas *blas)
{
    return blas->n_threads;
}

void tkv_blas_multiply(const tkv_blas *blas, int n_rows, int n_out, int n_in, const float *x,
                       const float *w, float *y, int y_stride)
{
    blas->sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n_rows, n_out, n_in, 1.0f, x, n_in, w,
                n_in, 0.0f, y, y_stride);
}
