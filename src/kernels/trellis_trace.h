/* What the vector searches note at each coordinate, and how it is read back. */
#ifndef TKV_KERNELS_TRELLIS_TRACE_H
#define TKV_KERNELS_TRELLIS_TRACE_H

#include "format/trellis.h"

/* Bit p of [u]: of n states, state 2p + u came from state p + n/2, not p. */
typedef struct step_decisions {
    uint32_t from_upper[2][4];
} step_decisions;

/* Follows the decisions back from the cheapest state, the lowest of equals. */
static unsigned trace_back(int n_states, const uint16_t *metrics, const step_decisions *decisions,
                           int head_dim, uint8_t *codes)
{
    uint16_t smallest = UINT16_MAX;
    int state = 0;
    for (int i = 0; i < n_states; i++) {
        smallest = metrics[i] < smallest ? metrics[i] : smallest;
    }
    while (metrics[state] != smallest) {
        state++;
    }
    for (int j = head_dim - 1; j >= 0; j--) {
        const int p = state >> 1;
        const int bit = state & 1;
        codes[j] = (uint8_t)bit;
        state = p + (decisions[j].from_upper[bit][p / 32] >> (p % 32) & 1u ? n_states / 2 : 0);
    }
    return (unsigned)state & ((1u << TKV_TRELLIS_START_BITS) - 1);
}

/* Puts the free bits of the nearest levels below the path bits. keys [head_dim]: 16 bits for each
 * subset, the lowest two of them its nearest level's free bits. */
static inline void add_free_bits(const tkv_trellis *trellis, int head_dim, const uint64_t *keys,
                                 tkv_trellis_path *path)
{
    unsigned window = path->start;
    for (int j = 0; j < head_dim; j++) {
        window = (window << 1 | path->codes[j]) & 0x1ffu;
        const unsigned free = (unsigned)(keys[j] >> (16 * tkv_trellis_index(window, 0))) & 3u;
        path->codes[j] = (uint8_t)(free | (unsigned)path->codes[j] << trellis->free_bits);
    }
}

#endif
