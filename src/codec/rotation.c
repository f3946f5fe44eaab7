#include "codec/codec.h"

#include <math.h>

/* SplitMix64 with seeds 1 and 2, low half of each output first. */
const uint32_t tkv_rotation_signs[2][TKV_SIGN_WORDS] = {
    {0x89025cc1u, 0x910a2decu, 0x658eec67u, 0xbeeb8da1u, 0xfb32555eu, 0xf893a2eeu, 0xee42c90bu,
     0x71c18690u, 0xd101b5b9u, 0x71bb54d8u, 0x90150280u, 0xc34d0bffu, 0xd7363ca5u, 0xe099ec6cu,
     0x12278575u, 0x85e7bb0fu, 0x357e3da8u, 0x491718deu, 0x74616796u, 0xcb435c8eu, 0x01564f61u,
     0x6775dc77u, 0x14cf8bfeu, 0x9afcd44du, 0x4baa5dc0u, 0x7476cf8au, 0x90d7a28au, 0x87b341d6u,
     0x6f4c57a8u, 0x6f9b6daeu, 0xa5794a3bu, 0x2ac2ce17u},
    {0x1c9756ceu, 0x975835deu, 0x0bfc1e42u, 0xbfc84610u, 0xdd7e532fu, 0x987bbcbfu, 0xffe7f664u,
     0xc3f2827au, 0x3f17fb29u, 0x4fc446b5u, 0x7bc7b2b3u, 0x58bc3cb3u, 0xae4a6586u, 0xb9f24f7bu,
     0xf603e583u, 0xbd34d3aeu, 0x5887ccffu, 0x401478bcu, 0xef6ff86cu, 0xba450a33u, 0xe8b0e635u,
     0x56e84498u, 0x31bb9977u, 0x701560adu, 0x61b10361u, 0x8e4858b5u, 0xb8cbf1aeu, 0x5fb1940eu,
     0x30a45df3u, 0xee979f27u, 0x1eda3219u, 0x34116e68u},
};

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

static void flip_signs(int head_dim, const uint32_t *signs, float *x)
{
    for (int j = 0; j < head_dim; j++) {
        if (signs[j / 32] >> (j % 32) & 1u) {
            x[j] = -x[j];
        }
    }
}

void tkv_rotate_row(int head_dim, float *x)
{
    const int block = tkv_rotation_block(head_dim);
    for (int round = 0; round < 2; round++) {
        flip_signs(head_dim, tkv_rotation_signs[round], x);
        transform(block, x);
        if (block < head_dim) {
            transform(block, x + head_dim - block);
        }
    }
}

void tkv_unrotate_row(int head_dim, float *x)
{
    const int block = tkv_rotation_block(head_dim);
    for (int round = 1; round >= 0; round--) {
        if (block < head_dim) {
            transform(block, x + head_dim - block);
        }
        transform(block, x);
        flip_signs(head_dim, tkv_rotation_signs[round], x);
    }
}
