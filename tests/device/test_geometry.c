/* Where tokens lie, against places that are filled one by one. */
#include "device/geometry.h"
#include "support/support.h"

enum { MAX_HEAD = 210, MAX_PLACE = 450 };

typedef struct walk {
    int block;
    int slot;
} walk;

/* Where the place after that of `at` goes: to a new block if this one is full or the head ends. */
static walk next_of(walk at, int head, int place)
{
    const bool is_full = at.slot + 1 == TKV_PAGE_TOKENS;
    return is_full || place + 1 == head ? (walk){at.block + 1, 0} : (walk){at.block, at.slot + 1};
}

static void places_fill_blocks_in_order(void **state)
{
    (void)state;
    for (int head = 0; head <= MAX_HEAD; head++) {
        walk at = {0, 0};
        for (int place = 0; place < MAX_PLACE; place++) {
            assert_int_equal(tkv_block_of_place(head, place), at.block);
            assert_int_equal(tkv_block_place(head, at.block), place - at.slot);
            assert_int_equal(at.block < tkv_head_blocks(head), place < head);
            at = next_of(at, head, place);
        }
    }
}

/* The slots of all blocks together are the places, each once. */
static void slots_of_blocks_are_the_places(void **state)
{
    (void)state;
    for (int head = 0; head <= MAX_HEAD; head += 7) {
        for (int begin = 0; begin < MAX_PLACE; begin += 13) {
            for (int end = begin; end < MAX_PLACE; end += 11) {
                int next = begin;
                int n_touched = 0;
                for (int block = 0; block < 12; block++) {
                    const tkv_slots slots = tkv_slots_of_places(head, block, begin, end);
                    assert_true(slots.first <= slots.end);
                    if (slots.first < slots.end) {
                        assert_true(slots.first >= 0 && slots.end <= TKV_PAGE_TOKENS);
                        assert_int_equal(tkv_block_place(head, block) + slots.first, next);
                        next += slots.end - slots.first;
                        n_touched++;
                    }
                }
                assert_int_equal(next, end);
                assert_true(n_touched <= tkv_most_blocks(head, end - begin));
            }
        }
    }
}

static void pages_have_whole_rows(void **state)
{
    (void)state;
    for (int whole = 1; whole <= TKV_PAGE_TOKENS; whole++) {
        for (int filled = 0; filled <= whole; filled++) {
            const int n_slots = tkv_exact_slots(filled, whole, TKV_EXACT_ROWS);
            assert_true(n_slots >= filled && n_slots <= whole);
            assert_true(n_slots % TKV_EXACT_ROWS == 0 || n_slots == whole);
            assert_true(n_slots - filled < TKV_EXACT_ROWS);
        }
    }
    assert_int_equal(tkv_stored_page_bytes(TKV_TYPE_F16, 80, 48), 48 * 80 * 2);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        assert_int_equal(tkv_stored_page_bytes(type, 80, TKV_PAGE_TOKENS),
                         tkv_page_bytes((tkv_type)type, 80));
    }
}

/* Keys and values of the heads in turn, without a gap. */
static void pages_follow_each_other(void **state)
{
    (void)state;
    const size_t bytes[2] = {640, 96};
    size_t offset = 0;
    for (int page = 0; page < 10; page++) {
        assert_int_equal(tkv_page_offset(page / 2, page % 2, bytes[0], bytes[1]), offset);
        offset += bytes[page % 2];
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_fill_blocks_in_order),
        cmocka_unit_test(slots_of_blocks_are_the_places),
        cmocka_unit_test(pages_have_whole_rows),
        cmocka_unit_test(pages_follow_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
