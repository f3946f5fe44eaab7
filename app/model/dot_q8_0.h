/* Products of Q8_0 weights with one vector, for decoding: weights are turned to floats in
 * registers, so that reading them is all that it costs, and activations are not rounded. */
#ifndef TKV_MODEL_DOT_Q8_0_H
#define TKV_MODEL_DOT_Q8_0_H

#include <stddef.h>
#include <stdint.h>

enum { TKV_DOT_ROWS = 4 };

/* y[r] = <row r, x> for TKV_DOT_ROWS rows of n weights, row_bytes apart, and x [n]; n is a multiple
 * of 32. */
typedef void (*tkv_dot_q8_0)(size_t n, const uint8_t *rows, size_t row_bytes, const float *x,
                             float *y);

/* The fastest that this machine can run. */
tkv_dot_q8_0 tkv_dot_q8_0_get(void);

#endif
