/* Caches of every shape that models have: any even head_dim, keys only, and layers that differ in
 * shape, types and window. Attention is checked against double precision on the decoded rows. All
 * of it on the CPU, and on the device that TKV_TEST_DEVICE names or on the reference device. */
#include "device/context.h"
#include "support/reference_device.h"
#include "support/support.h"

enum { MAX_TOKENS = 600, MAX_LAYERS = 8 };

/* A cache's layers and the rows that go into them. */
typedef struct model {
    tkv_context *context;
    int n_layers;
    tkv_layer_shape shapes[MAX_LAYERS];
    tkv_type types_k[MAX_LAYERS];
    tkv_type types_v[MAX_LAYERS];
    int n_sinks;
    int n_recent;
    int centre_tokens;
    float *k[MAX_LAYERS]; /* [MAX_TOKENS][n_kv_heads][head_dim_k] */
    float *v[MAX_LAYERS];
} model;

static void add_layer(model *m, tkv_layer_shape shape, tkv_type type_k, tkv_type type_v)
{
    const int i = m->n_layers++;
    const size_t rows = (size_t)MAX_TOKENS * (size_t)shape.n_kv_heads;
    uint64_t seed = (uint64_t)(1000 * i + shape.head_dim_k);
    m->shapes[i] = shape;
    m->types_k[i] = type_k;
    m->types_v[i] = type_v;
    m->k[i] = allocate(rows * (size_t)shape.head_dim_k * sizeof(float));
    m->v[i] = allocate(rows * (size_t)shape.head_dim_v * sizeof(float));
    fill_gauss(&seed, rows * (size_t)shape.head_dim_k, m->k[i]);
    fill_gauss(&seed, rows * (size_t)shape.head_dim_v, m->v[i]);
}

static void free_model(model *m)
{
    for (int i = 0; i < m->n_layers; i++) {
        free(m->k[i]);
        free(m->v[i]);
    }
    m->n_layers = 0;
}

static tkv_cache_params params_of(const model *m)
{
    return (tkv_cache_params){.n_layers = m->n_layers,
                              .max_tokens = MAX_TOKENS,
                              .types_k = m->types_k,
                              .types_v = m->types_v,
                              .n_sinks = m->n_sinks,
                              .n_recent = m->n_recent,
                              .centre_tokens = m->centre_tokens,
                              .shapes = m->shapes};
}

static tkv_cache *create(const model *m)
{
    const tkv_cache_params params = params_of(m);
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(m->context, &params, &cache, &error));
    return cache;
}

/* Memory where a context computes, and back to the host. */
static float *to_context(tkv_context *context, const float *x, size_t n)
{
    void *memory = NULL;
    assert_ok(tkv_memory_allocate(context, (n ? n : 1) * sizeof *x, &memory, &error));
    if (x && n) {
        assert_ok(tkv_memory_upload(context, memory, x, n * sizeof *x, &error));
    }
    return memory;
}

static void from_context(tkv_context *context, float *memory, size_t n, float *x)
{
    if (n) {
        assert_ok(tkv_memory_download(context, x, memory, n * sizeof *x, &error));
    }
    tkv_memory_free(context, memory);
}

static void append_rows(const model *m, tkv_cache *cache, int layer, int from, int n)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    const size_t row_k = (size_t)(s->n_kv_heads * s->head_dim_k);
    const size_t row_v = (size_t)(s->n_kv_heads * s->head_dim_v);
    float *k = to_context(m->context, m->k[layer] + (size_t)from * row_k, (size_t)n * row_k);
    float *v = to_context(m->context, m->v[layer] + (size_t)from * row_v, (size_t)n * row_v);
    assert_ok(tkv_cache_append(cache, layer, n, k, row_v ? v : NULL, &error));
    assert_ok(tkv_context_wait(m->context, &error));
    tkv_memory_free(m->context, k);
    tkv_memory_free(m->context, v);
}

/* Appends rows [from, to) to all layers, `step` at a time. */
static void append(const model *m, tkv_cache *cache, int from, int to, int step)
{
    for (int at = from; at < to; at += step) {
        const int n = to - at < step ? to - at : step;
        for (int i = 0; i < m->n_layers; i++) {
            append_rows(m, cache, i, at, n);
        }
    }
}

/* Decoded rows of tokens [first, end) of a layer, at their places among all tokens. */
typedef struct decoded {
    int first;
    int end;
    float *k;
    float *v;
} decoded;

static decoded decode(const model *m, const tkv_cache *cache, int layer, int first, int end)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    const size_t row_k = (size_t)(s->n_kv_heads * s->head_dim_k);
    const size_t row_v = (size_t)(s->n_kv_heads * s->head_dim_v);
    decoded d = {first, end, allocate((size_t)end * row_k * sizeof(float)),
                 allocate((size_t)end * row_v * sizeof(float))};
    const size_t n = (size_t)(end - first);
    float *k = to_context(m->context, NULL, n * row_k);
    float *v = to_context(m->context, NULL, n * row_v);
    assert_ok(tkv_cache_read(cache, layer, first, end - first, k, row_v ? v : NULL, &error));
    from_context(m->context, k, n * row_k, d.k + (size_t)first * row_k);
    from_context(m->context, v, n * row_v, d.v + (size_t)first * row_v);
    return d;
}

static void free_decoded(decoded *d)
{
    free(d->k);
    free(d->v);
}

/* What coding Gaussian rows may leave, relative to their norm. Rows longer than the 128 that the
 * type speaks of are worse, most in turbo8, whose step follows the largest value; the trellis is
 * searched fast here. */
static double error_bound(tkv_type type)
{
    if (type == TKV_TYPE_F16) {
        return 1e-3;
    }
    const bool is_trellis = type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2;
    const double margin = type == TKV_TYPE_TURBO8 ? 1.6 : is_trellis ? 1.2 : 1.1;
    return sqrt(margin * tkv_type_get_info(type)->expected_nmse);
}

/* Attention of one query head by definition. */
static void attend_by_definition(const model *m, int layer, const decoded *d,
                                 const tkv_attend_params *p, const float *q, int query, int head,
                                 int n_values, double *out)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    const int kv_head = head / (p->n_heads / s->n_kv_heads);
    const int position = p->first_position + query;
    const int window = p->window ? p->window : s->window;
    const int first = window && position >= window ? position - window + 1 : 0;
    const double scale = 1.0 / sqrt((double)s->head_dim_k);
    double sum = 0.0;
    double maximum = -INFINITY;
    double *logits = allocate((size_t)(position + 1) * sizeof *logits);
    assert_true(first >= d->first && position < d->end);
    for (int t = first; t <= position; t++) {
        const float *k = d->k + (t * s->n_kv_heads + kv_head) * s->head_dim_k;
        for (int j = 0; j < s->head_dim_k; j++) {
            logits[t] += (double)q[j] * (double)k[j] * scale;
        }
        if (p->logit_softcap > 0.0f) {
            logits[t] = (double)p->logit_softcap * tanh(logits[t] / (double)p->logit_softcap);
        }
        maximum = fmax(maximum, logits[t]);
    }
    memset(out, 0, (size_t)n_values * sizeof *out);
    for (int t = first; t <= position; t++) {
        const double weight = exp(logits[t] - maximum);
        const float *v = s->head_dim_v ? d->v + (t * s->n_kv_heads + kv_head) * s->head_dim_v
                                       : d->k + (t * s->n_kv_heads + kv_head) * s->head_dim_k;
        sum += weight;
        for (int j = 0; j < n_values; j++) {
            out[j] += weight * (double)v[j];
        }
    }
    sum += p->sinks ? exp((double)p->sinks[head] - maximum) : 0.0;
    for (int j = 0; j < n_values; j++) {
        out[j] /= sum;
    }
    free(logits);
}

/* Relative to the norm of the output, which is a mean of values: what float arithmetic leaves and
 * what the kernels' rounding of queries and weights does. */
static double attention_bound(const tkv_context *context)
{
    if (context->device) {
        const tkv_device_table *t = context->device->table;
        return 1e-5 + 20.0 * (double)fmaxf(fmaxf(t->weight_rounding, t->query_rounding),
                                           fmaxf(t->query_rounding_turbo8, t->exact_rounding));
    }
    const tkv_kernels *k = context->kernels;
    return 1e-5 + 20.0 * (double)fmaxf(k->weight_rounding, k->query_rounding);
}

/* Attention where the context computes. */
static void attend(const model *m, const tkv_cache *cache, int layer, tkv_attend_params p,
                   const float *q, size_t n_q, float *out, size_t n_out)
{
    float *sinks = p.sinks ? to_context(m->context, p.sinks, (size_t)p.n_heads) : NULL;
    float *from = to_context(m->context, q, n_q);
    float *to = to_context(m->context, NULL, n_out);
    p.sinks = sinks;
    assert_ok(tkv_attend(cache, layer, &p, from, to, &error));
    from_context(m->context, to, n_out, out);
    tkv_memory_free(m->context, from);
    if (sinks) {
        tkv_memory_free(m->context, sinks);
    }
}

/* The last queries of a layer, `group` heads a KV head. */
static void check_attention(const model *m, const tkv_cache *cache, int layer, const decoded *d,
                            int group, tkv_attend_params p)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    const int n_values = s->head_dim_v ? s->head_dim_v : p.n_value_dims;
    p.n_heads = group * s->n_kv_heads;
    p.first_position = d->end - p.n_queries;
    const int n_rows = p.n_queries * p.n_heads;
    float *q = allocate((size_t)(n_rows * s->head_dim_k) * sizeof *q);
    float *out = allocate((size_t)(n_rows * n_values) * sizeof *out);
    float *expected = allocate((size_t)(n_rows * n_values) * sizeof *expected);
    double *row = allocate((size_t)n_values * sizeof *row);
    uint64_t seed = (uint64_t)(d->end + s->head_dim_k);
    fill_gauss(&seed, (size_t)(n_rows * s->head_dim_k), q);
    attend(m, cache, layer, p, q, (size_t)(n_rows * s->head_dim_k), out,
           (size_t)(n_rows * n_values));
    for (int r = 0; r < n_rows; r++) {
        attend_by_definition(m, layer, d, &p, q + r * s->head_dim_k, r / p.n_heads, r % p.n_heads,
                             n_values, row);
        for (int j = 0; j < n_values; j++) {
            expected[r * n_values + j] = (float)row[j];
        }
    }
    const double error = relative_error((size_t)(n_rows * n_values), out, expected);
    if (!(error < attention_bound(m->context))) {
        fail_msg("attention differs by %g: kernels %s, layer %d, head_dim %d/%d, types %d/%d, "
                 "window %d, %d queries at %d, %d heads",
                 error, tkv_context_kernels(m->context), layer, s->head_dim_k, s->head_dim_v,
                 m->types_k[layer], m->types_v[layer], p.window, p.n_queries, p.first_position,
                 p.n_heads);
    }
    free(q);
    free(out);
    free(expected);
    free(row);
}

static void check_rows(const model *m, int layer, const decoded *d)
{
    const tkv_layer_shape *s = &m->shapes[layer];
    const size_t row_k = (size_t)(s->n_kv_heads * s->head_dim_k);
    const size_t row_v = (size_t)(s->n_kv_heads * s->head_dim_v);
    const size_t n = (size_t)(d->end - d->first);
    const size_t first = (size_t)d->first;
    const double of_k =
        relative_error(n * row_k, d->k + first * row_k, m->k[layer] + first * row_k);
    const double of_v =
        relative_error(n * row_v, d->v + first * row_v, m->v[layer] + first * row_v);
    if (!(of_k < error_bound(m->types_k[layer]) && of_v < error_bound(m->types_v[layer]))) {
        fail_msg("layer %d, head_dim %d/%d, types %d/%d: errors %g and %g", layer, s->head_dim_k,
                 s->head_dim_v, m->types_k[layer], m->types_v[layer], of_k, of_v);
    }
}

/* Rows and attention of a layer whose tokens [first, end) are there. */
static void check_layer(const model *m, const tkv_cache *cache, int layer, int first, int end)
{
    const float sinks[6] = {0.5f, -1.0f, 2.0f, -INFINITY, 0.0f, 1.0f};
    const int n_values = m->shapes[layer].head_dim_v ? 0 : m->shapes[layer].head_dim_k * 3 / 4 + 1;
    decoded d = decode(m, cache, layer, first, end);
    check_rows(m, layer, &d);
    const tkv_attend_params whole = {.n_queries = 1, .n_value_dims = n_values};
    const tkv_attend_params capped = {
        .n_queries = 5, .window = 19, .logit_softcap = 3.0f, .n_value_dims = n_values};
    const tkv_attend_params sunk = {.n_queries = 2, .sinks = sinks, .n_value_dims = n_values};
    check_attention(m, cache, layer, &d, 1, whole);
    check_attention(m, cache, layer, &d, 3, capped);
    check_attention(m, cache, layer, &d, 6 / m->shapes[layer].n_kv_heads, sunk);
    free_decoded(&d);
}

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
    const int step = context->device ? 7 : 1;
    for (int i = 0; i < N_HEAD_SIZES * TKV_TYPE_COUNT; i += step) {
        const int *size = head_sizes[i % N_HEAD_SIZES];
        const int type = i / N_HEAD_SIZES;
        const bool is_plain = i % 2;
        if (size[1] == 0 && context->device) {
            continue; /* keys_only */
        }
        const int n = is_plain ? 128 : 170;
        model m = {.context = *state,
                   .n_sinks = is_plain ? 0 : 4,
                   .n_recent = is_plain ? 0 : 32,
                   .centre_tokens = is_plain ? 0 : 20};
        add_layer(&m, (tkv_layer_shape){2, size[0], size[1], 0, NULL}, (tkv_type)type,
                  (tkv_type)((type + i) % TKV_TYPE_COUNT));
        tkv_cache *cache = create(&m);
        const size_t empty = tkv_cache_bytes(cache);
        append(&m, cache, 0, n, 37);
        check_layer(&m, cache, 0, 0, n);
        if (is_plain && !context->device) {
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
    add_layer(&m, (tkv_layer_shape){2, 64, 64, 150, narrow}, TKV_TYPE_TRELLIS3, TKV_TYPE_TRELLIS3);
    add_layer(&m, (tkv_layer_shape){1, 512, 128, 0, wide}, TKV_TYPE_TURBO4, TKV_TYPE_TURBO2);
    add_layer(&m, (tkv_layer_shape){1, 576, context->device ? 512 : 0, 0, narrow}, TKV_TYPE_TURBO8,
              TKV_TYPE_TURBO8);
    add_layer(&m, (tkv_layer_shape){3, 40, 72, 0, none}, TKV_TYPE_F16, TKV_TYPE_TURBO3);
    add_layer(&m, (tkv_layer_shape){2, 100, 6, 200, none}, TKV_TYPE_TURBO4Q, TKV_TYPE_F16);
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
        add_layer(&m, (tkv_layer_shape){2, 40, 72, WINDOW, NULL}, types[i / 2], types[i / 2]);
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
    add_layer(&m, (tkv_layer_shape){1, 576, 0, 0, NULL}, TKV_TYPE_TURBO4, (tkv_type)99);
    if (m.context->device) {
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
        {{1, 65, 64, 0, NULL}, "layer 1: head_dim 65"},
        {{1, 64, 1, 0, NULL}, "layer 1: head_dim 1"},
        {{1, 0, 64, 0, NULL}, "layer 1: head_dim 0"},
        {{1, 64, 1026, 0, NULL}, "layer 1: head_dim 1026"},
        {{1, 64, -2, 0, NULL}, "layer 1: head_dim -2"},
        {{0, 64, 64, 0, NULL}, "layer 1, n_kv_heads 0"},
        {{1, 64, 64, -1, NULL}, "layer 1, window -1"},
        {{1, 40, 40, 0, &(tkv_rope){false, 42, (const float[21]){1.0f}}}, "layer 1: RoPE over 42"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model m = {.context = *state};
        add_layer(&m, (tkv_layer_shape){1, 64, 64, 0, NULL}, TKV_TYPE_TURBO4, TKV_TYPE_TURBO4);
        add_layer(&m, (tkv_layer_shape){1, 64, 64, 0, NULL}, TKV_TYPE_TURBO4, TKV_TYPE_TURBO4);
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
