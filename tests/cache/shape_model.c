#include "shape_model.h"

#include "device/context.h"

void add_layer(model *m, tkv_layer_shape shape, tkv_type type_k, tkv_type type_v)
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

void free_model(model *m)
{
    for (int i = 0; i < m->n_layers; i++) {
        free(m->k[i]);
        free(m->v[i]);
    }
    m->n_layers = 0;
}

tkv_cache_params params_of(const model *m)
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

tkv_cache *create(const model *m)
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

void append(const model *m, tkv_cache *cache, int from, int to, int step)
{
    for (int at = from; at < to; at += step) {
        const int n = to - at < step ? to - at : step;
        for (int i = 0; i < m->n_layers; i++) {
            append_rows(m, cache, i, at, n);
        }
    }
}

decoded decode(const model *m, const tkv_cache *cache, int layer, int first, int end)
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

void free_decoded(decoded *d)
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
    if (is_on_device(context)) {
        const tkv_device_table *t = context->device->table;
        return 1e-5 + 20.0 * (double)fmaxf(fmaxf(t->weight_rounding, t->query_rounding),
                                           fmaxf(t->query_rounding_fine, t->exact_rounding));
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

void check_attention(const model *m, const tkv_cache *cache, int layer, const decoded *d, int group,
                     tkv_attend_params p)
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

void check_layer(const model *m, const tkv_cache *cache, int layer, int first, int end)
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
