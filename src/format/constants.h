/* The numbers of docs/FORMAT.md, once for all back ends: initialisers for tables in C, CUDA C++ and
 * Metal, each of which has its own word for constant memory. */
#ifndef TKV_FORMAT_CONSTANTS_H
#define TKV_FORMAT_CONSTANTS_H

/* Converged Lloyd-Max quantisers of N(0,1): thresholds are the midpoints of the centroids, levels
 * the centroids times 127 / outermost centroid, rounded. tests/format derives them again.
 * TKV_CODEBOOKS: X(level_bits) for each of them. */
#define TKV_CODEBOOKS(X) X(2) X(3) X(4)

#define TKV_CODEBOOK_LEVELS_2                                                                      \
    {                                                                                              \
        -127, -38, 38, 127                                                                         \
    }
#define TKV_CODEBOOK_THRESHOLDS_2                                                                  \
    {                                                                                              \
        -0.981598822f, 0.0f, 0.981598822f                                                          \
    }
#define TKV_CODEBOOK_LEVELS_3                                                                      \
    {                                                                                              \
        -127, -79, -45, -14, 14, 45, 79, 127                                                       \
    }
#define TKV_CODEBOOK_THRESHOLDS_3                                                                  \
    {                                                                                              \
        -1.74792749f, -1.04995728f, -0.50054973f, 0.0f, 0.50054973f, 1.04995728f, 1.74792749f      \
    }
#define TKV_CODEBOOK_LEVELS_4                                                                      \
    {                                                                                              \
        -127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127                     \
    }
#define TKV_CODEBOOK_THRESHOLDS_4                                                                  \
    {                                                                                              \
        -2.4008034f, -1.84353181f, -1.43713879f, -1.09928583f, -0.799549788f, -0.522403709f,       \
            -0.258221665f, 0.0f, 0.258221665f, 0.522403709f, 0.799549788f, 1.09928583f,            \
            1.43713879f, 1.84353181f, 2.4008034f                                                   \
    }

/* Trellis levels: trained on N(0,1) by Lloyd's iteration around the search, times 127 / outermost
 * level, rounded. The units are levels a standard deviation.
 * TKV_TRELLISES: X(level_bits, levels) for each of them. */
#define TKV_TRELLISES(X) X(3, 8) X(4, 16)

#define TKV_TRELLIS_LEVELS_8                                                                       \
    {                                                                                              \
        -127, -72, -39, -13, 13, 39, 72, 127                                                       \
    }
#define TKV_TRELLIS_LEVELS_16                                                                      \
    {                                                                                              \
        -127, -92, -69, -52, -38, -27, -16, -5, 5, 16, 27, 38, 52, 69, 92, 127                     \
    }
#define TKV_TRELLIS_UNIT_8 67.4f
#define TKV_TRELLIS_UNIT_16 51.1f

#define TKV_TRELLIS_STATE_BITS 8
#define TKV_TRELLIS_N_STATES (1 << TKV_TRELLIS_STATE_BITS)
#define TKV_TRELLIS_TAPS_Z1 0x149u /* u(t), u(t-3), u(t-6), u(t-8) */
#define TKV_TRELLIS_TAPS_Z0 0x086u /* u(t-1), u(t-2), u(t-7) */

/* The path bits before the first coordinate, the newest in bit 0, are taken from bits that the
 * scale field can spare: its five lowest, and as bit 5 the sign of a number that is never negative.
 */
#define TKV_TRELLIS_START_BITS 6

/* Decoded value = scale field * level / TKV_LEVEL_UNIT: a power of two that keeps the scale field
 * near the row's standard deviation, far from fp16's denormals. */
#define TKV_LEVEL_UNIT 64.0f

/* Sign words of the two rotation rounds: SplitMix64, low half of each output first. The seed of
 * round 0 is 1; that of round 1, 82689, was searched for: with it a vector with one non-zero
 * coordinate comes out no farther from Gaussian, as the codebooks see it, than a random one
 * (head_dim 64 to 512). */
#define TKV_ROTATION_SIGNS_0                                                                       \
    {                                                                                              \
        0x89025cc1u, 0x910a2decu, 0x658eec67u, 0xbeeb8da1u, 0xfb32555eu, 0xf893a2eeu, 0xee42c90bu, \
            0x71c18690u, 0xd101b5b9u, 0x71bb54d8u, 0x90150280u, 0xc34d0bffu, 0xd7363ca5u,          \
            0xe099ec6cu, 0x12278575u, 0x85e7bb0fu, 0x357e3da8u, 0x491718deu, 0x74616796u,          \
            0xcb435c8eu, 0x01564f61u, 0x6775dc77u, 0x14cf8bfeu, 0x9afcd44du, 0x4baa5dc0u,          \
            0x7476cf8au, 0x90d7a28au, 0x87b341d6u, 0x6f4c57a8u, 0x6f9b6daeu, 0xa5794a3bu,          \
            0x2ac2ce17u                                                                            \
    }
#define TKV_ROTATION_SIGNS_1                                                                       \
    {                                                                                              \
        0xe51cefa8u, 0x77831a29u, 0x6f275edeu, 0x9de20263u, 0x4e808396u, 0x5484e3d7u, 0xc2782853u, \
            0x7ad7a200u, 0x4bcc5f9au, 0x1275b9dau, 0x8fd69cbau, 0x35414fe5u, 0xda0fd1cfu,          \
            0x4ffc021du, 0xac9cc316u, 0x45e920deu, 0xcab44c69u, 0xad015202u, 0x54e1500du,          \
            0x1a226d7bu, 0x2cb8d38bu, 0xd4b54cf3u, 0xa781a54cu, 0x6be15f65u, 0xf24bb8c1u,          \
            0x11425f3bu, 0xc2ff906eu, 0xbba74eabu, 0x3984be18u, 0x1c54624cu, 0x19cd1ab7u,          \
            0x5718af29u                                                                            \
    }

/* Signs of the sketch (turbo4q, turbo3q): SplitMix64 with seed 3. */
#define TKV_SKETCH_SIGNS                                                                           \
    {                                                                                              \
        0xdb018fedu, 0x1d0b14e4u, 0x7b81a989u, 0xb3466f8au, 0xd050dd01u, 0x9cebe8a6u, 0x66abc9cfu, \
            0x12a764fbu, 0xcab79996u, 0x37688dadu, 0x091f4f07u, 0xa2df7737u, 0xcbbefdb8u,          \
            0x2298eb42u, 0xdc859216u, 0xe3830d21u, 0xc849ee7au, 0x7db644e0u, 0xa2036b72u,          \
            0xe376a9b1u, 0xd7d47accu, 0xb2ccb612u, 0x305c487fu, 0xb63e2d8fu, 0x9d0fdcf4u,          \
            0x7aec0f99u, 0x93349fc3u, 0x56042295u, 0x65f01c5cu, 0xb7a67c4eu, 0x618293eau,          \
            0xcc84126au                                                                            \
    }

#endif
