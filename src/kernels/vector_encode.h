/* Encoding V_LANES rows at once, to the bit as the reference does: lanes are rows, sums run in the
 * order of tkv_sum16. Rows that are not finite, huge or tiny go through the reference, those of a
 * trellis all through TRELLIS_SEARCH. What bounds it: the butterflies and the halving of the
 * codebook, some 400 vector instructions a row of 128 at four bits on 16 lanes. Included after
 * vector_transform.h. */
#ifndef TKV_KERNELS_VECTOR_ENCODE_H
#define TKV_KERNELS_VECTOR_ENCODE_H

#include "base/half.h"
#include "kernels/kernels.h"
#include "kernels/trellis_search.h"
#include "kernels/vector_pack.h"
#include "kernels/vector_transform.h"

/* What a row needs to be to be coded here: coordinates below LARGEST, and one of at least SMALLEST
 * after the rotation (format/quantise.c has the reference's limits). */
static const float LARGEST_ROW = 0x1p40f;
static const float SMALLEST_ROW = 0x1p-40f;

static ALWAYS_INLINE vfloat magnitude(vfloat x)
{
    return v_max(x, v_negate(x));
}

/* The largest magnitude of each row. */
static inline vfloat largest_of_rows(int head_dim, const lane_rows *rows)
{
    vfloat largest = v_set(0.0f);
    for (int j = 0; j < head_dim; j++) {
        largest = v_max(largest, magnitude(v_load(rows->x + j * V_LANES)));
    }
    return largest;
}

/* Whether all rows are finite and below LARGEST_ROW: as integers, magnitudes of floats keep their
 * order, and infinity and NaN are the largest. */
static inline bool are_ordinary(int head_dim, const lane_rows *rows)
{
    const vint magnitude_bits = v_set_int(0x7fffffffu);
    vint largest = v_set_int(0);
    for (int j = 0; j < head_dim; j++) {
        const vint bits = v_as_int(v_load(rows->x + j * V_LANES));
        largest = v_max_int(largest, v_and(bits, magnitude_bits));
    }
    uint32_t lanes[V_LANES];
    v_store_int(lanes, largest);
    bool all_are = true;
    for (int lane = 0; lane < V_LANES; lane++) {
        all_are &= lanes[lane] <= tkv_float_bits(LARGEST_ROW);
    }
    return all_are;
}

/* The last step of tkv_sum16. */
static ALWAYS_INLINE vfloat fold_sums(vfloat sums[16])
{
    for (int width = 8; width > 0; width /= 2) {
        for (int l = 0; l < width; l++) {
            sums[l] = v_add(sums[l], sums[l + width]);
        }
    }
    return sums[0];
}

static inline vfloat squared_norm(int head_dim, const lane_rows *rows)
{
    vfloat sums[16];
    for (int j = 0; j < head_dim; j += 16) {
        for (int l = 0; l < 16; l++) {
            const vfloat x = v_load(rows->x + (j + l) * V_LANES);
            sums[l] = j ? v_add(sums[l], v_mul(x, x)) : v_mul(x, x);
        }
    }
    return fold_sums(sums);
}

/* V_LANES rows between quantiser and page. */
typedef struct lane_codes {
    _Alignas(64) uint32_t codes[TKV_MAX_HEAD_DIM * V_LANES]; /* [head_dim][V_LANES] */
    float levels[TKV_MAX_HEAD_DIM * V_LANES];                /* likewise; of sketches only */
    _Alignas(64) float scale[V_LANES]; /* times TKV_LEVEL_UNIT, before it is rounded to half */
    _Alignas(64) float step[V_LANES];
} lane_codes;

/* The scale |y|^2 / <y, levels> times the unit, as unbiased_scale of the reference. */
static ALWAYS_INLINE vfloat unbiased_scales(vfloat norm2, vfloat dot)
{
    return v_min(v_mul(v_div(norm2, dot), v_set(TKV_LEVEL_UNIT)), v_set(TKV_HALF_MAX));
}

static inline void quantise_uniform(int head_dim, vfloat largest, vfloat norm2,
                                    const lane_rows *rows, lane_codes *out)
{
    const vfloat factor = v_div(v_set(127.0f), largest);
    vfloat sums[16];
    for (int j = 0; j < head_dim; j += 16) {
        for (int l = 0; l < 16; l++) {
            const vfloat y = v_load(rows->x + (j + l) * V_LANES);
            const vint code = v_to_int(v_mul(y, factor));
            const vfloat product = v_mul(y, v_from_int(code));
            v_store_int(out->codes + (j + l) * V_LANES, code);
            sums[l] = j ? v_add(sums[l], product) : product;
        }
    }
    v_store(out->scale, unbiased_scales(norm2, fold_sums(sums)));
}

/* Of a codebook: vtable has 16 entries. */
enum { MAX_LEVEL_BITS = 4 };

/* How many of the thresholds lie below z, by halving: tables[i][code] is the threshold that the
 * next bit depends on. */
typedef struct threshold_search {
    vtable tables[MAX_LEVEL_BITS];
    int n_levels;
} threshold_search;

static ALWAYS_INLINE threshold_search make_search(int n_levels, const tkv_codebook *codebook)
{
    threshold_search search = {.n_levels = n_levels};
    int i = 0;
    for (int step = n_levels / 2; step > 0; step /= 2, i++) {
        float entries[16];
        for (int code = 0; code < 16; code++) {
            entries[code] = codebook->thresholds[(code + step - 1) % n_levels % (n_levels - 1)];
        }
        search.tables[i] = v_table(entries);
    }
    return search;
}

static ALWAYS_INLINE vint find_code(const threshold_search *search, vfloat z)
{
    vint code = v_set_int(0);
    int i = 0;
    for (int step = search->n_levels / 2; step > 0; step /= 2, i++) {
        code = v_add_if_greater(code, z, v_lookup(search->tables[i], code), (uint32_t)step);
    }
    return code;
}

/* Codes of the nearest levels; returns S(z * level). With `keeps_levels` they are kept too, and
 * *level_norm2 is S(level * level). */
static ALWAYS_INLINE vfloat choose_codes(int n_levels, int head_dim, bool keeps_levels,
                                         const tkv_codebook *codebook, vfloat to_unit,
                                         const lane_rows *rows, lane_codes *out,
                                         vfloat *level_norm2)
{
    float entries[16];
    for (int i = 0; i < 16; i++) {
        entries[i] = (float)codebook->levels[i % n_levels];
    }
    const vtable table = v_table(entries);
    const threshold_search search = make_search(n_levels, codebook);
    vfloat sums[16];
    vfloat squares[16];
    for (int j = 0; j < head_dim; j += 16) {
        for (int l = 0; l < 16; l++) {
            const vfloat z = v_mul(v_load(rows->x + (j + l) * V_LANES), to_unit);
            const vint code = find_code(&search, z);
            const vfloat level = v_lookup(table, code);
            const vfloat product = v_mul(z, level);
            v_store_int(out->codes + (j + l) * V_LANES, code);
            sums[l] = j ? v_add(sums[l], product) : product;
            if (keeps_levels) {
                v_store(out->levels + (j + l) * V_LANES, level);
                squares[l] = j ? v_add(squares[l], v_mul(level, level)) : v_mul(level, level);
            }
        }
    }
    if (keeps_levels) {
        *level_norm2 = fold_sums(squares);
    }
    return fold_sums(sums);
}

/* The same for a codebook of so many bits: compiled once for each. */
#define CHECK_BITS(BITS) _Static_assert(BITS <= MAX_LEVEL_BITS, "a codebook that fits a vtable");
TKV_CODEBOOKS(CHECK_BITS)
#undef CHECK_BITS

static ALWAYS_INLINE vfloat choose_codes_of(int bits, int head_dim, bool keeps_levels,
                                            vfloat to_unit, const lane_rows *rows, lane_codes *out,
                                            vfloat *level_norm2)
{
#define CHOOSE_CODES(BITS)                                                                         \
    case BITS:                                                                                     \
        return choose_codes(1 << BITS, head_dim, keeps_levels, tkv_codebook_get(BITS), to_unit,    \
                            rows, out, level_norm2);
    switch (bits) {
        TKV_CODEBOOKS(CHOOSE_CODES)
    }
#undef CHOOSE_CODES
    __builtin_unreachable(); /* codebook.c has one for each type */
}

static inline void quantise_codebook(int bits, int head_dim, vfloat norm2, vfloat to_unit,
                                     const lane_rows *rows, lane_codes *out)
{
    const vfloat dot = choose_codes_of(bits, head_dim, false, to_unit, rows, out, NULL);
    v_store(out->scale, unbiased_scales(norm2, v_div(dot, to_unit)));
}

/* `rows` become the sketched residuals. */
static inline void quantise_sketch(int bits, int head_dim, vfloat to_unit, lane_rows *rows,
                                   lane_codes *out)
{
    vfloat level_norm2;
    const vfloat dot = choose_codes_of(bits, head_dim, true, to_unit, rows, out, &level_norm2);
    const vfloat scale = v_mul(v_div(v_div(dot, to_unit), level_norm2), v_set(TKV_LEVEL_UNIT));
    _Alignas(64) float stored[V_LANES];
    v_store(out->scale, v_min(scale, v_set(TKV_HALF_MAX)));
    for (int lane = 0; lane < V_LANES; lane++) {
        stored[lane] = tkv_half_to_float(tkv_float_to_half(out->scale[lane])) / TKV_LEVEL_UNIT;
    }
    for (int j = 0; j < head_dim; j++) {
        const vfloat coded = v_mul(v_load(stored), v_load(out->levels + j * V_LANES));
        v_store(lanes_of(rows, j), v_sub(v_load(lanes_of(rows, j)), coded));
    }
    const vfloat norm2 = squared_norm(head_dim, rows);
    const float correction = 1.25331414f * (1.0f - 0.25f / (float)head_dim);
    mix_lanes(head_dim, tkv_sketch_signs, rows);
    for (int j = 0; j < head_dim; j++) {
        uint32_t *codes = out->codes + j * V_LANES;
        v_store_int(codes, v_add_if_greater(v_load_int(codes), v_set(0.0f),
                                            v_load(lanes_of(rows, j)), 1u << bits));
    }
    const vfloat step = v_mul(v_sqrt(v_div(norm2, v_set((float)head_dim))), v_set(correction));
    v_store(out->step, v_min(step, v_set(TKV_HALF_MAX)));
}

static inline void search_row(tkv_type type, tkv_effort effort, const tkv_rotated_row *in,
                              tkv_row_codes *row)
{
    const tkv_trellis *trellis = tkv_trellis_get(tkv_type_level_bits(type));
    const tkv_trellis_effort *how = tkv_trellis_get_effort(effort);
    float best = -1.0f;
    for (int g = 0; g < how->n_gains; g++) {
        tkv_trellis_path path;
        TRELLIS_SEARCH(trellis, how->survivor_bits, how->gains[g], in->head_dim, in->z, &path);
        tkv_offer_path(trellis, in, &path, &best, row);
    }
}

/* Trellis rows are searched one at a time, a state a lane. */
static inline void quantise_trellis(const tkv_page_span *span, int n_rows, const lane_rows *rows,
                                    lane_codes *out, uint16_t fields[V_LANES])
{
    const int head_dim = span->head_dim;
    float y[TKV_MAX_HEAD_DIM];
    tkv_rotated_row in;
    tkv_row_codes row;
    for (int lane = 0; lane < n_rows; lane++) {
        for (int j = 0; j < head_dim; j++) {
            y[j] = rows->x[j * V_LANES + lane];
        }
        if (tkv_begin_rotated_row(head_dim, y, &in, &row)) {
            search_row(span->type, span->effort, &in, &row);
        }
        for (int j = 0; j < head_dim; j++) {
            out->codes[j * V_LANES + lane] = row.codes[j];
        }
        fields[lane] = row.side[0];
    }
}

/* Quantises rotated rows and packs them from `slot` on. */
static inline void encode_rotated(const tkv_page_span *span, int slot, int n_rows, vfloat largest,
                                  lane_rows *rows, void *page)
{
    const tkv_code_kind kind = tkv_type_kind(span->type);
    const int level_bits = tkv_type_level_bits(span->type);
    const int head_dim = span->head_dim;
    lane_codes out;
    uint16_t fields[TKV_MAX_SIDE_FIELDS][V_LANES] = {{0}};
    const vfloat norm2 = squared_norm(head_dim, rows);
    const vfloat to_unit = v_sqrt(v_div(v_set((float)head_dim), norm2));
    switch (kind) {
    case TKV_CODE_UNIFORM: quantise_uniform(head_dim, largest, norm2, rows, &out); break;
    case TKV_CODE_CODEBOOK:
        quantise_codebook(level_bits, head_dim, norm2, to_unit, rows, &out);
        break;
    case TKV_CODE_SKETCH: quantise_sketch(level_bits, head_dim, to_unit, rows, &out); break;
    case TKV_CODE_TRELLIS: quantise_trellis(span, n_rows, rows, &out, fields[0]); break;
    case TKV_CODE_HALF: return;
    }
    for (int lane = 0; lane < V_LANES && kind != TKV_CODE_TRELLIS; lane++) {
        fields[0][lane] = tkv_float_to_half(out.scale[lane]);
        fields[1][lane] = kind == TKV_CODE_SKETCH ? tkv_float_to_half(out.step[lane]) : 0;
    }
    pack_lanes(span->type, span->order, head_dim, slot, n_rows, out.codes, page);
    pack_fields(span->type, head_dim, slot, n_rows, fields, page);
}

static inline void encode_halves(const tkv_page_span *span, const float *x, size_t row_stride,
                                 void *page)
{
    const size_t head_dim = (size_t)span->head_dim;
    for (int i = 0; i < span->n_rows; i++, x += row_stride) {
        uint16_t *row = (uint16_t *)page + (size_t)(span->first_slot + i) * head_dim;
        for (size_t j = 0; j < head_dim; j += V_LANES) {
            v_store_finite_half(row + j, v_load(x + j));
        }
    }
}

/* Rows that lanes do not take, as the reference. */
static inline void encode_row_by_row(const tkv_page_span *span, const float *x, size_t row_stride,
                                     void *page)
{
    if (tkv_type_kind(span->type) != TKV_CODE_TRELLIS) {
        tkv_kernels_scalar.encode(span, x, row_stride, page);
        return;
    }
    tkv_rotated_row in;
    tkv_row_codes row;
    for (int i = 0; i < span->n_rows; i++, x += row_stride) {
        if (tkv_begin_row(span->head_dim, x, &in, &row)) {
            search_row(span->type, span->effort, &in, &row);
            tkv_end_row(span->type, &in, &row);
        }
        tkv_pack_slot(span->type, span->order, span->head_dim, span->first_slot + i, &row, page);
    }
}

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    if (span->type == TKV_TYPE_F16) {
        encode_halves(span, x, row_stride, page);
        return;
    }
    lane_rows rows;
    for (int i = 0; i < span->n_rows; i += V_LANES, x += V_LANES * row_stride) {
        const int n = span->n_rows - i < V_LANES ? span->n_rows - i : V_LANES;
        const int slot = span->first_slot + i;
        vfloat largest = v_set(0.0f);
        bool is_ordinary = n >= MIN_LANE_ROWS;
        if (is_ordinary) {
            load_lanes(span->head_dim, n, x, row_stride, &rows);
            is_ordinary = are_ordinary(span->head_dim, &rows);
        }
        if (is_ordinary) {
            rotate_lanes(span->head_dim, &rows);
            largest = largest_of_rows(span->head_dim, &rows);
            is_ordinary = v_minimum(largest) >= SMALLEST_ROW;
        }
        if (is_ordinary) {
            encode_rotated(span, slot, n, largest, &rows, page);
        } else {
            const tkv_page_span part = {span->type, span->order, span->head_dim,
                                        slot,       n,           span->effort};
            encode_row_by_row(&part, x, row_stride, page);
        }
    }
}

#endif
