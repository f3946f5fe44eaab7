/* Trellis-coded quantisation with a feed-forward code (Ungerboeck 1982; Marcellin and Fischer
 * 1990).
 *
 * Every coordinate has one path bit u and some free bits. The last nine path bits, the newest in
 * bit 0, are the window w; z1 and z0 are parities of taps of w, and the level's index is 4 * free +
 * 2 * z1 + z0. The window begins with the start bits of the scale field. */
#ifndef TKV_FORMAT_TRELLIS_H
#define TKV_FORMAT_TRELLIS_H

#include "format/constants.h"
#include "turbokv.h"

typedef struct tkv_trellis {
    int free_bits;
    float unit;           /* levels a standard deviation */
    const int8_t *levels; /* [4 << free_bits] */
} tkv_trellis;

/* With 8 levels (level_bits 3, one free bit) or 16 (level_bits 4, two free bits). */
const tkv_trellis *tkv_trellis_get(int level_bits);

/* Index of the level for a window and free bits. */
static inline int tkv_trellis_index(unsigned window, int free)
{
    const int z1 = __builtin_parity(window & TKV_TRELLIS_TAPS_Z1);
    const int z0 = __builtin_parity(window & TKV_TRELLIS_TAPS_Z0);
    return 4 * free + 2 * z1 + z0;
}

/* Start bits of a scale field, and the scale without them. */
static inline unsigned tkv_trellis_start(uint16_t field)
{
    return (field & 31u) | (unsigned)(field >> 15) << 5;
}

static inline uint16_t tkv_trellis_scale(uint16_t field)
{
    return field & 0x7fffu;
}

/* A path through the trellis. */
typedef struct tkv_trellis_path {
    uint8_t codes[1024]; /* free bits, and the path bit above them */
    unsigned start;      /* start bits */
} tkv_trellis_path;

/* How an effort searches: with how many survivors, and at which gains, of which the one with the
 * best correlation wins. */
typedef struct tkv_trellis_effort {
    int survivor_bits;
    int n_gains;
    float gains[3];
} tkv_trellis_effort;

const tkv_trellis_effort *tkv_trellis_get_effort(tkv_effort effort);

/* Finds the path whose levels are nearest to z [head_dim], of unit variance: Viterbi's algorithm on
 * integers, so that every back end finds the same one. survivor_bits: TKV_TRELLIS_STATE_BITS for
 * the best path, fewer for the best among as many survivors as there are values of the newest bits.
 */
void tkv_trellis_search(const tkv_trellis *trellis, int survivor_bits, float gain, int head_dim,
                        const float *z, tkv_trellis_path *path);

/* Levels of a path: levels [head_dim]. */
void tkv_trellis_levels(const tkv_trellis *trellis, int head_dim, const uint8_t *codes,
                        unsigned start, float *levels);

#endif
