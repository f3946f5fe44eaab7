/* Caches of every shape that models have: any even head_dim, keys only, and layers that differ in
 * shape, types and window. All of it on the CPU, and on the device that TKV_TEST_DEVICE names or on
 * the reference device. */
#include "device/context.h"
#include "shape_model.h"
#include "support/reference_device.h"

static const int head_sizes[][2] = {
    {2, 2},     {6, 6},     {8, 8},     {16, 16},   {40, 40},   {64, 64},   {72, 72},    {80, 80},
    {96, 96},   {100, 100}, {112, 112}, {120, 120}, {192, 128}, {256, 256}, {512, 512},  {576, 512},
    {1024, 64}, {40, 200},  {2, 1024},  {80, 0},    {100, 0},   {576, 0},   {1022, 1022}};
enum { N_HEAD_SIZES = sizeof head_sizes / sizeof *head_sizes };

/* Every head size and every type, with and without sinks, recent window and means; a row costs its
 * own bits up to a multiple of 16 coordinates, and nothing else does. */
static void every_head_size(void **state)
{
    const tkv_context *context = *state;
    /* Fewer on a device, whose kernels have tests of their own. */
    const int step = is_on_device(context) ? 7 : 1;
    for (int i = 0; i < N_HEAD_SIZES * TKV_TYPE_COUNT; i += step) {
        const int *size = head_sizes[i % N_HEAD_SIZES];
        const int type = i / N_HEAD_SIZES;
        const bool is_plain = i % 2;
        if (size[1] == 0 && is_on_device(context)) {
            continue; /* keys_only */
        }
        const int n = is_plain ? 128 : 170;
        model m = {.context = *state,
                   .n_sinks = is_plain ? 0 : 4,
                   .n_recent = is_plain ? 0 : 32,
                   .centre_tokens = is_plain ? 0 : 20};
        add_layer(&m,
                  (tkv_layer_shape){.n_kv_heads = 2, .head_dim_k = size[0], .head_dim_v = size[1]},
                  (tkv_type)type, (tkv_type)((type + i) % TKV_TYPE_COUNT));
        tkv_cache *cache = create(&m);
        const size_t empty = tkv_cache_bytes(cache);
        append(&m, cache, 0, n, 37);
        check_layer(&m, cache, 0, 0, n);
        if (is_plain && !is_on_device(context)) {
            const size_t rows = tkv_row_bytes(m.types_k[0], size[0]) +
                                (size[1] ? tkv_row_bytes(m.types_v[0], size[1]) : 0);
            const size_t pages = (size_t)n * 2 * rows;
            assert_true(tkv_cache_bytes(cache) >= empty + pages);
            assert_true(tkv_cache_bytes(cache) < empty + pages + 400);
        }
        tkv_cache_free(cache);
        free_model(&m);
    }
}

/* RoPE by definition, in double, of the rows of one token. */
static void turn_token(const tkv_layer_shape *s, int position, float *k)
{
    for (int h = 0; s->rope && h < s->n_kv_heads; h++, k += s->head_dim_k) {
        for (int i = 0; i < s->rope->n_rotated / 2; i++) {
            const int a = s->rope->is_interleaved ? 2 * i : i;
            const int b = s->rope->is_interleaved ? 2 * i + 1 : i + s->rope->n_rotated / 2;
            const double angle = position * (double)s->rope->frequencies[i];
            const double x = (double)k[a];
            const double y = (double)k[b];
            k[a] = (float)(x * cos(angle) - y * sin(angle));
            k[b] = (float)(x * sin(angle) + y * cos(angle));
        }
    }
}

static void turn_all(model *m, int layer, int from, int by)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    for (int t = from; t < MAX_TOKENS; t++) {
        turn_token(s, by ? by : t, m->k[layer] + (size_t)(t * s->n_kv_heads * s->head_dim_k));
    }
}

/* What the rows are once tokens [first, first + n) are gone. */
static void drop_rows(model *m, int first, int n)
{
    for (int i = 0; i < m->n_layers; i++) {
        const tkv_layer_shape *s = &m->shapes[i];
        const size_t row_k = (size_t)(s->n_kv_heads * s->head_dim_k);
        const size_t row_v = (size_t)(s->n_kv_heads * s->head_dim_v);
        const size_t behind = (size_t)(MAX_TOKENS - first - n);
        turn_all(m, i, first + n, -n);
        memmove(m->k[i] + (size_t)first * row_k, m->k[i] + (size_t)(first + n) * row_k,
                behind * row_k * sizeof(float));
        memmove(m->v[i] + (size_t)first * row_v, m->v[i] + (size_t)(first + n) * row_v,
                behind * row_v * sizeof(float));
    }
}

/* Layers as models mix them: a local one with a window, a global one, latent attention, odd sizes,
 * each with its types; keys turned by one RoPE, another or none. */
static model mixed_model(tkv_context *context, const tkv_rope *narrow, const tkv_rope *wide,
                         const tkv_rope *none)
{
    model m = {.context = context, .n_sinks = 4, .n_recent = 32, .centre_tokens = 20};
    add_layer(
        &m,
        (tkv_layer_shape){
            .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64, .window = 150, .rope = narrow},
        TKV_TYPE_TRELLIS3, TKV_TYPE_TRELLIS3);
    add_layer(
        &m, (tkv_layer_shape){.n_kv_heads = 1, .head_dim_k = 512, .head_dim_v = 128, .rope = wide},
        TKV_TYPE_TURBO4, TKV_TYPE_TURBO2);
    add_layer(&m,
              (tkv_layer_shape){.n_kv_heads = 1,
                                .head_dim_k = 576,
                                .head_dim_v = is_on_device(context) ? 512 : 0,
                                .rope = narrow},
              TKV_TYPE_TURBO8, TKV_TYPE_TURBO8);
    add_layer(&m,
              (tkv_layer_shape){.n_kv_heads = 3, .head_dim_k = 40, .head_dim_v = 72, .rope = none},
              TKV_TYPE_F16, TKV_TYPE_TURBO3);
    add_layer(&m,
              (tkv_layer_shape){
                  .n_kv_heads = 2, .head_dim_k = 100, .head_dim_v = 6, .window = 200, .rope = none},
              TKV_TYPE_TURBO4Q, TKV_TYPE_F16);
    for (int i = 0; i < m.n_layers; i++) {
        turn_all(&m, i, 0, 0);
    }
    return m;
}

/* First token that every layer must still hold for a query at position n, 20 of them dropped. */
static int first_kept(const model *m, int layer, int n)
{
    const int window = m->shapes[layer].window;
    return window && n > window ? n - window : 0;
}

static void check_all_layers(const model *m, const tkv_cache *cache, int n)
{
    for (int i = 0; i < m->n_layers; i++) {
        assert_int_equal(tkv_cache_length(cache, i), n);
        check_layer(m, cache, i, first_kept(m, i, n - 5), n);
    }
}

/* The shift's own RoPE is for layers that do not say theirs, of which there are none here. */
static void check_layers_that_differ(tkv_context *context, bool is_given)
{
    float frequencies[64];
    for (int i = 0; i < 64; i++) {
        frequencies[i] = (float)pow(10000.0, -i / 64.0);
    }
    const tkv_rope narrow = {false, 32, frequencies};
    const tkv_rope wide = {true, 128, frequencies};
    const tkv_rope none = {false, 0, frequencies};
    model m = mixed_model(context, &narrow, &wide, &none);
    tkv_cache *cache = create(&m);
    append(&m, cache, 0, 100, 100);
    check_all_layers(&m, cache, 100);
    append(&m, cache, 100, 400, 1);
    check_all_layers(&m, cache, 400);
    assert_ok(tkv_cache_truncate(cache, 390, &error));
    check_all_layers(&m, cache, 390);
    tkv_cache *fork = NULL;
    assert_ok(tkv_cache_fork(cache, 385, &fork, &error));
    append(&m, cache, 390, 420, 30);
    append(&m, fork, 385, 450, 13);
    check_all_layers(&m, cache, 420);
    check_all_layers(&m, fork, 450);
    tkv_cache_free(cache);
    /* A context shift: tokens 200 to 236 go. */
    assert_ok(tkv_cache_shift(fork, 200, 37, is_given ? &narrow : NULL, &error));
    drop_rows(&m, 200, 37);
    check_all_layers(&m, fork, 413);
    append(&m, fork, 413, 520, 9);
    check_all_layers(&m, fork, 520);
    tkv_cache_free(fork);
    free_model(&m);
}

static void layers_that_differ(void **state)
{
    check_layers_that_differ(*state, true);
    check_layers_that_differ(*state, false);
}

/* Appends until a layer with a window is `n` long; the largest number of bytes on the way. */
static size_t largest_bytes(const model *m, tkv_cache *cache, int from, int to)
{
    size_t largest = 0;
    for (int t = from; t < to; t++) {
        append(m, cache, t, t + 1, 1);
        const size_t bytes = tkv_cache_bytes(cache);
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

/* Pages behind a window are given back: bytes stop growing, what is gone is refused by name, and a
 * truncation that would need it changes nothing. */
static void windows_give_back(void **state)
{
    enum { WINDOW = 100 };
    const tkv_type types[] = {TKV_TYPE_F16, TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS2};
    for (int i = 0; i < 6; i++) {
        model m = {.context = *state, .n_sinks = i % 2 ? 4 : 0, .n_recent = i % 2 ? 32 : 0};
        add_layer(&m,
                  (tkv_layer_shape){
                      .n_kv_heads = 2, .head_dim_k = 40, .head_dim_v = 72, .window = WINDOW},
                  types[i / 2], types[i / 2]);
        tkv_cache *cache = create(&m);
        (void)largest_bytes(&m, cache, 0, 200);
        const size_t early = largest_bytes(&m, cache, 200, 330);
        const size_t late = largest_bytes(&m, cache, 330, 590);
        assert_true(late <= early);
        float x[2 * 72];
        float q[4 * 40] = {1.0f};
        float out[4 * 72];
        assert_fails(tkv_cache_read(cache, 0, 300, 1, x, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                     "given back");
        tkv_attend_params p = {.n_queries = 1, .n_heads = 4, .first_position = 400};
        assert_fails(tkv_attend(cache, 0, &p, q, out, &error), TKV_ERR_INVALID_ARGUMENT,
                     "given back");
        assert_fails(tkv_cache_truncate(cache, 400, &error), TKV_ERR_INVALID_ARGUMENT,
                     "window of 100");
        assert_int_equal(tkv_cache_length(cache, 0), 590);
        assert_true(tkv_cache_bytes(cache) <= late);
        check_layer(&m, cache, 0, 590 - WINDOW - 5, 590);
        /* A few drafts may always be taken back. */
        assert_ok(tkv_cache_truncate(cache, 560, &error));
        append(&m, cache, 560, 570, 10);
        check_layer(&m, cache, 0, 570 - WINDOW - 5, 570);
        tkv_cache *fork = NULL;
        assert_fails(tkv_cache_fork(cache, 300, &fork, &error), TKV_ERR_INVALID_ARGUMENT,
                     "window of 100");
        assert_null(fork);
        assert_ok(tkv_cache_truncate(cache, 0, &error));
        append(&m, cache, 0, 70, 70);
        check_layer(&m, cache, 0, 0, 70);
        tkv_cache_free(cache);
        free_model(&m);
    }
}

/* Values of a layer of keys only are the first coordinates of its keys, however many. */
static void keys_only(void **state)
{
    model m = {.context = *state, .n_recent = 32};
    add_layer(&m, (tkv_layer_shape){.n_kv_heads = 1, .head_dim_k = 576}, TKV_TYPE_TURBO4,
              (tkv_type)99);
    if (is_on_device(m.context)) {
        const tkv_cache_params params = params_of(&m);
        tkv_cache *none = NULL;
        assert_fails(tkv_cache_create(m.context, &params, &none, &error), TKV_ERR_UNSUPPORTED,
                     "layer 0 keeps keys only");
        free_model(&m);
        return;
    }
    tkv_cache *cache = create(&m);
    append(&m, cache, 0, 200, 50);
    decoded d = decode(&m, cache, 0, 0, 200);
    const int dims[] = {1, 2, 511, 512, 576};
    for (int i = 0; i < 5; i++) {
        const tkv_attend_params p = {.n_queries = 3, .n_value_dims = dims[i]};
        check_attention(&m, cache, 0, &d, 16, p);
    }
    float q[576] = {1.0f};
    float out[576];
    tkv_attend_params p = {.n_queries = 1, .n_heads = 1, .first_position = 199};
    const int wrong[] = {0, -1, 577};
    for (int i = 0; i < 3; i++) {
        p.n_value_dims = wrong[i];
        assert_fails(tkv_attend(cache, 0, &p, q, out, &error), TKV_ERR_INVALID_ARGUMENT,
                     "expected 1 to 576");
    }
    free_decoded(&d);
    tkv_cache_free(cache);
    free_model(&m);
}

static void impossible_shapes_are_refused(void **state)
{
    const struct {
        tkv_layer_shape shape;
        const char *message;
    } cases[] = {
        {{.n_kv_heads = 1, .head_dim_k = 65, .head_dim_v = 64}, "layer 1: head_dim 65"},
        {{.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 1}, "layer 1: head_dim 1"},
        {{.n_kv_heads = 1, .head_dim_k = 0, .head_dim_v = 64}, "layer 1: head_dim 0"},
        {{.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 1026}, "layer 1: head_dim 1026"},
        {{.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = -2}, "layer 1: head_dim -2"},
        {{.n_kv_heads = 0, .head_dim_k = 64, .head_dim_v = 64}, "layer 1, n_kv_heads 0"},
        {{.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64, .window = -1}, "layer 1, window -1"},
        {{.n_kv_heads = 1,
          .head_dim_k = 40,
          .head_dim_v = 40,
          .rope = &(tkv_rope){false, 42, (const float[21]){1.0f}}},
         "layer 1: RoPE over 42"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model m = {.context = *state};
        add_layer(&m, (tkv_layer_shape){.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64},
                  TKV_TYPE_TURBO4, TKV_TYPE_TURBO4);
        add_layer(&m, (tkv_layer_shape){.n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64},
                  TKV_TYPE_TURBO4, TKV_TYPE_TURBO4);
        m.shapes[1] = cases[i].shape;
        const tkv_cache_params params = params_of(&m);
        tkv_cache *cache = NULL;
        assert_fails(tkv_cache_create(m.context, &params, &cache, &error), TKV_ERR_INVALID_ARGUMENT,
                     cases[i].message);
        assert_null(cache);
        free_model(&m);
    }
}

static int set_up(void **state)
{
    const tkv_context_params params = {.n_threads = 2, .effort = TKV_EFFORT_FAST};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    *state = context;
    return 0;
}

static int set_up_device(void **state)
{
    const tkv_context_params params = {.effort = TKV_EFFORT_FAST, .device = test_device()};
    tkv_context *context = NULL;
    if (params.device) {
        assert_ok(tkv_context_create(&params, &context, &error));
    } else {
        context = create_reference_context();
        context->effort = TKV_EFFORT_FAST;
    }
    *state = context;
    return 0;
}

static int tear_down(void **state)
{
    tkv_context_free(*state);
    return 0;
}

int main(void)
{
    if (test_device_is_missing()) {
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_head_size), cmocka_unit_test(layers_that_differ),
        cmocka_unit_test(windows_give_back), cmocka_unit_test(keys_only),
        cmocka_unit_test(impossible_shapes_are_refused)};
    return (test_device() ? 0 : cmocka_run_group_tests(tests, set_up, tear_down)) +
           cmocka_run_group_tests(tests, set_up_device, tear_down);
}
