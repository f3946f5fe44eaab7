/* What slots hold after they were written, written again, aged, copied, moved and cleared; memory;
 * what is refused. */
#include "store_model.h"

enum { DIM = 64, N_HEADS = 2, ROW = N_HEADS * DIM, N_SLOTS = 640 };

static store_shape base_shape(tkv_type type)
{
    return (store_shape){.type_k = type,
                         .type_v = type,
                         .dim_k = DIM,
                         .dim_v = DIM,
                         .n_kv_heads = N_HEADS,
                         .group = 1,
                         .n_slots = N_SLOTS};
}

/* What a row of keys becomes when it is coded from floats, or from halves. */
static void code_row(tkv_type type, bool from_halves, const float *x, float *coded)
{
    uint8_t record[8 * DIM];
    uint16_t halves[DIM];
    float exact[DIM];
    for (int head = 0; head < N_HEADS; head++) {
        tkv_floats_to_halves(DIM, x + head * DIM, halves);
        tkv_halves_to_floats(DIM, halves, exact);
        assert_ok(tkv_encode_rows(NULL, type, DIM, 1, from_halves ? exact : x + head * DIM, record,
                                  &error));
        assert_ok(tkv_decode_rows(NULL, type, DIM, 1, record, coded + head * DIM, &error));
    }
}

static void assert_row(const float *held, int64_t slot, const float *expected)
{
    assert_memory_equal(held + slot * ROW, expected, ROW * sizeof *expected);
}

/* Rows in random order, some slots more than once: the last row of a slot counts. */
static void any_order_and_again(void **state)
{
    for (int type = 0; type <= TKV_TYPE_TURBO2; type++) {
        const store_shape s = base_shape((tkv_type)type);
        tkv_store *store = create_store(*state, &s);
        uint64_t seed = 1;
        enum { N = 900 };
        float *k = random_rows(&seed, N, N_HEADS, DIM);
        float *v = random_rows(&seed, N, N_HEADS, DIM);
        int64_t slots[N];
        int last[N_SLOTS];
        memset(last, -1, sizeof last);
        for (int i = 0; i < N; i++) {
            slots[i] = i % 100 ? random_below(&seed, N_SLOTS) : i ? slots[i - 1] : 0;
            slots[i] = i % 7 && i && slots[i - 1] + 1 < N_SLOTS ? slots[i - 1] + 1 : slots[i];
            last[slots[i]] = i;
        }
        for (int done = 0, n; done < N; done += n) {
            n = N - done < 333 ? N - done : 333;
            assert_ok(tkv_store_write(store, n, slots + done, k + (size_t)done * ROW, NULL,
                                      v + (size_t)done * ROW, NULL, &error));
        }
        held_rows rows = read_all(store, &s);
        const float zeros[ROW] = {0};
        float coded[ROW];
        for (int t = 0; t < N_SLOTS; t++) {
            const float *x = last[t] < 0 ? NULL : k + (size_t)last[t] * ROW;
            if (x) {
                code_row((tkv_type)type, false, x, coded);
            }
            assert_row(rows.k, t, x ? coded : zeros);
        }
        free_rows(&rows);
        free(k);
        free(v);
        tkv_store_free(store);
    }
}

/* Halves and bfloat16 with strides, keys and values one after the other. */
static void elements(void **state)
{
    const store_shape s = base_shape(TKV_TYPE_F16);
    tkv_store *store = create_store(*state, &s);
    enum { N = 100, STRIDE = 3 * ROW };
    uint16_t *k = allocate(N * STRIDE * sizeof *k);
    int64_t slots[N];
    uint64_t seed = 2;
    for (int i = 0; i < N * STRIDE; i++) {
        k[i] = (uint16_t)(0x3c00 + random_below(&seed, 0x400)); /* 1 to 2 as halves */
    }
    for (int i = 0; i < N; i++) {
        slots[i] = 3 * i + 5;
    }
    const tkv_layout layout = {TKV_ELEMENT_F16, 0, STRIDE, DIM};
    assert_ok(tkv_store_write(store, N, slots, k, &layout, NULL, NULL, &error));
    uint16_t *back = allocate(N * STRIDE * sizeof *back);
    assert_ok(tkv_store_read(store, N, slots, back, &layout, NULL, NULL, &error));
    for (int i = 0; i < N; i++) {
        assert_memory_equal(back + i * STRIDE, k + i * STRIDE, ROW * sizeof *k);
    }
    /* As bfloat16, the same bits are 0.0078 to 0.03, with eight bits: halves hold them. */
    const tkv_layout brain = {TKV_ELEMENT_BF16, 0, STRIDE, DIM};
    assert_ok(tkv_store_write(store, N, slots, k, &brain, k, &brain, &error));
    assert_ok(tkv_store_read(store, N, slots, NULL, NULL, back, &brain, &error));
    for (int i = 0; i < N; i++) {
        assert_memory_equal(back + i * STRIDE, k + i * STRIDE, ROW * sizeof *k);
    }
    free(k);
    free(back);
    tkv_store_free(store);
}

/* Rows of keys in slot t are exact, or coded from halves. */
static void assert_kept(const float *held, const float *written, tkv_type type, int64_t slot,
                        bool is_exact)
{
    float expected[ROW];
    code_row(is_exact ? TKV_TYPE_F16 : type, true, written + slot * ROW, expected);
    assert_row(held, slot, expected);
}

/* The newest rows of a region are exact, and its first ones; a page is coded when all of its rows
 * are older. The same whether rows come one by one or together. */
static void rows_age(void **state)
{
    enum { N_EXACT = 100, REGION = N_SLOTS / 2 };
    const int steps[] = {1, 7, 64, N_SLOTS};
    for (int i = 0; i < 4; i++) {
        store_shape s = base_shape(TKV_TYPE_TURBO3);
        s.n_regions = 2;
        s.n_exact = N_EXACT;
        s.n_exact_first = 5;
        tkv_store *store = create_store(*state, &s);
        uint64_t seed = 3;
        float *k = random_rows(&seed, N_SLOTS, N_HEADS, DIM);
        int64_t slots[N_SLOTS];
        for (int t = 0; t < N_SLOTS; t++) {
            slots[t] = t;
        }
        for (int done = 0, n; done < N_SLOTS; done += n) {
            n = N_SLOTS - done < steps[i] ? N_SLOTS - done : steps[i];
            assert_ok(tkv_store_write(store, n, slots + done, k + (size_t)done * ROW, NULL,
                                      k + (size_t)done * ROW, NULL, &error));
        }
        held_rows rows = read_all(store, &s);
        for (int t = 0; t < N_SLOTS; t++) {
            const int in_region = t % REGION;
            const int page_end = in_region / TKV_PAGE_TOKENS * TKV_PAGE_TOKENS + TKV_PAGE_TOKENS;
            const bool is_exact = in_region < 5 || page_end > REGION - N_EXACT;
            assert_kept(rows.k, k, s.type_k, t, is_exact);
            assert_kept(rows.v, k, s.type_k, t, is_exact);
        }
        free_rows(&rows);

        assert_ok(tkv_store_age(store, REGION - 10, 20, &error));
        rows = read_all(store, &s);
        for (int t = REGION - 20; t < REGION + 20; t++) {
            const int in_region = t % REGION;
            const bool is_exact = t < REGION ? in_region < REGION - 10 : in_region < 5;
            assert_kept(rows.k, k, s.type_k, t, is_exact);
        }
        free_rows(&rows);
        free(k);
        tkv_store_free(store);
    }
}

/* A slot of a coded page that is written again is exact, its neighbours stay as they are, until it
 * has aged too. */
static void slots_are_used_again(void **state)
{
    store_shape s = base_shape(TKV_TYPE_TURBO4);
    s.n_exact = 64;
    tkv_store *store = create_store(*state, &s);
    write_slots(store, &s, 1, 0, 300);
    held_rows before = read_all(store, &s);
    uint64_t seed = 8;
    float *k = random_rows(&seed, 1, N_HEADS, DIM);
    const int64_t slot = 20;
    assert_ok(tkv_store_write(store, 1, &slot, k, NULL, k, NULL, &error));
    held_rows after = read_all(store, &s);
    float expected[ROW];
    code_row(TKV_TYPE_F16, true, k, expected);
    assert_row(after.k, slot, expected);
    memcpy(before.k + slot * ROW, expected, sizeof expected);
    assert_memory_equal(after.k, before.k, 256 * ROW * sizeof *before.k);
    free_rows(&after);
    write_slots(store, &s, 2, 300, 64);
    after = read_all(store, &s);
    code_row(TKV_TYPE_TURBO4, true, k, expected);
    assert_row(after.k, slot, expected);
    free_rows(&before);
    free_rows(&after);
    free(k);
    tkv_store_free(store);
}

/* Copies in any direction, overlapping or not, within a store and between two, are as if rows had
 * been copied at once. Exact rows that come age in their new place. */
static void copies(void **state)
{
    uint64_t seed = 4;
    for (int i = 0; i < 60; i++) {
        store_shape s = base_shape(i % 2 ? TKV_TYPE_TRELLIS3 : TKV_TYPE_TURBO4Q);
        s.n_exact = i % 3 ? 0 : N_SLOTS * 4; /* rows never age */
        tkv_store *store = create_store(*state, &s);
        tkv_store *other = i % 5 ? store : create_store(*state, &s);
        write_slots(store, &s, 1, 10, 500);
        assert_ok(tkv_store_clear(store, 200, random_below(&seed, 100), &error));
        if (i % 3 == 0) {
            assert_ok(tkv_store_age(store, 64, 200, &error));
        }
        const int step = i % 4 ? 1 : 64;
        const int n = 1 + random_below(&seed, 400);
        const int from = random_below(&seed, (N_SLOTS - n) / step + 1) * step;
        const int to = random_below(&seed, (N_SLOTS - n) / step + 1) * step;
        held_rows before = read_all(store, &s);
        held_rows expected = read_all(other, &s);
        assert_ok(tkv_store_copy(other, to, store, from, n, &error));
        memmove(expected.k + (size_t)to * ROW, before.k + (size_t)from * ROW,
                (size_t)n * ROW * sizeof(float));
        memmove(expected.v + (size_t)to * ROW, before.v + (size_t)from * ROW,
                (size_t)n * ROW * sizeof(float));
        held_rows after = read_all(other, &s);
        assert_memory_equal(after.k, expected.k, N_SLOTS * ROW * sizeof(float));
        assert_memory_equal(after.v, expected.v, N_SLOTS * ROW * sizeof(float));
        free_rows(&before);
        free_rows(&expected);
        free_rows(&after);
        if (other != store) {
            tkv_store_free(other);
        }
        tkv_store_free(store);
    }
}

/* Whole pages are shared until one side writes, clears, ages or shifts. */
static void pages_are_shared(void **state)
{
    store_shape s = base_shape(TKV_TYPE_TURBO2);
    s.n_exact = 64;
    s.n_regions = 2;
    tkv_store *store = create_store(*state, &s);
    write_slots(store, &s, 1, 0, 256);
    const size_t before = tkv_store_bytes(store);
    held_rows rows = read_all(store, &s);
    assert_ok(tkv_store_copy(store, 320, store, 0, 192, &error));
    assert_true(tkv_store_shared_bytes(store) > 0);
    held_rows copied = read_all(store, &s);
    assert_memory_equal(copied.k + 320 * ROW, rows.k, 192 * ROW * sizeof(float));
    free_rows(&copied);
    write_slots(store, &s, 2, 321, 1);
    assert_ok(tkv_store_clear(store, 384, 64, &error));
    assert_ok(tkv_store_clear(store, 448, 3, &error));
    copied = read_all(store, &s);
    assert_memory_equal(copied.k, rows.k, 256 * ROW * sizeof(float));
    assert_memory_not_equal(copied.k + 321 * ROW, rows.k + ROW, ROW * sizeof(float));
    assert_memory_equal(copied.k + 322 * ROW, rows.k + 2 * ROW, 62 * ROW * sizeof(float));
    free_rows(&copied);
    free_rows(&rows);
    assert_ok(tkv_store_clear(store, 320, 320, &error));
    assert_int_equal(tkv_store_bytes(store), before);
    assert_int_equal(tkv_store_shared_bytes(store), 0);
    tkv_store_free(store);
}

/* Rows shifted read as if their keys had been made there; what is written later is not. */
static void shifts(void **state)
{
    float frequencies[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) {
        frequencies[i] = powf(10.0f, -(float)i / 16.0f);
    }
    const tkv_rope rope = {false, DIM, frequencies};
    store_shape s = base_shape(TKV_TYPE_TURBO8);
    s.rope = &rope;
    tkv_store *store = create_store(*state, &s);
    write_slots(store, &s, 1, 0, 200);
    held_rows rows = read_all(store, &s);
    int32_t deltas[N_SLOTS];
    for (int t = 0; t < N_SLOTS; t++) {
        deltas[t] = t % 5 ? 3 : 0;
    }
    assert_ok(tkv_store_shift(store, 0, N_SLOTS, deltas, &error));
    held_rows shifted = read_all(store, &s);
    for (int t = 0; t < 200; t++) {
        for (int j = 0; j < DIM / 2; j++) {
            const double angle = (double)deltas[t] * (double)frequencies[j];
            const float *key = rows.k + t * ROW + DIM;
            const double x = (double)key[j] * cos(angle) - (double)key[j + DIM / 2] * sin(angle);
            assert_true(fabs((double)shifted.k[t * ROW + DIM + j] - x) < 1e-5);
        }
    }
    assert_memory_equal(shifted.v, rows.v, N_SLOTS * ROW * sizeof(float));
    free_rows(&shifted);
    for (int t = 0; t < N_SLOTS; t++) {
        deltas[t] = -deltas[t];
    }
    assert_ok(tkv_store_copy(store, 320, store, 0, 200, &error));
    assert_ok(tkv_store_shift(store, 0, N_SLOTS, deltas, &error));
    shifted = read_all(store, &s);
    assert_memory_equal(shifted.k, rows.k, 200 * ROW * sizeof(float));
    free_rows(&shifted);
    write_slots(store, &s, 1, 320, 200);
    shifted = read_all(store, &s);
    assert_memory_equal(shifted.k + 320 * ROW, rows.k, 200 * ROW * sizeof(float));
    free_rows(&shifted);
    free_rows(&rows);
    tkv_store_free(store);
}

/* ---- Memory, counted and failing ---- */

typedef struct memory {
    size_t bytes;
    int until_failure; /* -1: never */
    bool has_failed;
} memory;

enum { HEADER = 256 };

static void *take(void *user, size_t bytes, size_t alignment)
{
    memory *m = user;
    assert_true(alignment <= HEADER);
    if (m->until_failure == 0) {
        m->has_failed = true;
        return NULL;
    }
    m->until_failure -= m->until_failure > 0;
    uint8_t *block = aligned_alloc(HEADER, (bytes + 2 * HEADER - 1) / HEADER * HEADER);
    assert_non_null(block);
    memcpy(block, &bytes, sizeof bytes);
    m->bytes += bytes;
    return block + HEADER;
}

static void give(void *user, void *block)
{
    memory *m = user;
    size_t bytes = 0;
    memcpy(&bytes, (uint8_t *)block - HEADER, sizeof bytes);
    m->bytes -= bytes;
    free((uint8_t *)block - HEADER);
}

static tkv_context *create_counted_context(memory *m)
{
    const tkv_allocator allocator = {take, give, m};
    const tkv_context_params params = {.n_threads = 1, .allocator = &allocator};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

static void bytes_are_true(void **state)
{
    (void)state;
    memory m = {0, -1, false};
    tkv_context *context = create_counted_context(&m);
    const size_t of_context = m.bytes;
    store_shape s = base_shape(TKV_TYPE_TURBO3);
    s.n_exact = 80;
    s.n_exact_first = 3;
    tkv_store *store = create_store(context, &s);
    assert_int_equal(tkv_store_bytes(store), m.bytes - of_context);
    for (int t = 0; t < 400; t += 9) {
        write_slots(store, &s, (uint64_t)t, t, 9);
        assert_int_equal(tkv_store_bytes(store), m.bytes - of_context);
    }
    assert_ok(tkv_store_clear(store, 30, 200, &error));
    assert_int_equal(tkv_store_bytes(store), m.bytes - of_context);
    assert_ok(tkv_store_clear(store, 0, N_SLOTS, &error));
    tkv_store *empty = create_store(context, &s);
    assert_int_equal(tkv_store_bytes(store), tkv_store_bytes(empty));
    tkv_store_free(empty);
    tkv_store_free(store);
    assert_int_equal(m.bytes, of_context);
    tkv_context_free(context);
    assert_int_equal(m.bytes, 0);
}

/* An operation that may fail for want of memory. */
typedef tkv_status (*operation)(tkv_store *store, tkv_error *error);

static float some_rows[200 * ROW];

static tkv_status write_some(tkv_store *store, tkv_error *error)
{
    int64_t slots[200];
    for (int i = 0; i < 200; i++) {
        slots[i] = 100 + i;
    }
    return tkv_store_write(store, 200, slots, some_rows, NULL, some_rows, NULL, error);
}

static tkv_status copy_some(tkv_store *store, tkv_error *error)
{
    return tkv_store_copy(store, 130, store, 3, 190, error);
}

static tkv_status share_some(tkv_store *store, tkv_error *error)
{
    return tkv_store_copy(store, 384, store, 0, 150, error);
}

static tkv_status shift_some(tkv_store *store, tkv_error *error)
{
    int32_t deltas[100];
    for (int i = 0; i < 100; i++) {
        deltas[i] = 2;
    }
    return tkv_store_shift(store, 0, 100, deltas, error);
}

static tkv_status attend_some(tkv_store *store, tkv_error *error)
{
    const tkv_slot_range range = {0, N_SLOTS};
    const tkv_slot_view view = {0, 1, 0};
    const tkv_store_attend_params params = {
        .n_queries = 1, .n_heads = N_HEADS, .views = &view, .ranges = &range, .n_ranges = 1};
    float out[ROW];
    return tkv_attend_store(store, &params, some_rows, out, error);
}

/* Distances mean turns of the store's own rope, so that only the same one takes them over. */
static void ropes_are_not_mixed(void **state)
{
    (void)state;
    const float one[DIM / 2] = {1.0f};
    const float other[DIM / 2] = {0.5f};
    const tkv_rope ropes[] = {
        {false, DIM, one}, {false, DIM, other}, {true, DIM, one}, {false, DIM - 2, one}};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_store *stores[4];
    for (int i = 0; i < 4; i++) {
        store_shape s = base_shape(TKV_TYPE_TURBO3);
        s.rope = &ropes[i];
        stores[i] = create_store(context, &s);
        if (i == 0) {
            write_slots(stores[i], &s, 1, 0, 64);
            tkv_store *twin = create_store(context, &s);
            assert_ok(tkv_store_copy(twin, 64, stores[0], 0, 64, &error));
            tkv_store_free(twin);
        } else {
            assert_fails(tkv_store_copy(stores[i], 0, stores[0], 0, 64, &error),
                         TKV_ERR_INVALID_ARGUMENT, "rope");
        }
    }
    for (int i = 0; i < 4; i++) {
        tkv_store_free(stores[i]);
    }
    tkv_context_free(context);
}

static void failures_lose_nothing(void **state)
{
    (void)state;
    const operation operations[] = {write_some, copy_some, share_some, shift_some, attend_some};
    float frequencies[DIM / 2] = {1.0f};
    const tkv_rope rope = {true, DIM, frequencies};
    memory m = {0, -1, false};
    tkv_context *context = create_counted_context(&m);
    const size_t of_context = m.bytes;
    uint64_t seed = 6;
    fill_gauss(&seed, sizeof some_rows / sizeof *some_rows, some_rows);
    for (int i = 0; i < 5; i++) {
        for (int n = 0; n >= 0; n++) {
            store_shape s = base_shape(TKV_TYPE_TURBO3);
            s.n_exact = 70;
            s.rope = &rope;
            tkv_store *store = create_store(context, &s);
            write_slots(store, &s, 1, 0, 250);
            assert_ok(tkv_store_copy(store, 448, store, 64, 64, &error));
            held_rows before = read_all(store, &s);
            m.until_failure = n;
            m.has_failed = false;
            const tkv_status status = operations[i](store, NULL);
            m.until_failure = -1;
            held_rows after = read_all(store, &s);
            if (status != TKV_OK) {
                assert_int_equal(status, TKV_ERR_OUT_OF_MEMORY);
                assert_memory_equal(before.k, after.k, N_SLOTS * ROW * sizeof(float));
                assert_memory_equal(before.v, after.v, N_SLOTS * ROW * sizeof(float));
                assert_ok(operations[i](store, &error));
            }
            assert_int_equal(tkv_store_bytes(store),
                             m.bytes - of_context + tkv_store_shared_bytes(store) / 2);
            free_rows(&before);
            free_rows(&after);
            tkv_store_free(store);
            assert_int_equal(m.bytes, of_context);
            if (!m.has_failed) {
                break;
            }
        }
    }
    for (int n = 0;; n++) {
        const tkv_store_params params = {
            .n_slots = 100, .n_kv_heads = 1, .head_dim_k = 6, .head_dim_v = 8, .rope = NULL};
        tkv_store *store = NULL;
        m.until_failure = n;
        m.has_failed = false;
        const tkv_status status = tkv_store_create(context, &params, &store, NULL);
        m.until_failure = -1;
        tkv_store_free(store);
        assert_int_equal(m.bytes, of_context);
        if (!m.has_failed) {
            assert_int_equal(status, TKV_OK);
            break;
        }
        assert_int_equal(status, TKV_ERR_OUT_OF_MEMORY);
    }
    tkv_context_free(context);
}

static void what_is_refused(void **state)
{
    const store_shape s = base_shape(TKV_TYPE_TURBO4);
    tkv_store_params params = {.n_slots = 100, .n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64};
    tkv_store *store = NULL;
    tkv_context *context = *state;
    params.n_slots = 0;
    assert_fails(tkv_store_create(context, &params, &store, &error), TKV_ERR_INVALID_ARGUMENT,
                 "n_slots 0");
    params.n_slots = 100;
    params.n_regions = 2;
    assert_fails(tkv_store_create(context, &params, &store, &error), TKV_ERR_INVALID_ARGUMENT,
                 "n_regions 2");
    params.n_regions = 0;
    params.head_dim_v = 3;
    assert_fails(tkv_store_create(context, &params, &store, &error), TKV_ERR_INVALID_ARGUMENT,
                 "head_dim 3");
    params.head_dim_v = 64;
    params.reserved[1] = 1;
    assert_fails(tkv_store_create(context, &params, &store, &error), TKV_ERR_INVALID_ARGUMENT,
                 "tkv_store_params");

    store = create_store(context, &s);
    float k[ROW] = {0};
    int64_t slot = N_SLOTS;
    assert_fails(tkv_store_write(store, 1, &slot, k, NULL, k, NULL, &error),
                 TKV_ERR_INVALID_ARGUMENT, "slot 640 of row 0");
    slot = 0;
    k[70] = NAN;
    assert_fails(tkv_store_write(store, 1, &slot, k, NULL, k, NULL, &error), TKV_ERR_NOT_FINITE,
                 "k of row 0, head 1, coordinate 6");
    const tkv_layout layout = {TKV_ELEMENT_COUNT, 0, 0, 0};
    k[70] = 0.0f;
    assert_fails(tkv_store_write(store, 1, &slot, k, &layout, k, NULL, &error),
                 TKV_ERR_INVALID_ARGUMENT, "element");
    assert_fails(tkv_store_clear(store, 600, 41, &error), TKV_ERR_INVALID_ARGUMENT, "41 slots");
    assert_fails(tkv_store_copy(store, 0, store, 600, 41, &error), TKV_ERR_INVALID_ARGUMENT,
                 "41 slots");
    const int32_t delta = 1;
    assert_fails(tkv_store_shift(store, 0, 1, &delta, &error), TKV_ERR_INVALID_ARGUMENT, "rope");

    float out[ROW];
    const tkv_slot_range range = {0, N_SLOTS + 1};
    tkv_slot_view view = {0, 1, 0};
    tkv_store_attend_params attend = {
        .n_queries = 1, .n_heads = N_HEADS, .views = &view, .ranges = &range, .n_ranges = 1};
    assert_fails(tkv_attend_store(store, &attend, k, out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "range 0");
    attend.n_ranges = 0;
    assert_fails(tkv_attend_store(store, &attend, k, out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "view 0");
    float mask[64] = {0};
    attend.mask = mask;
    attend.n_mask_slots = 64;
    assert_fails(tkv_attend_store(store, &attend, k, out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "together");
    attend.views = NULL;
    assert_ok(tkv_attend_store(store, &attend, k, out, &error));
    write_slots(store, &s, 1, 0, 64);
    mask[5] = NAN;
    assert_fails(tkv_attend_store(store, &attend, k, out, &error), TKV_ERR_NOT_FINITE, "mask");
    mask[5] = -3.4e38f; /* as good as minus infinity */
    assert_ok(tkv_attend_store(store, &attend, k, out, &error));
    attend.n_heads = 3;
    assert_fails(tkv_attend_store(store, &attend, k, out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "multiple of the 2");
    tkv_store_free(store);
    tkv_store_free(NULL);
    assert_int_equal(tkv_store_bytes(NULL), 0);
    assert_int_equal(tkv_store_shared_bytes(NULL), 0);
}

static int create(void **state)
{
    *state = create_store_context(1);
    return 0;
}

static int destroy(void **state)
{
    tkv_context_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order_and_again),
        cmocka_unit_test(elements),
        cmocka_unit_test(rows_age),
        cmocka_unit_test(slots_are_used_again),
        cmocka_unit_test(copies),
        cmocka_unit_test(pages_are_shared),
        cmocka_unit_test(shifts),
        cmocka_unit_test(bytes_are_true),
        cmocka_unit_test(ropes_are_not_mixed),
        cmocka_unit_test(failures_lose_nothing),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, create, destroy);
}
