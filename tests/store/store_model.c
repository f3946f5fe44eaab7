#include "store_model.h"
#include "device/context.h"

tkv_context *create_store_context(int n_threads)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = n_threads, .effort = TKV_EFFORT_FAST};
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

tkv_store *create_store(tkv_context *context, const store_shape *s)
{
    tkv_store *store = NULL;
    const tkv_store_params params = {.n_slots = s->n_slots,
                                     .n_regions = s->n_regions,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->dim_k,
                                     .head_dim_v = s->dim_v,
                                     .type_k = s->type_k,
                                     .type_v = s->type_v,
                                     .n_exact = s->n_exact,
                                     .n_exact_first = s->n_exact_first,
                                     .rope = s->rope};
    assert_ok(tkv_store_create(context, &params, &store, &error));
    return store;
}

float *random_rows(uint64_t *seed, int n, int n_kv_heads, int dim)
{
    const size_t n_values = (size_t)n * (size_t)n_kv_heads * (size_t)dim;
    float *x = allocate(n_values * sizeof *x);
    fill_gauss(seed, n_values, x);
    return x;
}

void write_slots(tkv_store *store, const store_shape *s, uint64_t seed, int64_t first, int n)
{
    float *k = random_rows(&seed, n, s->n_kv_heads, s->dim_k);
    float *v = s->dim_v ? random_rows(&seed, n, s->n_kv_heads, s->dim_v) : NULL;
    int64_t *slots = allocate((size_t)n * sizeof *slots);
    for (int i = 0; i < n; i++) {
        slots[i] = first + i;
    }
    assert_ok(tkv_store_write(store, n, slots, k, NULL, v, NULL, &error));
    free(k);
    free(v);
    free(slots);
}

held_rows read_all(const tkv_store *store, const store_shape *s)
{
    const size_t n = (size_t)s->n_slots * (size_t)s->n_kv_heads;
    const int width = value_width(s);
    held_rows rows = {allocate(n * (size_t)s->dim_k * sizeof(float)),
                      allocate(n * (size_t)width * sizeof(float))};
    int64_t *slots = allocate((size_t)s->n_slots * sizeof *slots);
    for (int i = 0; i < s->n_slots; i++) {
        slots[i] = i;
    }
    assert_ok(tkv_store_read(store, s->n_slots, slots, rows.k, NULL, s->dim_v ? rows.v : NULL, NULL,
                             &error));
    for (size_t i = 0; !s->dim_v && i < n; i++) {
        memcpy(rows.v + i * (size_t)width, rows.k + i * (size_t)s->dim_k,
               (size_t)width * sizeof(float));
    }
    free(slots);
    return rows;
}

void free_rows(held_rows *rows)
{
    free(rows->k);
    free(rows->v);
}

static double logit_of(const store_shape *s, const held_rows *rows,
                       const tkv_store_attend_params *params, const float *q, int head, int slot)
{
    const float *k = rows->k + ((size_t)slot * (size_t)s->n_kv_heads + (size_t)(head / s->group)) *
                                   (size_t)s->dim_k;
    double sum = 0.0;
    for (int j = 0; j < s->dim_k; j++) {
        sum += (double)q[j] * (double)k[j];
    }
    const double scale =
        params->scale != 0.0f ? (double)params->scale : 1.0 / sqrt((double)s->dim_k);
    const double cap = (double)params->logit_softcap;
    return cap > 0.0 ? cap * tanh(sum * scale / cap) : sum * scale;
}

static void attend_row(const store_shape *s, const held_rows *rows,
                       const tkv_store_attend_params *params, const float *q, int head,
                       const double *visible, float *out, float *log_sum)
{
    const int width = value_width(s);
    double *logits = allocate((size_t)s->n_slots * sizeof *logits);
    double *sums = allocate((size_t)width * sizeof *sums);
    double maximum = params->sinks ? (double)params->sinks[head] : -INFINITY;
    for (int t = 0; t < s->n_slots; t++) {
        const double slope = params->mask_slopes ? (double)params->mask_slopes[head] : 1.0;
        logits[t] = visible[t] == -INFINITY
                        ? -INFINITY
                        : logit_of(s, rows, params, q, head, t) + slope * visible[t];
        maximum = fmax(maximum, logits[t]);
    }
    double total = params->sinks ? exp((double)params->sinks[head] - maximum) : 0.0;
    for (int t = 0; t < s->n_slots; t++) {
        const double weight = logits[t] == -INFINITY ? 0.0 : exp(logits[t] - maximum);
        const float *v = rows->v + ((size_t)t * (size_t)s->n_kv_heads + (size_t)(head / s->group)) *
                                       (size_t)width;
        total += weight;
        for (int j = 0; j < width; j++) {
            sums[j] += weight * (double)v[j];
        }
    }
    for (int j = 0; j < width; j++) {
        out[j] = total > 0.0 ? (float)(sums[j] / total) : 0.0f;
    }
    *log_sum = total > 0.0 ? (float)(maximum + log(total)) : -INFINITY;
    free(logits);
    free(sums);
}

void attend_by_definition(const store_shape *s, const held_rows *rows,
                          const tkv_store_attend_params *params, const float *q,
                          const double *visible, float *out, float *log_sums)
{
    const int n_heads = s->n_kv_heads * s->group;
    const int n_streams = params->n_streams ? params->n_streams : 1;
    for (int i = 0; i < n_streams * params->n_queries * n_heads; i++) {
        attend_row(s, rows, params, q + (size_t)i * (size_t)s->dim_k, i % n_heads,
                   visible + (size_t)(i / n_heads) * (size_t)s->n_slots,
                   out + (size_t)i * (size_t)value_width(s), &log_sums[i]);
    }
}

double store_bound(const tkv_context *context)
{
    const tkv_kernels *k = context->kernels;
    return 1e-5 + 10.0 * (double)fmaxf(k->weight_rounding, k->query_rounding);
}
