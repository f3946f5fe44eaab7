#include "codec/codec.h"

#include <stddef.h>

/* Converged Lloyd-Max quantisers of N(0,1): thresholds are the midpoints of the centroids, levels
 * the centroids times 127 / outermost centroid, rounded. tests/codec derives them again. */
static const int8_t levels2[] = {-127, -38, 38, 127};
static const float thresholds2[] = {-0.981598822f, 0.0f, 0.981598822f};

static const int8_t levels3[] = {-127, -79, -45, -14, 14, 45, 79, 127};
static const float thresholds3[] = {-1.74792749f, -1.04995728f, -0.50054973f, 0.0f,
                                    0.50054973f,  1.04995728f,  1.74792749f};

static const int8_t levels4[] = {-127, -96, -75, -58, -44, -31, -18, -6,
                                 6,    18,  31,  44,  58,  75,  96,  127};
static const float thresholds4[] = {-2.4008034f,   -1.84353181f,  -1.43713879f,  -1.09928583f,
                                    -0.799549788f, -0.522403709f, -0.258221665f, 0.0f,
                                    0.258221665f,  0.522403709f,  0.799549788f,  1.09928583f,
                                    1.43713879f,   1.84353181f,   2.4008034f};

static const tkv_codebook codebooks[] = {
    {4, levels2, thresholds2}, {8, levels3, thresholds3}, {16, levels4, thresholds4}};

const tkv_codebook *tkv_codebook_get(int bits)
{
    return bits >= 2 && bits <= 4 ? &codebooks[bits - 2] : NULL;
}
