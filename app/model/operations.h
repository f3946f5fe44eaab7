/* Small arithmetic of the forward pass. Arrays are row-major floats. */
#ifndef TKV_MODEL_OPERATIONS_H
#define TKV_MODEL_OPERATIONS_H

#include <stddef.h>

/* y := x / sqrt(mean(x^2) + epsilon) * weight, row by row; x and y [n_rows][width], may be the same
 * array; weight [width]. */
void tkv_rms_norm(size_t n_rows, size_t width, const float *x, const float *weight, float epsilon,
                  float *y);

/* gate := silu(gate) * up, silu(z) = z / (1 + exp(-z)). */
void tkv_swiglu(size_t n, float *gate, const float *up);

/* gate := gelu(gate) * up, with the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415):
 * gelu(z) = z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3))). */
void tkv_geglu(size_t n, float *gate, const float *up);

/* x := x * factor */
void tkv_scale(size_t n, float *x, float factor);

/* x := x + y */
void tkv_add(size_t n, float *x, const float *y);

/* Adds bias [width] to every row of x [n_rows][width]. */
void tkv_add_bias(size_t n_rows, size_t width, float *x, const float *bias);

#endif
