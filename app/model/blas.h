/* The BLAS that multiplies matrices: Accelerate, or another, which is loaded when it is needed if
 * it is OpenBLAS. That one starts threads and takes buffers as it is loaded and used, and neither
 * ends nor fails where it gets none: so it is not loaded by commands that do without, and not used
 * where there is no room for its buffers. */
#ifndef TKV_MODEL_BLAS_H
#define TKV_MODEL_BLAS_H

#include "turbokv.h"

typedef struct tkv_blas tkv_blas;

/* A BLAS for up to n_threads threads at a time: fewer if the process may not have the memory that
 * it takes for each of them; *blas is NULL if not even for one. Fails if it cannot be loaded. The
 * caller frees it with tkv_blas_free. */
tkv_status tkv_blas_open(int n_threads, tkv_blas **blas, tkv_error *error);
void tkv_blas_free(tkv_blas *blas);

/* Threads that may multiply at a time. */
int tkv_blas_threads(const tkv_blas *blas);

/* Row i of y, which begins at y + i * y_stride, := W times row i of x, on the calling thread.
 * x [n_rows][n_in], w [n_out][n_in]. */
void tkv_blas_multiply(const tkv_blas *blas, int n_rows, int n_out, int n_in, const float *x,
                       const float *w, float *y, int y_stride);

#endif
