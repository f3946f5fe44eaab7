/* Attention over slots against its definition in double precision, over what the store reads. */
#include "base/half.h"
#include "store_model.h"

static store_shape base_shape(void)
{
    return (store_shape){.type_k = TKV_TYPE_TURBO4,
                         .type_v = TKV_TYPE_TURBO3,
                         .dim_k = 64,
                         .dim_v = 64,
                         .n_kv_heads = 2,
                         .group = 3,
                         .n_slots = 400};
}

/* A store with holes, rows written again, exact first and newest rows. */
static tkv_store *fill(tkv_context *context, const store_shape *s)
{
    tkv_store *store = create_store(context, s);
    write_slots(store, s, 1, 0, s->n_slots * 3 / 4);
    write_slots(store, s, 2, s->n_slots - 30, 20);
    assert_ok(tkv_store_clear(store, 40, 33, &error));
    write_slots(store, s, 3, 50, 3);
    write_slots(store, s, 4, 130, 9);
    return store;
}

/* Whether `fill` leaves something in a slot. */
static bool is_held(const store_shape *s, int slot)
{
    const bool is_filled = slot < s->n_slots * 3 / 4;
    const bool is_tail = slot >= s->n_slots - 30 && slot < s->n_slots - 10;
    const bool is_cleared = slot >= 40 && slot < 73 && !(slot >= 50 && slot < 53);
    return (is_filled || is_tail) && !is_cleared;
}

/* Compares what attention makes with the definition; `visible` without regard to what is held. */
static void check(tkv_context *context, const store_shape *s, const tkv_store *store,
                  tkv_store_attend_params params, double *visible, uint64_t seed)
{
    const int n_streams = params.n_streams ? params.n_streams : 1;
    const int n_heads = s->n_kv_heads * s->group;
    const size_t n_rows = (size_t)n_streams * (size_t)params.n_queries * (size_t)n_heads;
    const size_t n_out = n_rows * (size_t)value_width(s);
    float *q = random_rows(&seed, (int)n_rows, 1, s->dim_k);
    float *out = allocate(n_out * sizeof *out);
    float *expected = allocate(n_out * sizeof *expected);
    float *log_sums = allocate(n_rows * sizeof *log_sums);
    float *expected_sums = allocate(n_rows * sizeof *log_sums);
    held_rows rows = read_all(store, s);
    for (size_t i = 0; i < (size_t)(n_streams * params.n_queries) * (size_t)s->n_slots; i++) {
        visible[i] = is_held(s, (int)(i % (size_t)s->n_slots)) ? visible[i] : -INFINITY;
    }
    params.n_heads = n_heads;
    params.log_sums = log_sums;
    params.n_value_dims = s->dim_v ? 0 : s->n_value_dims;
    assert_ok(tkv_attend_store(store, &params, q, out, &error));
    attend_by_definition(s, &rows, &params, q, visible, expected, expected_sums);
    const double difference = relative_error(n_out, out, expected);
    if (!(difference < store_bound(context))) {
        fail_msg("relative error %g: types %d/%d, dims %d/%d", difference, (int)s->type_k,
                 (int)s->type_v, s->dim_k, s->dim_v);
    }
    for (size_t i = 0; i < n_rows; i++) {
        if (expected_sums[i] == -INFINITY) {
            assert_true(log_sums[i] == -INFINITY);
            for (int j = 0; j < value_width(s); j++) {
                assert_true(out[i * (size_t)value_width(s) + (size_t)j] == 0.0f);
            }
        } else {
            assert_true(fabsf(log_sums[i] - expected_sums[i]) < 0.05f);
        }
    }
    free_rows(&rows);
    free(q);
    free(out);
    free(expected);
    free(log_sums);
    free(expected_sums);
}

static double *visible_of(const store_shape *s, int n_queries)
{
    return allocate((size_t)n_queries * (size_t)s->n_slots * sizeof(double));
}

/* Random masks: empty and whole stretches, single holes, biases. */
static float random_mask_number(uint64_t *seed, int *stretch, float *last, bool has_bias)
{
    if (--*stretch < 0) {
        *stretch = random_below(seed, 4) ? random_below(seed, 150) : 0;
        const int kind = random_below(seed, has_bias ? 4 : 2);
        *last = kind == 0 ? -INFINITY : kind == 1 ? 0.0f : -0.25f * (float)random_below(seed, 16);
    }
    return *last;
}

static void check_mask(tkv_context *context, const store_shape *s, int n_streams, int n_queries,
                       tkv_element element, bool has_bias, tkv_store_attend_params params,
                       uint64_t seed)
{
    const int n_rows = n_streams * n_queries;
    const size_t n = (size_t)n_rows * (size_t)s->n_slots;
    tkv_store *store = fill(context, s);
    double *visible = visible_of(s, n_rows);
    float *numbers = allocate(n * sizeof *numbers);
    uint16_t *halves = allocate(n * sizeof *halves);
    int stretch = 0;
    float last = 0.0f;
    for (size_t i = 0; i < n; i++) {
        numbers[i] = random_mask_number(&seed, &stretch, &last, has_bias);
        visible[i] = (double)numbers[i];
        halves[i] = tkv_float_to_half(numbers[i]);
    }
    params.n_streams = n_streams;
    params.n_queries = n_queries;
    params.mask = element == TKV_ELEMENT_F16 ? (void *)halves : (void *)numbers;
    params.mask_element = element;
    params.n_mask_slots = s->n_slots;
    check(context, s, store, params, visible, seed);
    tkv_store_free(store);
    free(visible);
    free(numbers);
    free(halves);
}

static void types_and_head_dims(void **state)
{
    const int dims[] = {64, 80, 96, 128, 6};
    for (int d = 0; d < 5; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            store_shape s = base_shape();
            s.type_k = (tkv_type)type;
            s.type_v = (tkv_type)((type + d) % TKV_TYPE_COUNT);
            s.dim_k = dims[d];
            s.dim_v = dims[(d + type) % 5];
            s.n_exact = type % 2 ? 50 : 0;
            s.n_exact_first = type % 3 ? 0 : 5;
            check_mask(*state, &s, 1, 3, type % 2 ? TKV_ELEMENT_F16 : TKV_ELEMENT_F32, type % 3,
                       (tkv_store_attend_params){0}, (uint64_t)(100 * d + type));
        }
    }
}

static void keys_only(void **state)
{
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        store_shape s = base_shape();
        s.type_k = (tkv_type)type;
        s.dim_k = 80;
        s.dim_v = 0;
        s.n_value_dims = 48;
        s.n_kv_heads = 1;
        s.n_exact = 60;
        check_mask(*state, &s, 1, 2, TKV_ELEMENT_F32, false, (tkv_store_attend_params){0},
                   (uint64_t)type);
    }
}

static void streams_caps_sinks_slopes(void **state)
{
    const float sinks[] = {0.5f, -1.0f, 2.0f, 0.0f, -INFINITY, 1.0f};
    const float slopes[] = {0.5f, 1.0f, 0.25f, 2.0f, 0.0f, 1.5f};
    for (int i = 0; i < 32; i++) {
        store_shape s = base_shape();
        s.n_exact = i % 3 * 40;
        s.n_exact_first = i % 5 ? 0 : 70;
        const tkv_store_attend_params params = {.scale = i & 1 ? 0.4f : 0.0f,
                                                .logit_softcap = i & 2 ? 3.0f : 0.0f,
                                                .sinks = i & 4 ? sinks : NULL,
                                                .mask_slopes = i & 8 ? slopes : NULL};
        check_mask(*state, &s, i % 3 + 1, i % 7 == 0 ? 30 : 1 + i % 4,
                   i & 16 ? TKV_ELEMENT_F32 : TKV_ELEMENT_F16, i & 8, params, (uint64_t)i);
    }
}

/* Ranges in any order, that overlap; a window and a length cut what is seen in the ranges' order.
 */
static void ranges_and_windows(void **state)
{
    const tkv_slot_range ranges[] = {{200, 264}, {0, 64},  {63, 70},
                                     {128, 150}, {10, 10}, {290, 400}};
    enum { N_RANGES = sizeof ranges / sizeof *ranges, N_QUERIES = 5, N_STREAMS = 2 };
    uint64_t seed = 5;
    for (int i = 0; i < 40; i++) {
        store_shape s = base_shape();
        s.n_exact = i % 2 * 80;
        tkv_slot_view views[N_STREAMS * N_QUERIES];
        tkv_store_attend_params params = {.n_streams = N_STREAMS,
                                          .n_queries = N_QUERIES,
                                          .views = views,
                                          .ranges = ranges,
                                          .n_ranges = N_RANGES,
                                          .window = i % 4 ? random_below(&seed, 200) : 0};
        tkv_store *store = fill(*state, &s);
        double *visible = visible_of(&s, N_STREAMS * N_QUERIES);
        for (int v = 0; v < N_STREAMS * N_QUERIES; v++) {
            const int first = random_below(&seed, N_RANGES);
            views[v] = (tkv_slot_view){first, random_below(&seed, N_RANGES - first + 1),
                                       random_below(&seed, 3) ? random_below(&seed, 300) : 0};
            int seen[400];
            int n = 0;
            for (int r = 0; r < (int)views[v].n_ranges; r++) {
                for (int t = (int)ranges[first + r].first; t < (int)ranges[first + r].end; t++) {
                    seen[n++] = t;
                }
            }
            if (views[v].n_seen && views[v].n_seen < n) {
                n = (int)views[v].n_seen;
            }
            const int begin = params.window && n > params.window ? n - (int)params.window : 0;
            for (int t = 0; t < s.n_slots; t++) {
                visible[v * s.n_slots + t] = -INFINITY;
            }
            for (int t = begin; t < n; t++) {
                visible[v * s.n_slots + seen[t]] = 0.0;
            }
        }
        check(*state, &s, store, params, visible, seed);
        tkv_store_free(store);
        free(visible);
    }
}

/* Keys that were shifted by different distances, also within a page. */
static void shifted_keys(void **state)
{
    float frequencies[16];
    for (int i = 0; i < 16; i++) {
        frequencies[i] = powf(100.0f, -(float)i / 16.0f);
    }
    for (int i = 0; i < 8; i++) {
        const tkv_rope rope = {i & 1, 32, frequencies};
        store_shape s = base_shape();
        s.type_k = i & 2 ? TKV_TYPE_F16 : TKV_TYPE_TURBO4;
        s.dim_v = i & 4 ? 0 : 64;
        s.n_value_dims = i & 4 ? 40 : 0;
        s.rope = &rope;
        s.n_exact = 40;
        tkv_store *store = fill(*state, &s);
        double *visible = visible_of(&s, 4);
        int32_t deltas[400];
        for (int t = 0; t < 400; t++) {
            deltas[t] = t < 100 ? 0 : t < 210 ? -37 : t % 3 * 5;
        }
        assert_ok(tkv_store_shift(store, 0, 400, deltas, &error));
        assert_ok(tkv_store_shift(store, 150, 20, deltas + 100, &error));
        const float *none = allocate(4 * 400 * sizeof *none);
        check(*state, &s, store,
              (tkv_store_attend_params){.n_queries = 4, .mask = none, .n_mask_slots = 400}, visible,
              3);
        free((float *)none);
        free(visible);
        tkv_store_free(store);
    }
}

/* The same mask, the queries and outputs in other arrays: elements, strides, first slots. */
static void layouts(void **state)
{
    const store_shape s = base_shape();
    enum { N_STREAMS = 2, N_QUERIES = 3, N_HEADS = 6, DIM = 64, N = 128 };
    tkv_store *store = create_store(*state, &s);
    write_slots(store, &s, 1, 0, 300);
    float q[N_STREAMS * N_QUERIES * N_HEADS * DIM];
    float out[N_STREAMS * N_QUERIES * N_HEADS * DIM];
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) {
        q[i] = (float)(random_below(&seed, 255) - 127) / 64.0f; /* the same in all elements */
    }
    const tkv_slot_range ranges[] = {{70, 70 + N}, {100, 100 + N}};
    tkv_slot_view views[N_STREAMS * N_QUERIES];
    for (int v = 0; v < N_STREAMS * N_QUERIES; v++) {
        views[v] = (tkv_slot_view){v / N_QUERIES, 1, 0};
    }
    const tkv_store_attend_params by_views = {.n_streams = N_STREAMS,
                                              .n_queries = N_QUERIES,
                                              .n_heads = N_HEADS,
                                              .views = views,
                                              .ranges = ranges,
                                              .n_ranges = 2};
    assert_ok(tkv_attend_store(store, &by_views, q, out, &error));
    for (int element = 0; element < TKV_ELEMENT_COUNT; element++) {
        /* [head][stream][query], with gaps */
        const size_t head = N_STREAMS * N_QUERIES * (DIM + 8);
        const tkv_layout layout = {(tkv_element)element, N_QUERIES * (DIM + 8), DIM + 8, head};
        uint16_t *mask = allocate(N_STREAMS * N_QUERIES * (N + 3) * sizeof *mask);
        float *q2 = allocate(N_HEADS * head * sizeof *q2);
        float *out2 = allocate(N_HEADS * head * sizeof *out2);
        const int64_t first[] = {70, 100};
        for (int i = 0; i < N_STREAMS * N_QUERIES * N_HEADS * DIM; i++) {
            const int row = i / DIM / N_HEADS;
            const size_t at =
                (size_t)(i / DIM % N_HEADS) * head + (size_t)row * (DIM + 8) + (size_t)(i % DIM);
            const uint32_t bits = tkv_float_bits(q[i]);
            if (element == TKV_ELEMENT_F32) {
                q2[at] = q[i];
            } else {
                ((uint16_t *)q2)[at] =
                    element == TKV_ELEMENT_F16 ? tkv_float_to_half(q[i]) : (uint16_t)(bits >> 16);
            }
        }
        const tkv_store_attend_params by_mask = {.n_streams = N_STREAMS,
                                                 .n_queries = N_QUERIES,
                                                 .n_heads = N_HEADS,
                                                 .mask = mask,
                                                 .mask_element = TKV_ELEMENT_F16,
                                                 .n_mask_slots = N,
                                                 .mask_row_stride = N + 3,
                                                 .mask_stream_stride = N_QUERIES * (N + 3),
                                                 .mask_first = first,
                                                 .q = layout,
                                                 .out = layout};
        assert_ok(tkv_attend_store(store, &by_mask, q2, out2, &error));
        for (int i = 0; i < N_STREAMS * N_QUERIES * N_HEADS * DIM; i++) {
            const size_t at = (size_t)(i / DIM % N_HEADS) * head +
                              (size_t)(i / DIM / N_HEADS) * (DIM + 8) + (size_t)(i % DIM);
            const uint16_t bits = ((uint16_t *)out2)[at];
            const float got = element == TKV_ELEMENT_F32   ? out2[at]
                              : element == TKV_ELEMENT_F16 ? tkv_half_to_float(bits)
                                                           : tkv_bits_float((uint32_t)bits << 16);
            const float allowed = element == TKV_ELEMENT_F32 ? 0.0f : 0x1p-8f;
            assert_true(fabsf(got - out[i]) <= allowed * fmaxf(fabsf(out[i]), 0x1p-14f));
        }
        free(mask);
        free(q2);
        free(out2);
    }
    tkv_store_free(store);
}

/* Outputs over parts, weighed by the exponentials of their log-sums, are that over the whole. */
static void parts_merge(void **state)
{
    const store_shape s = base_shape();
    tkv_store *store = fill(*state, &s);
    const tkv_slot_range ranges[] = {{0, 111}, {111, 265}, {265, 400}, {0, 400}};
    enum { N_HEADS = 6, DIM = 64 };
    float out[4][N_HEADS * DIM];
    float log_sums[4][N_HEADS];
    uint64_t seed = 9;
    float *q = random_rows(&seed, 1, N_HEADS, DIM);
    for (int part = 0; part < 4; part++) {
        const tkv_slot_view view = {part, 1, 0};
        const tkv_store_attend_params params = {.n_queries = 1,
                                                .n_heads = N_HEADS,
                                                .views = &view,
                                                .ranges = ranges,
                                                .n_ranges = 4,
                                                .log_sums = log_sums[part]};
        assert_ok(tkv_attend_store(store, &params, q, out[part], &error));
    }
    float merged[N_HEADS * DIM];
    for (int i = 0; i < N_HEADS * DIM; i++) {
        float sum = 0.0f;
        for (int part = 0; part < 3; part++) {
            sum += expf(log_sums[part][i / DIM] - log_sums[3][i / DIM]) * out[part][i];
        }
        merged[i] = sum;
    }
    assert_true(relative_error(N_HEADS * DIM, merged, out[3]) < store_bound(*state));
    free(q);
    tkv_store_free(store);
}

/* A store that was filled as a cache was says the same. */
static void equals_the_cache(void **state)
{
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        store_shape s = base_shape();
        s.type_k = s.type_v = (tkv_type)type;
        enum { N = 400, ROW = 2 * 64, N_HEADS = 6 };
        const tkv_cache_params params = {.n_layers = 1,
                                         .n_kv_heads = 2,
                                         .head_dim_k = 64,
                                         .head_dim_v = 64,
                                         .max_tokens = N,
                                         .types_k = &s.type_k,
                                         .types_v = &s.type_v};
        uint64_t seed = 7;
        float *k = random_rows(&seed, N, 2, 64);
        float *v = random_rows(&seed, N, 2, 64);
        float *q = random_rows(&seed, N, N_HEADS, 64);
        int64_t slots[N];
        tkv_cache *cache = NULL;
        tkv_store *store = create_store(*state, &s);
        assert_ok(tkv_cache_create(*state, &params, &cache, &error));
        assert_ok(tkv_cache_append(cache, 0, N, k, v, &error));
        for (int i = 0; i < N; i++) {
            slots[i] = i;
        }
        assert_ok(tkv_store_write(store, N, slots, k, NULL, v, NULL, &error));

        float *held = allocate(2 * N * ROW * sizeof *held);
        assert_ok(tkv_cache_read(cache, 0, 0, N, held, held + N * ROW, &error));
        held_rows rows = read_all(store, &s);
        assert_memory_equal(rows.k, held, N * ROW * sizeof *held);
        assert_memory_equal(rows.v, held + N * ROW, N * ROW * sizeof *held);

        enum { N_QUERIES = 70, N_OUT = N_QUERIES * N_HEADS * 64 };
        float *out = allocate(2 * N_OUT * sizeof *out);
        tkv_slot_view views[N_QUERIES];
        const tkv_slot_range all = {0, N};
        for (int i = 0; i < N_QUERIES; i++) {
            views[i] = (tkv_slot_view){0, 1, N - N_QUERIES + i + 1};
        }
        const tkv_attend_params of_cache = {.n_queries = N_QUERIES,
                                            .n_heads = N_HEADS,
                                            .first_position = N - N_QUERIES,
                                            .window = 150};
        const tkv_store_attend_params of_store = {.n_queries = N_QUERIES,
                                                  .n_heads = N_HEADS,
                                                  .views = views,
                                                  .ranges = &all,
                                                  .n_ranges = 1,
                                                  .window = 150};
        assert_ok(tkv_attend(cache, 0, &of_cache, q, out, &error));
        assert_ok(tkv_attend_store(store, &of_store, q, out + N_OUT, &error));
        assert_true(relative_error(N_OUT, out + N_OUT, out) < 1e-6);
        free(k);
        free(v);
        free(q);
        free(held);
        free(out);
        free_rows(&rows);
        tkv_cache_free(cache);
        tkv_store_free(store);
    }
}

static int create(void **state)
{
    *state = create_store_context(2);
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
        cmocka_unit_test(types_and_head_dims),
        cmocka_unit_test(keys_only),
        cmocka_unit_test(streams_caps_sinks_slopes),
        cmocka_unit_test(ranges_and_windows),
        cmocka_unit_test(shifted_keys),
        cmocka_unit_test(layouts),
        cmocka_unit_test(parts_merge),
        cmocka_unit_test(equals_the_cache),
    };
    return cmocka_run_group_tests(tests, create, destroy);
}
