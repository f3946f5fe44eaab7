/* The levels that the CUDA kernels unpack from pages (src/device/cuda/base/unpack.cuh), run on
 * the host with the same shifts, masks and look-ups, against the rows that the reference decodes.
 */
#include "device/cuda/base/unpack.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <vector>

extern "C" {
#include "base/half.h"
#include "format/codec.h"

#include <cmocka.h>
}

using namespace tkv_cuda;

static const int slots = TKV_PAGE_TOKENS;
/* A scale field of 64: rows are then their levels, but for the start bits of a trellis. */
static const uint16_t unit_scale = 0x5400;

struct page {
    tkv_type type;
    tkv_page_order order;
    int head_dim;
    std::vector<uint32_t> words;
    std::vector<float> rows; /* [slots][head_dim] levels by the reference */

    const uint16_t *fields() const
    {
        return (const uint16_t *)(words.data() + words.size() - slots / 2);
    }

    /* Word w of group b of a plane, of the place (slot or coordinate) that does not run in words.
     */
    uint32_t word(int plane, int b, int w, int place) const
    {
        const int n_places = order == TKV_ORDER_KEY ? slots : head_dim;
        size_t at = plane == 0 ? 0 : (size_t)head_dim * tkv_type_plane_bits(type, 0) * slots / 32;
        at += (size_t)(b * tkv_type_plane_bits(type, plane) + w) * n_places + place;
        return words[at];
    }
};

static page make_page(tkv_type type, tkv_page_order order, int head_dim, uint32_t seed)
{
    page p = {type, order, head_dim, std::vector<uint32_t>(tkv_page_bytes(type, head_dim) / 4),
              std::vector<float>((size_t)slots * head_dim)};
    for (uint32_t &word : p.words) {
        seed = seed * 1664525u + 1013904223u;
        word = seed ^ seed >> 15;
    }
    uint16_t *fields = (uint16_t *)(p.words.data() + p.words.size() - slots / 2);
    for (int t = 0; t < slots; t++) {
        const bool is_trellis = tkv_type_kind(type) == TKV_CODE_TRELLIS;
        fields[t] = is_trellis ? unit_scale | (fields[t] & 0x801f) : unit_scale;
        tkv_row_codes row;
        float *y = &p.rows[(size_t)t * head_dim];
        tkv_unpack_slot(type, order, head_dim, t, p.words.data(), &row);
        tkv_dequantise_row(type, head_dim, &row, y);
        for (int j = 0; j < head_dim; j++) {
            y[j] /= tkv_half_to_float(is_trellis ? fields[t] & 0x7fff : fields[t]) / TKV_LEVEL_UNIT;
        }
    }
    return p;
}

/* Level of byte n of a quad; 16 levels are the sum of two tables and one (unpack.cuh). */
template <int Type, int Quads>
static int level_of(const uint32_t (&quads)[type_traits<Type>::n_tables][Quads], int quad, int n)
{
    int level = type_traits<Type>::n_tables - 1;
    for (int table = 0; table < type_traits<Type>::n_tables; table++) {
        level += (int8_t)(quads[table][quad] >> (8 * n));
    }
    return level;
}

static void check_level(int found, float expected)
{
    assert_true(fabsf(expected - (float)found) < 0.01f);
}

template <int Type> static trellis_pairs key_pairs(const page &p, int b, int slot)
{
    if (!type_traits<Type>::is_trellis) {
        return {};
    }
    const uint32_t before =
        b ? p.word(1, b - 1, 0, slot) : path_before(start_bits(p.fields()[slot]));
    return trellis_pair_up(trellis_key_bits(before, p.word(1, b, 0, slot)));
}

/* The path word of a coordinate, or of one before the first, where the start bits are. */
static uint32_t path_word(const page &p, int b, int j)
{
    if (j >= 0) {
        return p.word(1, b, 0, j);
    }
    uint32_t word = 0;
    for (int t = 0; t < 32; t++) {
        word |= (path_before(start_bits(p.fields()[32 * b + t])) >> (32 + j) & 1u) << t;
    }
    return word;
}

template <int Type> static trellis_pairs value_pairs(const page &p, int b, int j)
{
    if (!type_traits<Type>::is_trellis) {
        return {};
    }
    return trellis_pair_up(trellis_taps(
        path_word(p, b, j), path_word(p, b, j - 1), path_word(p, b, j - 2), path_word(p, b, j - 3),
        path_word(p, b, j - 6), path_word(p, b, j - 7), path_word(p, b, j - 8)));
}

/* The words of a group's planes but for a trellis' path, or the share of half i of it. */
template <int Type> static void lane_share(const page &p, int b, int place, int i, uint32_t *words)
{
    int n = 0;
    for (int plane = 0; plane < type_traits<Type>::n_planes - type_traits<Type>::is_trellis;
         plane++) {
        const int bits = type_traits<Type>::plane_bits(plane);
        const bool is_cut = i >= 0 && bits > 1;
        for (int w = 0; w < (is_cut ? bits / 2 : bits); w++) {
            words[n++] = p.word(plane, b, w + (is_cut ? i * bits / 2 : 0), place);
        }
    }
}

template <int Type> static void check_group(const page &p, int b, int place)
{
    const bool is_key = p.order == TKV_ORDER_KEY;
    const trellis_pairs pairs =
        is_key ? key_pairs<Type>(p, b, place) : value_pairs<Type>(p, b, place);
    const level_tables<Type> tables = make_level_tables<Type>();
    const auto expected = [&](int code) {
        const int other = 32 * b + code;
        return p
            .rows[is_key ? (size_t)place * p.head_dim + other : (size_t)other * p.head_dim + place];
    };
    uint32_t words[8];
    uint32_t whole[type_traits<Type>::n_tables][8];
    lane_share<Type>(p, b, place, -1, words);
    unpack_group<Type>(tables, words, pairs, whole);
    for (int at = 0; at < 32; at++) {
        check_level(level_of<Type>(whole, at / 4, at % 4),
                    expected(code_of_quad<Type>(at / 4, at % 4)));
    }
    uint32_t levels[8];
    unpack_levels<Type>(words, pairs, levels);
    for (int at = 0; at < 32; at++) {
        check_level((int8_t)(levels[at / 4] >> (8 * (at % 4))),
                    expected(code_of_quad<Type>(at / 4, at % 4)));
    }
    for (int i = 0; i < 2; i++) {
        uint32_t half[type_traits<Type>::n_tables][4];
        lane_share<Type>(p, b, place, i, words);
        unpack_half<Type>(make_half_tables<Type>(i), words, pairs, share_of_half(i), half);
        for (int at = 0; at < 16; at++) {
            check_level(level_of<Type>(half, at / 4, at % 4),
                        expected(code_of_half_quad<Type>(i, at / 4, at % 4)));
        }
    }
}

template <int Type> static void check_type(void **state)
{
    (void)state;
    if constexpr (has_byte_products(Type)) {
        for (int head_dim : {64, 128}) {
            for (tkv_page_order order : {TKV_ORDER_KEY, TKV_ORDER_VALUE}) {
                const page p = make_page((tkv_type)Type, order, head_dim, 17u * Type + head_dim);
                const int n_groups = order == TKV_ORDER_KEY ? head_dim / 32 : slots / 32;
                const int n_places = order == TKV_ORDER_KEY ? slots : head_dim;
                for (int b = 0; b < n_groups; b++) {
                    for (int place = 0; place < n_places; place++) {
                        check_group<Type>(p, b, place);
                    }
                }
            }
        }
    }
}

int main(void)
{
#define TKV_TEST_OF_TYPE(id, ...) cmocka_unit_test(check_type<TKV_TYPE_##id>),
    const struct CMUnitTest tests[] = {TKV_CODED_TYPES(TKV_TEST_OF_TYPE)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
