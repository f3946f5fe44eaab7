/* Which of its kernels the BLAS took. */
#ifndef TKV_MODEL_BLAS_H
#define TKV_MODEL_BLAS_H

/* Name of the variable by which OpenBLAS is told its kernels; it reads it when it is loaded. */
#define TKV_BLAS_VARIABLE "OPENBLAS_CORETYPE"

/* The kernels that OpenBLAS should have taken on this processor: it knows processors by name, and
 * takes those of SSE3 on one that is newer than itself. NULL if it did well, or was told. */
const char *tkv_blas_better_kernels(void);

#endif
