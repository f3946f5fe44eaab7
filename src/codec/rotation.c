#include "codec/codec.h"

#include <math.h>

/* SplitMix64, low half of each output first. The seed of round 0 is 1; that of round 1, 82689, was
 * searched for: with it a vector with one non-zero coordinate comes out no farther from Gaussian,
 * as the codebooks see it, than a random one (head_dim 64 to 512). */
const uint32_t tkv_rotation_signs[2][TKV_SIGN_WORDS] = {
    {0x89025cc1u, 0x910a2decu, 0x658eec67u, 0xbeeb8da1u, 0xfb32555eu, 0xf893a2eeu, 0xee42c90bu,
     0x71c18690u, 0xd101b5b9u, 0x71bb54d8u, 0x90150280u, 0xc34d0bffu, 0xd7363ca5u, 0xe099ec6cu,
     0x12278575u, 0x85e7bb0fu, 0x357e3da8u, 0x491718deu, 0x74616796u, 0xcb435c8eu, 0x01564f61u,
     0x6775dc77u, 0x14cf8bfeu, 0x9afcd44du, 0x4baa5dc0u, 0x7476cf8au, 0x90d7a28au, 0x87b341d6u,
     0x6f4c57a8u, 0x6f9b6daeu, 0xa5794a3bu, 0x2ac2ce17u},
    {0xe51cefa8u, 0x77831a29u, 0x6f275edeu, 0x9de20263u, 0x4e808396u, 0x5484e3d7u, 0xc2782853u,
     0x7ad7a200u, 0x4bcc5f9au, 0x1275b9dau, 0x8fd69cbau, 0x35414fe5u, 0xda0fd1cfu, 0x4ffc021du,
     0xac9cc316u, 0x45e920deu, 0xcab44c69u, 0xad015202u, 0x54e1500du, 0x1a226d7bu, 0x2cb8d38bu,
     0xd4b54cf3u, 0xa781a54cu, 0x6be15f65u, 0xf24bb8c1u, 0x11425f3bu, 0xc2ff906eu, 0xbba74eabu,
     0x3984be18u, 0x1c54624cu, 0x19cd1ab7u, 0x5718af29u},
};

/* SplitMix64 with seed 3. */
const uint32_t tkv_sketch_signs[TKV_SIGN_WORDS] = {
    0xdb018fedu, 0x1d0b14e4u, 0x7b81a989u, 0xb3466f8au, 0xd050dd01u, 0x9cebe8a6u, 0x66abc9cfu,
    0x12a764fbu, 0xcab79996u, 0x37688dadu, 0x091f4f07u, 0xa2df7737u, 0xcbbefdb8u, 0x2298eb42u,
    0xdc859216u, 0xe3830d21u, 0xc849ee7au, 0x7db644e0u, 0xa2036b72u, 0xe376a9b1u, 0xd7d47accu,
    0xb2ccb612u, 0x305c487fu, 0xb63e2d8fu, 0x9d0fdcf4u, 0x7aec0f99u, 0x93349fc3u, 0x56042295u,
    0x65f01c5cu, 0xb7a67c4eu, 0x618293eau, 0xcc84126au};

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
