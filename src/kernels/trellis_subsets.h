/* Subsets of the trellis for vector searches. The subset 2 z1 + z0 of a window is linear in its
 * bits: that of window 2p + u with oldest bit h is subset_of[p] ^ (u ? 2 : 0) ^ (h ? 2 : 0), since
 * both the newest and the oldest bit are taps of z1 alone. */
#ifndef TKV_KERNELS_TRELLIS_SUBSETS_H
#define TKV_KERNELS_TRELLIS_SUBSETS_H

#include <stdint.h>

static const uint16_t subset_of[128] = {
    0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2,
    2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0, 2, 3, 3, 2, 0, 1, 1, 0,
    1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3,
    3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1, 3, 2, 2, 3, 1, 0, 0, 1,
};

#endif
