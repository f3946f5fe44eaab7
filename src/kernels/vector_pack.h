/* Codes of V_LANES rows into a page (format/layout.c). Included after the vector operations. */
#ifndef TKV_KERNELS_VECTOR_PACK_H
#define TKV_KERNELS_VECTOR_PACK_H

#include "format/codec.h"

#include <string.h>

/* Where code c of a group lies: nibble c / 4 of a word, or byte c % 4 of word c / 4. */
static inline int word_of_code(int bits, int code)
{
    return bits == 8 ? code >> 2 : (code & 3) * bits / 4;
}

static inline int shift_of_code(int bits, int code)
{
    return bits == 8 ? 8 * (code & 3) : 4 * (code >> 2) + (code & 3) * bits % 4;
}

/* Words of one group of up to 32 codes for V_LANES tokens: codes [n_codes][V_LANES], of which the
 * plane has `bits` bits from low_bit on. */
static inline void gather_words(int bits, int low_bit, int n_codes, const uint32_t *codes,
                                vint words[8])
{
    const vint mask = v_set_int((1u << bits) - 1);
    for (int i = 0; i < bits; i++) {
        words[i] = v_set_int(0);
    }
    for (int c = 0; c < n_codes; c++) {
        const vint code = v_and(v_right(v_load_int(codes + c * V_LANES), low_bit), mask);
        const int i = word_of_code(bits, c);
        words[i] = v_or(words[i], v_left(code, shift_of_code(bits, c)));
    }
}

/* Stores the first n_rows lanes. */
static inline void store_words(int n_rows, vint words, uint32_t *to)
{
    if (n_rows >= V_LANES) {
        v_store_int(to, words);
        return;
    }
    uint32_t lanes[V_LANES];
    v_store_int(lanes, words);
    memcpy(to, lanes, (size_t)n_rows * sizeof *lanes);
}

/* The last 16 coordinates of a head_dim that is no multiple of 32 (docs/FORMAT.md, 6.1). */
static inline void pack_key_tail(int bits, int slot, int n_rows, const vint words[8],
                                 uint32_t *plane)
{
    if (bits == 8) {
        for (int i = 0; i < 4; i++) {
            store_words(n_rows, words[i], plane + i * TKV_PAGE_TOKENS + slot);
        }
    } else if (bits == 1) {
        uint32_t lanes[V_LANES];
        v_store_int(lanes, words[0]);
        for (int i = 0; i < V_LANES && i < n_rows; i++) {
            const int shift = 16 * ((slot + i) / 32);
            uint32_t *word = plane + (slot + i) % 32;
            *word = (*word & ~(0xffffu << shift)) | lanes[i] << shift;
        }
    } else {
        for (int i = 0; i < bits; i += 2) {
            store_words(n_rows, v_or(words[i], v_left(words[i + 1], 16)),
                        plane + i / 2 * TKV_PAGE_TOKENS + slot);
        }
    }
}

static inline void pack_key_plane(int bits, int low_bit, int head_dim, int slot, int n_rows,
                                  const uint32_t *codes, uint32_t *plane)
{
    vint words[8];
    for (int j = 0; j < head_dim; j += 32) {
        const int n_codes = head_dim - j < 32 ? head_dim - j : 32;
        uint32_t *group = plane + j / 32 * bits * TKV_PAGE_TOKENS;
        gather_words(bits, low_bit, n_codes, codes + j * V_LANES, words);
        if (n_codes < 32) {
            pack_key_tail(bits, slot, n_rows, words, group);
            continue;
        }
        for (int i = 0; i < bits; i++) {
            store_words(n_rows, words[i], group + i * TKV_PAGE_TOKENS + slot);
        }
    }
}

/* A token's codes, V_LANES coordinates at a time, into the words that it shares with 31 others. */
static inline void pack_value_plane(int bits, int low_bit, int head_dim, int slot, int n_rows,
                                    const uint32_t *codes, uint32_t *plane)
{
    const uint32_t mask = (1u << bits) - 1;
    for (int j = 0; j < head_dim; j += V_LANES) {
        vfloat block[V_LANES];
        for (int k = 0; k < V_LANES; k++) {
            block[k] = v_as_float(v_load_int(codes + (j + k) * V_LANES));
        }
        v_transpose(block);
        for (int lane = 0; lane < V_LANES && lane < n_rows; lane++) {
            const int t = slot + lane;
            const int shift = shift_of_code(bits, t % 32);
            uint32_t *words = plane + (t / 32 * bits + word_of_code(bits, t % 32)) * head_dim + j;
            const vint code =
                v_left(v_and(v_right(v_as_int(block[lane]), low_bit), v_set_int(mask)), shift);
            v_store_int(words, v_select(v_set_int(mask << shift), code, v_load_int(words)));
        }
    }
}

/* codes [head_dim][V_LANES] of n_rows rows into the slots from `slot` on. */
static inline void pack_lanes(tkv_type type, tkv_page_order order, int head_dim, int slot,
                              int n_rows, const uint32_t *codes, void *page)
{
    uint32_t *plane = page;
    int low_bit = 0;
    for (int p = 0; p < tkv_type_n_planes(type); p++) {
        const int bits = tkv_type_plane_bits(type, p);
        if (order == TKV_ORDER_KEY) {
            pack_key_plane(bits, low_bit, head_dim, slot, n_rows, codes, plane);
        } else {
            pack_value_plane(bits, low_bit, head_dim, slot, n_rows, codes, plane);
        }
        plane += (size_t)head_dim * (size_t)bits * TKV_PAGE_TOKENS / 32;
        low_bit += bits;
    }
}

static inline void pack_fields(tkv_type type, int head_dim, int slot, int n_rows,
                               uint16_t fields[TKV_MAX_SIDE_FIELDS][V_LANES], void *page)
{
    const size_t field_bytes = TKV_PAGE_TOKENS * sizeof(uint16_t);
    uint16_t *to = (uint16_t *)(void *)((uint8_t *)page + tkv_page_bytes(type, head_dim) -
                                        (size_t)tkv_type_side_fields(type) * field_bytes);
    for (int f = 0; f < tkv_type_side_fields(type); f++, to += TKV_PAGE_TOKENS) {
        memcpy(to + slot, fields[f], (size_t)n_rows * sizeof *to);
    }
}

#endif
