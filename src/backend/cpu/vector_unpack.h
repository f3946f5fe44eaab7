/* Pages to levels, in vectors. A key page gives [head_dim][64 tokens], a value page [64 tokens]
 * [head_dim]: in both cases row 32 g + c is code c of group g, and lanes run along a row, so that
 * one function serves both orders. Included by vector_kernels.h after the vector operations. */
#ifndef TKV_BACKEND_CPU_VECTOR_UNPACK_H
#define TKV_BACKEND_CPU_VECTOR_UNPACK_H

#include "codec/codec.h"
#include "codec/trellis.h"
#include "common/half.h"

#include <string.h>

/* Path words of a trellis row before its first: eight more than a row has. */
#define PATH_MARGIN 8

/* The words of one group for V_LANES lanes: up to four of a wide plane, one of a one-bit plane, and
 * the subset bits of a trellis. */
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
} page_view;

static inline page_view view_page(tkv_type type, tkv_page_order order, int head_dim,
                                  const void *page)
{
    const tkv_type_layout *layout = tkv_type_get_layout(type);
    const bool is_key = order == TKV_ORDER_KEY;
    page_view view = {.order = order,
                      .head_dim = head_dim,
                      .stride = is_key ? TKV_PAGE_TOKENS : head_dim,
                      .n_groups = is_key ? head_dim / 32 : TKV_PAGE_TOKENS / 32,
                      .has_tail = is_key && head_dim % 32 != 0};
    const uint32_t *words = page;
    for (int p = 0; p < layout->n_planes; p++) {
        view.planes[p] = words;
        words += (size_t)head_dim * (size_t)layout->plane_bits[p] * TKV_PAGE_TOKENS / 32;
    }
    for (int f = 0; f < layout->n_side_fields; f++) {
        view.fields[f] = (const uint16_t *)words + f * TKV_PAGE_TOKENS;
    }
    return view;
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
            words[i] = v_load_int(base + (size_t)i * (size_t)view->stride + lane);
        }
    } else if (bits == 1) {
        words[0] = v_right(v_load_int(base + lane % 32), lane < 32 ? 0 : 16);
    } else {
        for (int i = 0; i < bits; i++) {
            words[i] = v_right(v_load_int(base + i / 2 * view->stride + lane), 16 * (i % 2));
        }
    }
}

/* Index of code c into a table of 16 entries; bits above the code's own are arbitrary where the
 * table repeats itself. */
static ALWAYS_INLINE vint code_index(tkv_type type, const group_words *w, int c)
{
    const int n = c >> 2;
    const int r = c & 3;
    const vint one = v_set_int(1);
    const vint three = v_set_int(3);
    if (type == TKV_TYPE_TURBO4) {
        return v_right(w->wide[r], 4 * n);
    }
    if (type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2) {
        const vint z1 = c ? v_right(w->z1, c - 1) : v_left(w->z1, 1);
        const vint subset = v_select(one, v_right(w->z0, c), z1);
        if (type == TKV_TYPE_TRELLIS2) {
            const vint free = c >= 2 ? v_right(w->wide[0], c - 2) : v_left(w->wide[0], 2 - c);
            return v_select(three, subset, free);
        }
        const int shift = 4 * n + 2 * (r & 1);
        const vint word = w->wide[r >> 1];
        return v_select(three, subset, shift >= 2 ? v_right(word, shift - 2) : v_left(word, 2));
    }
    const vint low = v_right(w->wide[r >> 1], 4 * n + 2 * (r & 1));
    if (type == TKV_TYPE_TURBO2 || type == TKV_TYPE_TURBO3Q) {
        return low;
    }
    return v_select(three, low, c >= 2 ? v_right(w->single, c - 2) : v_left(w->single, 2 - c));
}

/* Path words along a row, shifted by k coordinates. */
static ALWAYS_INLINE vint shifted_path(vint now, vint before, int k)
{
    return v_or(v_left(now, k), v_right(before, 32 - k));
}

/* Along coordinates (key pages) the subset bits are XORs of shifted words. */
static ALWAYS_INLINE void subset_along_words(vint now, vint before, group_words *w)
{
    w->z1 = v_xor(v_xor(now, shifted_path(now, before, 3)),
                  v_xor(shifted_path(now, before, 6), shifted_path(now, before, 8)));
    w->z0 = v_xor(v_xor(shifted_path(now, before, 1), shifted_path(now, before, 2)),
                  shifted_path(now, before, 7));
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
        const uint32_t s = tkv_trellis_start(fields[t]);
        words[t] = (s & 1u) << 31 | (s & 2u) << 29 | (s & 4u) << 27 | (s & 8u) << 25 |
                   (s & 16u) << 23 | (s & 32u) << 21;
    }
}

/* The path words of one half of a value page with the start bits of its tokens in front. */
static inline void path_with_start(const page_view *view, int path_plane, int half,
                                   const uint32_t starts[TKV_PAGE_TOKENS],
                                   uint32_t path[PATH_MARGIN + TKV_MAX_HEAD_DIM])
{
    memset(path, 0, PATH_MARGIN * sizeof *path);
    for (int t = 0; t < 32; t++) {
        for (int k = 0; k < TKV_TRELLIS_START_BITS; k++) {
            path[PATH_MARGIN - 1 - k] |= (starts[32 * half + t] >> (31 - k) & 1u) << t;
        }
    }
    memcpy(path + PATH_MARGIN, view->planes[path_plane] + half * view->head_dim,
           (size_t)view->head_dim * sizeof *path);
}

/* Levels of one group for all its lanes: out[(32 g + c) * stride + lane]. */
static ALWAYS_INLINE void unpack_group(tkv_type type, const page_view *view, int group, int n_codes,
                                       vtable table, const uint32_t *starts, const uint32_t *path,
                                       float *out)
{
    const bool is_trellis = type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2;
    const int wide_bits = type == TKV_TYPE_TURBO8     ? 8
                          : type == TKV_TYPE_TURBO4   ? 4
                          : type == TKV_TYPE_TRELLIS2 ? 1
                                                      : 2;
    const bool has_single = type == TKV_TYPE_TURBO3 || type == TKV_TYPE_TURBO4Q;
    for (int lane = 0; lane < view->stride; lane += V_LANES) {
        group_words w;
        load_plane(view, 0, wide_bits, group, lane, w.wide);
        if (has_single) {
            load_plane(view, 1, 1, group, lane, &w.single);
        }
        if (is_trellis && view->order == TKV_ORDER_KEY) {
            vint now;
            load_plane(view, 1, 1, group, lane, &now);
            const uint32_t *before = view->planes[1] + (size_t)(group - 1) * TKV_PAGE_TOKENS;
            subset_along_words(now, v_load_int((group ? before : starts) + lane), &w);
        } else if (is_trellis) {
            subset_along_lanes(path + PATH_MARGIN + lane, &w);
        }
        float *to = out + (size_t)(32 * group) * (size_t)view->stride + lane;
        for (int c = 0; c < n_codes; c++, to += view->stride) {
            if (type == TKV_TYPE_TURBO8) {
                v_store(to,
                        v_from_int(v_right_signed(v_left(w.wide[c >> 2], 24 - 8 * (c & 3)), 24)));
            } else {
                v_store(to, v_lookup(table, code_index(type, &w, c)));
            }
        }
    }
}

static ALWAYS_INLINE void unpack_type(tkv_type type, const page_view *view, float *out)
{
    const tkv_type_layout *layout = tkv_type_get_layout(type);
    const bool is_trellis = layout->kind == TKV_CODE_TRELLIS;
    const int n_levels = layout->level_bits ? 1 << layout->level_bits : 16;
    float entries[16] = {0};
    for (int i = 0; i < 16 && layout->level_bits; i++) {
        entries[i] = is_trellis ? (float)tkv_trellis_get(layout->level_bits)->levels[i % n_levels]
                                : (float)tkv_codebook_get(layout->level_bits)->levels[i % n_levels];
    }
    const vtable table = v_table(entries);
    uint32_t starts[TKV_PAGE_TOKENS];
    uint32_t path[PATH_MARGIN + TKV_MAX_HEAD_DIM];
    if (is_trellis) {
        start_words(view->fields[0], starts);
    }
    for (int group = 0; group < view->n_groups; group++) {
        if (is_trellis && view->order == TKV_ORDER_VALUE) {
            path_with_start(view, 1, group, starts, path);
        }
        unpack_group(type, view, group, 32, table, starts, path, out);
    }
    if (view->has_tail) {
        unpack_group(type, view, view->n_groups, 16, table, starts, path, out);
    }
}

/* Levels of a page of any coded type, without scales and residual signs. */
static inline void unpack_levels(tkv_type type, const page_view *view, float *out)
{
    switch (type) {
    case TKV_TYPE_TURBO8: unpack_type(TKV_TYPE_TURBO8, view, out); break;
    case TKV_TYPE_TURBO4: unpack_type(TKV_TYPE_TURBO4, view, out); break;
    case TKV_TYPE_TURBO3: unpack_type(TKV_TYPE_TURBO3, view, out); break;
    case TKV_TYPE_TURBO2: unpack_type(TKV_TYPE_TURBO2, view, out); break;
    case TKV_TYPE_TRELLIS3: unpack_type(TKV_TYPE_TRELLIS3, view, out); break;
    case TKV_TYPE_TRELLIS2: unpack_type(TKV_TYPE_TRELLIS2, view, out); break;
    case TKV_TYPE_TURBO4Q: unpack_type(TKV_TYPE_TURBO4Q, view, out); break;
    case TKV_TYPE_TURBO3Q: unpack_type(TKV_TYPE_TURBO3Q, view, out); break;
    case TKV_TYPE_F16:
    case TKV_TYPE_COUNT: break;
    }
}

/* Residual signs of a sketch type in a key page, as +1 and -1. */
static inline void unpack_signs(const page_view *view, int sign_plane, float *out)
{
    const float entries[16] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
    const vtable table = v_table(entries);
    for (int group = 0; group < view->n_groups + view->has_tail; group++) {
        const int n_codes = group < view->n_groups ? 32 : 16;
        for (int lane = 0; lane < view->stride; lane += V_LANES) {
            vint word;
            load_plane(view, sign_plane, 1, group, lane, &word);
            for (int c = 0; c < n_codes; c++) {
                v_store(out + (size_t)(32 * group + c) * (size_t)view->stride + lane,
                        v_lookup(table, v_right(word, c)));
            }
        }
    }
}

#endif
