#include "format/codec.h"

#include <math.h>

const uint32_t tkv_rotation_signs[2][TKV_SIGN_WORDS] = {TKV_ROTATION_SIGNS_0, TKV_ROTATION_SIGNS_1};

const uint32_t tkv_sketch_signs[TKV_SIGN_WORDS] = TKV_SKETCH_SIGNS;

int tkv_rotation_block(int head_dim)
{
    int block = 1;
    while (2 * block <= head_dim) {
        block *= 2;
    }
    return block;
}

/* Orthonormal fast Walsh-Hadamard transform of `block` values; it is its own inverse. */
static void transform(int block, float *x)
{
    for (int half = 1; half < block; half *= 2) {
        for (int base = 0; base < block; base += 2 * half) {
            for (int j = base; j < base + half; j++) {
                const float a = x[j];
                const float b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
    const float norm = (float)(1.0 / sqrt((double)block));
    for (int j = 0; j < block; j++) {
        x[j] *= norm;
    }
}

/* Negates x[j] for the coordinates from `first` to `end` - 1 whose sign bit is set. */
static void flip_signs(int first, int end, const uint32_t *signs, float *x)
{
    for (int j = first; j < end; j++) {
        if (signs[j / 32] >> (j % 32) & 1u) {
            x[j] = -x[j];
        }
    }
}

/* One round: sign flips and the transform of the first `block` values; if that is not all, the same
 * with the last `block` values, which overlap the first. Every transform flips its own values only:
 * flipped twice with nothing in between, the others would not be flipped at all. */
static void mix(int head_dim, int block, const uint32_t *signs, float *x)
{
    const int last = head_dim - block;
    flip_signs(0, block, signs, x);
    transform(block, x);
    if (last > 0) {
        flip_signs(last, head_dim, signs, x);
        transform(block, x + last);
    }
}

static void unmix(int head_dim, int block, const uint32_t *signs, float *x)
{
    const int last = head_dim - block;
    if (last > 0) {
        transform(block, x + last);
        flip_signs(last, head_dim, signs, x);
    }
    transform(block, x);
    flip_signs(0, block, signs, x);
}

void tkv_rotate_row(int head_dim, float *x)
{
    const int block = tkv_rotation_block(head_dim);
    for (int round = 0; round < 2; round++) {
        mix(head_dim, block, tkv_rotation_signs[round], x);
    }
}

void tkv_unrotate_row(int head_dim, float *x)
{
    const int block = tkv_rotation_block(head_dim);
    for (int round = 1; round >= 0; round--) {
        unmix(head_dim, block, tkv_rotation_signs[round], x);
    }
}

void tkv_sketch_row(int head_dim, float *y)
{
    mix(head_dim, tkv_rotation_block(head_dim), tkv_sketch_signs, y);
}

void tkv_unsketch_row(int head_dim, float *y)
{
    unmix(head_dim, tkv_rotation_block(head_dim), tkv_sketch_signs, y);
}
