#include "format/codec.h"
#include "support/support.h"

static void fill_codes(tkv_type type, int head_dim, uint64_t *seed, tkv_row_codes *row)
{
    const int n_codes = 1 << tkv_type_get_info(type)->code_bits;
    memset(row, 0, sizeof *row);
    for (int j = 0; j < head_dim; j++) {
        row->codes[j] = (uint8_t)random_below(seed, n_codes);
    }
    for (int f = 0; f < tkv_type_get_info(type)->side_fields; f++) {
        row->side[f] = (uint16_t)random_bits(seed);
    }
}

static void assert_same_codes(int head_dim, const tkv_row_codes *a, const tkv_row_codes *b)
{
    assert_memory_equal(a->codes, b->codes, (size_t)head_dim);
    assert_memory_equal(a->side, b->side, sizeof a->side);
}

/* Every slot in random order; each keeps what was written to it. */
static void slots_do_not_disturb_each_other(void **state)
{
    (void)state;
    static tkv_row_codes rows[TKV_PAGE_TOKENS];
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = 1; type < TKV_TYPE_COUNT; type++) {
            for (int order = 0; order < 2; order++) {
                const int head_dim = page_head_dims[d];
                uint64_t seed = (uint64_t)(100 * d + 10 * type + order);
                uint8_t *page = allocate(tkv_page_bytes((tkv_type)type, head_dim));
                for (int write = 0; write < 3 * TKV_PAGE_TOKENS; write++) {
                    const int slot =
                        write < TKV_PAGE_TOKENS ? write : random_below(&seed, TKV_PAGE_TOKENS);
                    fill_codes((tkv_type)type, head_dim, &seed, &rows[slot]);
                    tkv_pack_slot((tkv_type)type, (tkv_page_order)order, head_dim, slot,
                                  &rows[slot], page);
                }
                for (int slot = 0; slot < TKV_PAGE_TOKENS; slot++) {
                    tkv_row_codes row;
                    tkv_unpack_slot((tkv_type)type, (tkv_page_order)order, head_dim, slot, page,
                                    &row);
                    assert_same_codes(head_dim, &row, &rows[slot]);
                }
                free(page);
            }
        }
    }
}

/* All codes at their largest fill every bit of a page and of a record: nothing is padding. */
static void a_full_page_has_no_padding(void **state)
{
    (void)state;
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = 1; type < TKV_TYPE_COUNT; type++) {
            const int head_dim = page_head_dims[d];
            tkv_row_codes row;
            memset(&row, 0xff, sizeof row);
            const size_t row_bytes = tkv_row_bytes((tkv_type)type, head_dim);
            uint8_t *page = allocate(TKV_PAGE_TOKENS * row_bytes);
            for (int order = 0; order < 2; order++) {
                memset(page, 0, TKV_PAGE_TOKENS * row_bytes);
                for (int slot = 0; slot < TKV_PAGE_TOKENS; slot++) {
                    tkv_pack_slot((tkv_type)type, (tkv_page_order)order, head_dim, slot, &row,
                                  page);
                }
                for (size_t i = 0; i < TKV_PAGE_TOKENS * row_bytes; i++) {
                    assert_int_equal(page[i], 0xff);
                }
            }
            tkv_pack_row((tkv_type)type, head_dim, &row, page);
            for (size_t i = 0; i < row_bytes; i++) {
                assert_int_equal(page[i], 0xff);
            }
            free(page);
        }
    }
}

static void records_keep_codes(void **state)
{
    (void)state;
    for (int head_dim = 32; head_dim <= 1024; head_dim += 16) {
        for (int type = 1; type < TKV_TYPE_COUNT; type++) {
            uint64_t seed = (uint64_t)(head_dim + type);
            tkv_row_codes row;
            tkv_row_codes back;
            uint8_t *record = allocate(tkv_row_bytes((tkv_type)type, head_dim));
            fill_codes((tkv_type)type, head_dim, &seed, &row);
            tkv_pack_row((tkv_type)type, head_dim, &row, record);
            tkv_unpack_row((tkv_type)type, head_dim, record, &back);
            assert_same_codes(head_dim, &row, &back);
            free(record);
        }
    }
}

static uint32_t bit_of(tkv_type type, tkv_page_order order, int head_dim, int slot, int coordinate,
                       uint8_t code, size_t *word)
{
    uint32_t *page = allocate(tkv_page_bytes(type, head_dim));
    tkv_row_codes row;
    memset(&row, 0, sizeof row);
    row.codes[coordinate] = code;
    tkv_pack_slot(type, order, head_dim, slot, &row, page);
    uint32_t found = 0;
    for (size_t i = 0; i < tkv_page_bytes(type, head_dim) / 4; i++) {
        if (page[i]) {
            assert_int_equal(found, 0);
            found = page[i];
            *word = i;
        }
    }
    free(page);
    return found;
}

/* The worked examples of docs/FORMAT.md. */
static void places_are_as_documented(void **state)
{
    (void)state;
    size_t word;
    /* turbo4, key: coordinate 37 = block 1, c 5 = nibble 1, word 1 */
    assert_int_equal(bit_of(TKV_TYPE_TURBO4, TKV_ORDER_KEY, 128, 9, 37, 15, &word), 0xf0);
    assert_int_equal(word, (1 * 4 + 1) * 64 + 9);
    /* turbo3, key: low plane word 1 of block 1, bits 2-3 of nibble 1 for c = 7 */
    assert_int_equal(bit_of(TKV_TYPE_TURBO3, TKV_ORDER_KEY, 128, 9, 39, 3, &word), 0xc0);
    assert_int_equal(word, (1 * 2 + 1) * 64 + 9);
    /* its high bit: plane 1 begins after 128 * 2 * 64 / 32 words */
    assert_int_equal(bit_of(TKV_TYPE_TURBO3, TKV_ORDER_KEY, 128, 9, 39, 4, &word), 1u << 7);
    assert_int_equal(word, 512 + 1 * 64 + 9);
    /* turbo3, value: token 39 = half 1, t 7 */
    assert_int_equal(bit_of(TKV_TYPE_TURBO3, TKV_ORDER_VALUE, 128, 39, 9, 3, &word), 0xc0);
    assert_int_equal(word, (1 * 2 + 1) * 128 + 9);
    /* tail of head_dim 80: coordinate 64 + 6, two bits: half-word 1, nibble 1, bits 0-1 */
    assert_int_equal(bit_of(TKV_TYPE_TURBO2, TKV_ORDER_KEY, 80, 5, 70, 3, &word), 3u << 20);
    assert_int_equal(word, 2 * 2 * 64 + 5);
    /* tail with one bit: token 37 shares a word with token 5 */
    assert_int_equal(bit_of(TKV_TYPE_TURBO3, TKV_ORDER_KEY, 80, 37, 70, 4, &word), 1u << 22);
    assert_int_equal(word, 80 * 2 * 64 / 32 + 2 * 64 + 5);
}

static void pages_and_rows_decode_alike(void **state)
{
    (void)state;
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            const int head_dim = page_head_dims[d];
            const size_t n = 64 * (size_t)head_dim;
            uint64_t seed = 2;
            float *x = allocate(n * sizeof *x);
            float *from_rows = allocate(n * sizeof *x);
            float *from_page = allocate(n * sizeof *x);
            uint8_t *bytes = allocate(tkv_page_bytes((tkv_type)type, head_dim));
            fill_gauss(&seed, n, x);
            assert_ok(tkv_encode_rows(NULL, (tkv_type)type, head_dim, 64, x, bytes, &error));
            assert_ok(
                tkv_decode_rows(NULL, (tkv_type)type, head_dim, 64, bytes, from_rows, &error));
            for (int order = 0; order < 2; order++) {
                assert_ok(tkv_encode_page(NULL, (tkv_type)type, (tkv_page_order)order, head_dim, 0,
                                          40, x, bytes, &error));
                assert_ok(tkv_encode_page(NULL, (tkv_type)type, (tkv_page_order)order, head_dim, 40,
                                          24, x + 40 * head_dim, bytes, &error));
                assert_ok(tkv_decode_page(NULL, (tkv_type)type, (tkv_page_order)order, head_dim, 0,
                                          64, bytes, from_page, &error));
                assert_memory_equal(from_rows, from_page, n * sizeof *x);
            }
            free(x);
            free(from_rows);
            free(from_page);
            free(bytes);
        }
    }
}

static void sizes_and_errors(void **state)
{
    (void)state;
    float x[64] = {0};
    uint32_t page[4096];
    assert_int_equal(tkv_row_bytes(TKV_TYPE_TURBO3, 128), 50);
    assert_int_equal(tkv_page_bytes(TKV_TYPE_TURBO3, 128), 3200);
    assert_int_equal(tkv_row_bytes(TKV_TYPE_TURBO4, 80), 42);
    assert_int_equal(tkv_row_bytes(TKV_TYPE_TURBO4, 81), 0);
    assert_int_equal(tkv_page_bytes((tkv_type)99, 128), 0);
    assert_true(tkv_bits_per_value(TKV_TYPE_TURBO2, 128) == 2.125);
    assert_true(tkv_bits_per_value(TKV_TYPE_F16, 96) == 16.0);
    assert_null(tkv_type_get_info((tkv_type)-1));
    tkv_type type;
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        assert_ok(tkv_type_from_name(tkv_type_get_info((tkv_type)i)->name, &type, &error));
        assert_int_equal(type, i);
    }
    assert_fails(tkv_type_from_name("q4_0", &type, &error), TKV_ERR_INVALID_ARGUMENT,
                 "f16, turbo8, turbo4, turbo3, turbo2");
    assert_fails(tkv_encode_rows(NULL, (tkv_type)99, 64, 1, x, page, &error),
                 TKV_ERR_INVALID_ARGUMENT, "type number 99");
    assert_fails(tkv_decode_rows(NULL, TKV_TYPE_F16, 41, 1, page, x, &error),
                 TKV_ERR_INVALID_ARGUMENT, "head_dim 41");
    assert_fails(tkv_encode_page(NULL, TKV_TYPE_F16, TKV_ORDER_KEY, 64, 60, 5, x, page, &error),
                 TKV_ERR_INVALID_ARGUMENT, "0 to 63");
    assert_fails(tkv_encode_page(NULL, TKV_TYPE_F16, TKV_ORDER_KEY, 64, -1, 1, x, page, &error),
                 TKV_ERR_INVALID_ARGUMENT, "0 to 63");
    assert_fails(tkv_encode_page(NULL, TKV_TYPE_TURBO4, TKV_ORDER_KEY, 64, 0, 1, x,
                                 (uint8_t *)page + 2, &error),
                 TKV_ERR_INVALID_ARGUMENT, "multiple of 4");
    assert_fails(tkv_decode_page(NULL, TKV_TYPE_TURBO4, TKV_ORDER_KEY, 64, 0, 1,
                                 (uint8_t *)page + 1, x, &error),
                 TKV_ERR_INVALID_ARGUMENT, "multiple of 4");
    assert_fails(tkv_decode_page(NULL, TKV_TYPE_F16, (tkv_page_order)2, 64, 0, 1, page, x, &error),
                 TKV_ERR_INVALID_ARGUMENT, "page order 2");
    assert_fails(tkv_encode_rows(NULL, TKV_TYPE_F16, 64, 1, NULL, page, &error),
                 TKV_ERR_INVALID_ARGUMENT, "NULL");
    assert_int_equal(tkv_encode_rows(NULL, TKV_TYPE_F16, 64, 1, NULL, page, NULL),
                     TKV_ERR_INVALID_ARGUMENT);
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", TKV_VERSION_MAJOR, TKV_VERSION_MINOR,
             TKV_VERSION_PATCH);
    assert_string_equal(tkv_version(), version);
    assert_string_equal(tkv_status_name(TKV_ERR_OUT_OF_MEMORY), "out of memory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(slots_do_not_disturb_each_other),
                                       cmocka_unit_test(a_full_page_has_no_padding),
                                       cmocka_unit_test(records_keep_codes),
                                       cmocka_unit_test(places_are_as_documented),
                                       cmocka_unit_test(pages_and_rows_decode_alike),
                                       cmocka_unit_test(sizes_and_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
