/* Pages to levels, in vectors: codes become bytes without passing through single values. A key page
 * gives [dwords][64 tokens], a value page [dwords][head_dim], each word four levels plus LEVEL_BIAS
 * of one lane: with n = 4 h + r, byte k of dword 8 g + n is code 8 k + n of group g; where
 * codes are bytes, byte k of dword i is code 4 i + k. In both orders lanes run along a row, so that
 * one function serves both. Where a half group ends, bytes 2 and 3 are arbitrary. Included by
 * vector_kernels.h after the vector operations. */
#ifndef TKV_KERNELS_VECTOR_UNPACK_H
#define TKV_KERNELS_VECTOR_UNPACK_H

#include "base/half.h"
#include "format/codec.h"
#include "format/trellis.h"
#include "kernels/kernels.h"

#include <string.h>

/* Path words of a trellis row before its first: eight more than a row has. */
#define PATH_MARGIN 8

/* Whether codes are levels in bytes; all others are indices into a table. */
static inline bool is_bytewise(tkv_type type)
{
    return tkv_type_plane_bits(type, 0) == 8;
}

/* Whether the levels' indices have a bit in plane 1, beside those in plane 0. */
static inline bool has_single(tkv_type type)
{
    return tkv_type_kind(type) != TKV_CODE_TRELLIS &&
           tkv_type_level_bits(type) > tkv_type_plane_bits(type, 0);
}

/* What is unpacked here: bytes, or indices of up to four bits in planes of 4, 2 or 2 and 1 bits;
 * of a trellis, 2 or 1 free bits and the path. */
#define CHECK_PLANES(id, name, number, kind, plane0, plane1, plane2, level_bits, ...)              \
    _Static_assert(TKV_CODE_##kind == TKV_CODE_TRELLIS                                             \
                       ? plane0 <= 2 && plane1 == 1 && !plane2                                     \
                       : plane0 >= 2 && plane1 <= 1 && level_bits <= 4,                            \
                   "planes of " name);
TKV_CODED_TYPES(CHECK_PLANES)
#undef CHECK_PLANES

/* The words of one group for V_LANES lanes: up to eight of plane 0, one of a one-bit plane, and the
 * subset bits of a trellis. */
typedef struct group_words {
    vint wide[8];
    vint single;
    vint z1;
    vint z0;
} group_words;

/* A page and how to walk through it. */
typedef struct page_view {
    const uint32_t *planes[TKV_MAX_PLANES];
    const uint16_t *fields[TKV_MAX_SIDE_FIELDS];
    tkv_page_order order;
    int head_dim;
    int stride;   /* lanes of a row: tokens of a key page, coordinates of a value page */
    int n_groups; /* whole groups of 32 rows */
    bool has_tail;
    uintptr_t ahead; /* from this page to the next one, which is asked for while this one is read */
} page_view;

/* Asking for memory that is not there does no harm. */
static ALWAYS_INLINE void ask_ahead(const void *p, uintptr_t ahead)
{
    __builtin_prefetch((const void *)((uintptr_t)p + ahead));
}

static inline uintptr_t pages_ahead(const tkv_page_read *read)
{
    return read->next ? (uintptr_t)read->next - (uintptr_t)read->page : 0;
}

static inline page_view view_page(const tkv_page_read *read, tkv_page_order order)
{
    const int head_dim = read->head_dim;
    const bool is_key = order == TKV_ORDER_KEY;
    page_view view = {.order = order,
                      .head_dim = head_dim,
                      .stride = is_key ? TKV_PAGE_TOKENS : head_dim,
                      .n_groups = is_key ? head_dim / 32 : TKV_PAGE_TOKENS / 32,
                      .has_tail = is_key && head_dim % 32 != 0,
                      .ahead = pages_ahead(read)};
    const uint32_t *words = read->page;
    /* Planes that a type lacks have no words. Ending at the last one that it has makes GCC 13.2
     * (Ubuntu 24.04) place the pages of turbo8 and turbo4 wrongly. */
    for (int p = 0; p < TKV_MAX_PLANES; p++) {
        view.planes[p] = words;
        words +=
            (size_t)head_dim * (size_t)tkv_type_plane_bits(read->type, p) * TKV_PAGE_TOKENS / 32;
    }
    for (int f = 0; f < tkv_type_side_fields(read->type); f++) {
        view.fields[f] = (const uint16_t *)words + f * TKV_PAGE_TOKENS;
    }
    return view;
}

static ALWAYS_INLINE vint load_words(const page_view *view, const uint32_t *p)
{
    ask_ahead(p, view->ahead);
    return v_load_int(p);
}

/* Words of a plane for a group. Half groups lie two half-words to a word (docs/FORMAT.md, 6.1). */
static ALWAYS_INLINE void load_plane(const page_view *view, int plane, int bits, int group,
                                     int lane, vint *words)
{
    const uint32_t *base =
        view->planes[plane] + (size_t)group * (size_t)bits * (size_t)view->stride;
    if (group < view->n_groups || bits == 8) {
        const int n = group < view->n_groups ? bits : bits / 2;
        for (int i = 0; i < n; i++) {
            words[i] = load_words(view, base + (size_t)i * (size_t)view->stride + lane);
        }
    } else if (bits == 1) {
        words[0] = v_right(load_words(view, base + lane % 32), lane < 32 ? 0 : 16);
    } else {
        for (int i = 0; i < bits; i++) {
            words[i] = v_right(load_words(view, base + i / 2 * view->stride + lane), 16 * (i % 2));
        }
    }
}

/* Indices into a table of 16 entries, one a nibble: nibble n is of code 4 n + r. Their bits above
 * the code's own are arbitrary where the table repeats itself. */
static ALWAYS_INLINE vint code_nibbles(tkv_type type, const group_words *w, int r)
{
    const vint two_bits = v_set_int(0x33333333u);
    const int wide_bits = tkv_type_plane_bits(type, 0);
    if (wide_bits == 4) {
        return w->wide[r];
    }
    if (tkv_type_kind(type) == TKV_CODE_TRELLIS) {
        const vint z1 = v_shift(w->z1, 1 - r);
        const vint subset = v_select(v_set_int(0x11111111u), v_right(w->z0, r), z1);
        const vint free =
            wide_bits == 1 ? v_shift(w->wide[0], 2 - r) : v_shift(w->wide[r >> 1], r & 1 ? 0 : 2);
        return v_select(two_bits, subset, free);
    }
    const vint low = v_right(w->wide[r >> 1], 2 * (r & 1));
    return has_single(type) ? v_select(two_bits, low, v_shift(w->single, 2 - r)) : low;
}

/* Along coordinates (key pages) the subset bits are XORs of shifted words. */
static ALWAYS_INLINE void subset_along_words(vint now, vint before, group_words *w)
{
    w->z1 = v_xor(v_xor(now, v_funnel_left(now, before, 3)),
                  v_xor(v_funnel_left(now, before, 6), v_funnel_left(now, before, 8)));
    w->z0 = v_xor(v_xor(v_funnel_left(now, before, 1), v_funnel_left(now, before, 2)),
                  v_funnel_left(now, before, 7));
}

/* Along tokens (value pages) they are XORs of the words of earlier coordinates. */
static ALWAYS_INLINE void subset_along_lanes(const uint32_t *path, group_words *w)
{
    w->z1 = v_xor(v_xor(v_load_int(path), v_load_int(path - 3)),
                  v_xor(v_load_int(path - 6), v_load_int(path - 8)));
    w->z0 = v_xor(v_xor(v_load_int(path - 1), v_load_int(path - 2)), v_load_int(path - 7));
}

/* Start bits of each token as the word before its first: the newest bit on top. */
static inline void start_words(const uint16_t *fields, uint32_t words[TKV_PAGE_TOKENS])
{
    for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
        const uint32_t f = fields[t];
        words[t] = (f & 1u) << 31 | (f & 2u) << 29 | (f & 4u) << 27 | (f & 8u) << 25 |
                   (f & 16u) << 23 | (f & 0x8000u) << 11;
    }
}

/* The path words of one half of a value page with the start bits of its tokens in front. */
static inline void path_with_start(const page_view *view, int half,
                                   uint32_t path[PATH_MARGIN + TKV_MAX_HEAD_DIM])
{
    const uint16_t *fields = view->fields[0] + 32 * half;
    memset(path, 0, PATH_MARGIN * sizeof *path);
    for (int k = 0; k < TKV_TRELLIS_START_BITS; k++) {
        const bool is_last = k == TKV_TRELLIS_START_BITS - 1;
        path[PATH_MARGIN - 1 - k] = v_test_bit(fields, is_last ? 15 : k);
    }
    for (int j = 0; j < view->head_dim; j += V_LANES) {
        const uint32_t *words = view->planes[1] + half * view->head_dim + j;
        v_store_int(path + PATH_MARGIN + j, load_words(view, words));
    }
}

/* What unpacking a trellis needs beside the planes of a group. */
typedef struct trellis_start {
    uint32_t words[TKV_PAGE_TOKENS];               /* of a key page */
    uint32_t path[PATH_MARGIN + TKV_MAX_HEAD_DIM]; /* of a half of a value page */
} trellis_start;

static ALWAYS_INLINE void load_group(tkv_type type, const page_view *view, int group, int lane,
                                     const trellis_start *start, group_words *w)
{
    load_plane(view, 0, tkv_type_plane_bits(type, 0), group, lane, w->wide);
    if (has_single(type)) {
        load_plane(view, 1, 1, group, lane, &w->single);
    }
    if (start && view->order == TKV_ORDER_KEY) {
        vint now;
        load_plane(view, 1, 1, group, lane, &now);
        const uint32_t *before =
            group ? view->planes[1] + (size_t)(group - 1) * TKV_PAGE_TOKENS : start->words;
        subset_along_words(now, v_load_int(before + lane), w);
    } else if (start) {
        subset_along_lanes(start->path + PATH_MARGIN + lane, w);
    }
}

/* Levels of one group for all its lanes. */
static ALWAYS_INLINE void unpack_group(tkv_type type, const page_view *view, int group,
                                       vbytes table, const trellis_start *start, uint32_t *levels)
{
    const size_t stride = (size_t)view->stride;
    for (int lane = 0; lane < view->stride; lane += V_LANES) {
        group_words w;
        load_group(type, view, group, lane, start, &w);
        uint32_t *to = levels + (size_t)(8 * group) * stride + lane;
        if (is_bytewise(type)) {
            for (int i = 0; i < (group < view->n_groups ? 8 : 4); i++) {
                v_store_int(to + (size_t)i * stride, v_bias_levels(w.wide[i]));
            }
            continue;
        }
        for (int r = 0; r < 4; r++) {
            const vint nibbles = code_nibbles(type, &w, r);
            v_store_int(to + (size_t)r * stride, v_lookup_bytes(table, nibbles));
            v_store_int(to + (size_t)(r + 4) * stride, v_lookup_bytes(table, v_right(nibbles, 4)));
        }
    }
}

/* A table of 16 entries of n_levels biased levels, repeated. */
static inline vbytes level_table(int n_levels, const int8_t *levels)
{
    uint8_t entries[16];
    for (int i = 0; i < 16; i++) {
        entries[i] = (uint8_t)(levels[i % n_levels] + LEVEL_BIAS);
    }
    return v_byte_table(entries);
}

static ALWAYS_INLINE void unpack_type(tkv_type type, const page_view *view, uint32_t *levels)
{
    static const int8_t no_levels[1] = {0};
    const int level_bits = tkv_type_level_bits(type);
    const bool is_trellis = tkv_type_kind(type) == TKV_CODE_TRELLIS;
    const vbytes table = level_table(level_bits ? 1 << level_bits : 1,
                                     is_trellis   ? tkv_trellis_get(level_bits)->levels
                                     : level_bits ? tkv_codebook_get(level_bits)->levels
                                                  : no_levels);
    trellis_start start;
    if (is_trellis) {
        start_words(view->fields[0], start.words);
    }
    for (int group = 0; group < view->n_groups + view->has_tail; group++) {
        if (is_trellis && view->order == TKV_ORDER_VALUE) {
            path_with_start(view, group, start.path);
        }
        unpack_group(type, view, group, table, is_trellis ? &start : NULL, levels);
    }
}

/* Words of levels [dwords][stride] that unpacking a page writes at most. */
static inline size_t level_words(int head_dim)
{
    return (size_t)(head_dim + 31) / 32 * 8 * TKV_PAGE_TOKENS;
}

/* Levels of a page of any coded type, without scales and residual signs: compiled once a type. */
static inline void unpack_levels(tkv_type type, const page_view *view, uint32_t *levels)
{
#define UNPACK_TYPE(id, ...)                                                                       \
    case TKV_TYPE_##id: unpack_type(TKV_TYPE_##id, view, levels); break;
    switch (type) {
        TKV_CODED_TYPES(UNPACK_TYPE)
    case TKV_TYPE_F16:
    case TKV_TYPE_COUNT: break;
    }
#undef UNPACK_TYPE
}

/* Residual signs of a sketch type, the last plane of its page, as levels +1 and -1. */
static inline void unpack_signs(tkv_type type, const page_view *view, uint32_t *levels)
{
    static const int8_t signs[2] = {1, -1};
    const size_t stride = (size_t)view->stride;
    const vbytes table = level_table(2, signs);
    for (int group = 0; group < view->n_groups + view->has_tail; group++) {
        for (int lane = 0; lane < view->stride; lane += V_LANES) {
            vint word;
            load_plane(view, tkv_type_n_planes(type) - 1, 1, group, lane, &word);
            for (int i = 0; i < 8; i++) {
                v_store_int(levels + (size_t)(8 * group + i) * stride + lane,
                            v_lookup_bytes(table, v_right(word, i)));
            }
        }
    }
}

#endif
