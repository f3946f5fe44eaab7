/* Attention against a double-precision softmax over the decoded rows. */
#include "device/context.h"
#include "support/support.h"

#include <limits.h>

typedef struct shape {
    tkv_type type_k;
    tkv_type type_v;
    int dim_k;
    int dim_v;
    int n_kv_heads;
    int group;
    int n_tokens;
    int n_queries;
    int n_sinks;
    int n_recent;
    int centre_tokens;
    float value_offset;       /* of the first coordinate of values */
    float outlier;            /* if not 0, in a key and a value of every 50th token */
    tkv_attend_params params; /* n_queries, n_heads, first_position are filled in */
} shape;

typedef struct data {
    tkv_cache *cache;
    float *k; /* decoded */
    float *v;
    float *q;
    float *out;
    float *expected;
    float *sinks;
} data;

static tkv_context *create_context(int n_threads)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = n_threads, .effort = TKV_EFFORT_FAST};
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

/* Random keys with an offset, random values, in a cache that is filled in uneven steps. */
static data create_data(tkv_context *context, const shape *s, uint64_t seed)
{
    const size_t row_k = (size_t)s->n_kv_heads * (size_t)s->dim_k;
    const size_t row_v = (size_t)s->n_kv_heads * (size_t)s->dim_v;
    const size_t heads = (size_t)s->n_queries * (size_t)s->n_kv_heads * (size_t)s->group;
    data d = {.k = allocate((size_t)s->n_tokens * row_k * sizeof(float)),
              .v = allocate((size_t)s->n_tokens * row_v * sizeof(float)),
              .q = allocate(heads * (size_t)s->dim_k * sizeof(float)),
              .out = allocate(heads * (size_t)s->dim_v * sizeof(float)),
              .expected = allocate(heads * (size_t)s->dim_v * sizeof(float)),
              .sinks = allocate(heads * sizeof(float))};
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->dim_k,
                                     .head_dim_v = s->dim_v,
                                     .max_tokens = s->n_tokens,
                                     .types_k = &s->type_k,
                                     .types_v = &s->type_v,
                                     .n_sinks = s->n_sinks,
                                     .n_recent = s->n_recent,
                                     .centre_tokens = s->centre_tokens};
    fill_gauss(&seed, (size_t)s->n_tokens * row_k, d.k);
    fill_gauss(&seed, (size_t)s->n_tokens * row_v, d.v);
    fill_gauss(&seed, heads * (size_t)s->dim_k, d.q);
    fill_gauss(&seed, heads, d.sinks);
    for (size_t i = 0; i < (size_t)s->n_tokens * row_k; i += (size_t)s->dim_k) {
        d.k[i] += 3.0f;
        d.v[i / (size_t)s->dim_k * (size_t)s->dim_v] += s->value_offset;
    }
    for (int t = 3; s->outlier != 0.0f && t < s->n_tokens; t += 50) {
        d.k[(size_t)t * row_k + 5] = s->outlier;
        d.v[(size_t)t * row_v + 7] = -s->outlier;
    }
    assert_ok(tkv_cache_create(context, &params, &d.cache, &error));
    for (int at = 0, step = 1; at < s->n_tokens; at += step, step = step * 3 % 97 + 1) {
        const int n = s->n_tokens - at < step ? s->n_tokens - at : step;
        assert_ok(tkv_cache_append(d.cache, 0, n, d.k + (size_t)at * row_k,
                                   d.v + (size_t)at * row_v, &error));
    }
    assert_ok(tkv_cache_read(d.cache, 0, 0, s->n_tokens, d.k, d.v, &error));
    return d;
}

static void free_data(data *d)
{
    tkv_cache_free(d->cache);
    free(d->k);
    free(d->v);
    free(d->q);
    free(d->out);
    free(d->expected);
    free(d->sinks);
}

static double logit_of(const shape *s, const data *d, size_t query_head, int head, int token)
{
    const float *q = d->q + query_head * (size_t)s->dim_k;
    const float *k = d->k + ((size_t)token * (size_t)s->n_kv_heads + (size_t)(head / s->group)) *
                                (size_t)s->dim_k;
    double sum = 0.0;
    for (int j = 0; j < s->dim_k; j++) {
        sum += (double)q[j] * (double)k[j];
    }
    const double scale =
        s->params.scale != 0.0f ? (double)s->params.scale : 1.0 / sqrt((double)s->dim_k);
    const double cap = (double)s->params.logit_softcap;
    return cap > 0.0 ? cap * tanh(sum * scale / cap) : sum * scale;
}

/* The output of one query head by definition. */
static void attend_by_definition(const shape *s, const data *d, int query, int head, bool has_sinks)
{
    const size_t index = (size_t)query * (size_t)(s->n_kv_heads * s->group) + (size_t)head;
    const int position = s->n_tokens - s->n_queries + query;
    const int first =
        s->params.window && position >= s->params.window ? position + 1 - s->params.window : 0;
    double *logits = allocate((size_t)s->n_tokens * sizeof *logits);
    double *sums = allocate((size_t)s->dim_v * sizeof *sums);
    double maximum = has_sinks ? (double)d->sinks[head] : -INFINITY;
    for (int t = first; t <= position; t++) {
        logits[t] = logit_of(s, d, index, head, t);
        maximum = fmax(maximum, logits[t]);
    }
    double total = has_sinks ? exp((double)d->sinks[head] - maximum) : 0.0;
    for (int t = first; t <= position; t++) {
        const double weight = exp(logits[t] - maximum);
        const float *v = d->v + ((size_t)t * (size_t)s->n_kv_heads + (size_t)(head / s->group)) *
                                    (size_t)s->dim_v;
        total += weight;
        for (int j = 0; j < s->dim_v; j++) {
            sums[j] += weight * (double)v[j];
        }
    }
    for (int j = 0; j < s->dim_v; j++) {
        d->expected[index * (size_t)s->dim_v + (size_t)j] = (float)(sums[j] / total);
    }
    free(logits);
    free(sums);
}

static void run(const shape *s, const data *d, bool has_sinks)
{
    tkv_attend_params params = s->params;
    params.n_queries = s->n_queries;
    params.n_heads = s->n_kv_heads * s->group;
    params.first_position = s->n_tokens - s->n_queries;
    params.sinks = has_sinks ? d->sinks : NULL;
    assert_ok(tkv_attend(d->cache, 0, &params, d->q, d->out, &error));
}

/* Relative to the norm of the output: what float arithmetic leaves, and what the kernels' rounding
 * of queries and weights does to a mean of values, whose norm is a fraction of theirs. Far below
 * the error of the codes. */
static double bound(const tkv_context *context)
{
    const tkv_kernels *k = context->kernels;
    return 1e-5 + 10.0 * (double)fmaxf(k->weight_rounding, k->query_rounding);
}

static void check(tkv_context *context, const shape *s, bool has_sinks)
{
    data d = create_data(context, s, (uint64_t)(s->n_tokens + 1000 * s->dim_k));
    run(s, &d, has_sinks);
    for (int query = 0; query < s->n_queries; query++) {
        for (int head = 0; head < s->n_kv_heads * s->group; head++) {
            attend_by_definition(s, &d, query, head, has_sinks);
        }
    }
    const size_t n = (size_t)s->n_queries * (size_t)(s->n_kv_heads * s->group * s->dim_v);
    const double error = relative_error(n, d.out, d.expected);
    if (!(error < bound(context))) {
        fail_msg("relative error %g: kernels %s, types %d/%d, dims %d/%d, group %d, %d tokens, %d "
                 "queries",
                 error, tkv_context_kernels(context), (int)s->type_k, (int)s->type_v, s->dim_k,
                 s->dim_v, s->group, s->n_tokens, s->n_queries);
    }
    free_data(&d);
}

static shape base_shape(void)
{
    return (shape){.type_k = TKV_TYPE_TURBO3,
                   .type_v = TKV_TYPE_TURBO3,
                   .dim_k = 64,
                   .dim_v = 64,
                   .n_kv_heads = 2,
                   .group = 4,
                   .n_tokens = 200,
                   .n_queries = 1,
                   .value_offset = 2.0f};
}

static void types_and_head_dims(void **state)
{
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            shape s = base_shape();
            s.type_k = (tkv_type)type;
            s.type_v = (tkv_type)((type + d) % TKV_TYPE_COUNT);
            s.dim_k = page_head_dims[d];
            s.dim_v = d % 2 ? page_head_dims[d] : page_head_dims[(d + 2) % N_PAGE_HEAD_DIMS];
            s.n_tokens = 130;
            s.n_queries = 3;
            check(*state, &s, false);
        }
    }
}

static void lengths_around_page_edges(void **state)
{
    const int lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 300, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        shape s = base_shape();
        s.n_tokens = lengths[i];
        check(*state, &s, false);
        s.n_queries = lengths[i] < 140 ? lengths[i] : 130;
        check(*state, &s, true);
    }
}

static void groups(void **state)
{
    for (int group = 1; group <= 16; group++) {
        shape s = base_shape();
        s.group = group;
        s.n_queries = group % 3 ? 1 : 9;
        check(*state, &s, false);
    }
    shape s = base_shape();
    s.n_kv_heads = 1;
    s.group = 100;
    check(*state, &s, false);
}

static void windows_caps_sinks_and_scales(void **state)
{
    const int windows[] = {0, 1, 5, 64, 150, 100000};
    const float caps[] = {0.0f, 3.0f};
    for (int i = 0; i < 24; i++) {
        shape s = base_shape();
        s.n_tokens = 260;
        s.n_queries = i % 2 ? 70 : 1;
        s.params.window = windows[i % 6];
        s.params.logit_softcap = caps[i / 6 % 2];
        s.params.scale = i % 5 ? 0.0f : 0.3f;
        check(*state, &s, i / 12);
    }
}

/* A sink of -infinity is none. */
static void sinks_may_be_absent(void **state)
{
    shape s = base_shape();
    data d = create_data(*state, &s, 6);
    const size_t n = (size_t)(s.n_kv_heads * s.group * s.dim_v);
    float *without = allocate(n * sizeof *without);
    run(&s, &d, false);
    memcpy(without, d.out, n * sizeof *without);
    for (int h = 0; h < s.n_kv_heads * s.group; h++) {
        d.sinks[h] = -INFINITY;
    }
    run(&s, &d, true);
    assert_memory_equal(d.out, without, n * sizeof *without);
    d.sinks[0] = 3e38f; /* takes all of the softmax */
    run(&s, &d, true);
    for (int j = 0; j < s.dim_v; j++) {
        assert_true(d.out[j] == 0.0f);
    }
    free(without);
    free_data(&d);
}

static void policies(void **state)
{
    for (int i = 0; i < 32; i++) {
        shape s = base_shape();
        s.n_tokens = 400;
        s.n_queries = i % 2 ? 1 : 67;
        s.n_sinks = i & 2 ? 5 : 0;
        s.n_recent = i & 4 ? 70 : 0;
        s.centre_tokens = i & 8 ? 66 : 0;
        s.value_offset = i & 8 ? 5.0f : 2.0f; /* enough for a mean to be worth taking off */
        s.params.logit_softcap = i & 16 ? 4.0f : 0.0f;
        s.params.window = i & 16 ? 180 : 0;
        check(*state, &s, i & 1);
    }
}

static void threads_do_not_change_the_result(void **state)
{
    (void)state;
    shape s = base_shape();
    s.n_tokens = 3000;
    s.n_kv_heads = 1;
    float *first = NULL;
    const size_t n = (size_t)(s.group * s.dim_v);
    const int counts[] = {1, 2, 5};
    for (int i = 0; i < 3; i++) {
        tkv_context *context = create_context(counts[i]);
        assert_int_equal(tkv_context_threads(context), counts[i]);
        data d = create_data(context, &s, 4);
        run(&s, &d, false);
        if (!first) {
            first = allocate(n * sizeof *first);
            memcpy(first, d.out, n * sizeof *first);
        }
        assert_true(relative_error(n, d.out, first) < bound(context));
        free_data(&d);
        tkv_context_free(context);
    }
    free(first);
}

/* The sum stays exact, so what is skipped is bounded by the threshold. */
/* The output of one head of a single query where values are skipped whose weight is below a
 * threshold times the largest weight up to their page; returns how many. */
static int attend_sparsely(const shape *s, const data *d, int head, double threshold)
{
    double *sums = allocate((size_t)s->dim_v * sizeof *sums);
    double maximum = -INFINITY;
    double total = 0.0;
    int n_skipped = 0;
    for (int page = 0; page < s->n_tokens; page += TKV_PAGE_TOKENS) {
        const int end = page + TKV_PAGE_TOKENS < s->n_tokens ? page + TKV_PAGE_TOKENS : s->n_tokens;
        double largest = maximum;
        for (int t = page; t < end; t++) {
            largest = fmax(largest, logit_of(s, d, (size_t)head, head, t));
        }
        total *= exp(maximum - largest);
        for (int j = 0; j < s->dim_v; j++) {
            sums[j] *= exp(maximum - largest);
        }
        maximum = largest;
        for (int t = page; t < end; t++) {
            const double weight = exp(logit_of(s, d, (size_t)head, head, t) - maximum);
            const float *v =
                d->v +
                ((size_t)t * (size_t)s->n_kv_heads + (size_t)(head / s->group)) * (size_t)s->dim_v;
            const bool is_skipped = weight < threshold;
            n_skipped += is_skipped;
            total += weight;
            for (int j = 0; !is_skipped && j < s->dim_v; j++) {
                sums[j] += weight * (double)v[j];
            }
        }
    }
    for (int j = 0; j < s->dim_v; j++) {
        d->expected[head * s->dim_v + j] = (float)(sums[j] / total);
    }
    free(sums);
    return n_skipped;
}

static void sparse_v_is_as_defined(void **state)
{
    (void)state;
    tkv_context *context = create_context(1);
    const double thresholds[] = {1e-4, 1e-2, 0.2};
    for (int i = 0; i < 3; i++) {
        shape s = base_shape();
        s.n_tokens = 1000;
        s.params.scale = i == 0 ? 0.3f : 1.0f;
        data d = create_data(context, &s, 10 + (uint64_t)i);
        tkv_attend_stats stats = {0, 0};
        s.params.stats = &stats;
        s.params.sparse_v = (float)thresholds[i];
        run(&s, &d, false);
        int n_skipped = 0;
        for (int head = 0; head < s.n_kv_heads * s.group; head++) {
            n_skipped += attend_sparsely(&s, &d, head, thresholds[i]);
        }
        const size_t n = (size_t)(s.n_kv_heads * s.group * s.dim_v);
        /* A few of 8000 weights lie so near the threshold that rounding decides. */
        assert_true(abs((int)stats.n_skipped - n_skipped) <= 16);
        assert_true(relative_error(n, d.out, d.expected) < bound(context) + 0.02 * thresholds[i]);
        free_data(&d);
    }
    tkv_context_free(context);
}

static void sparse_v_skips_small_weights_only(void **state)
{
    shape s = base_shape();
    s.n_tokens = 1000;
    s.params.scale = 1.0f; /* a peaked softmax */
    data d = create_data(*state, &s, 9);
    const size_t n = (size_t)(s.n_kv_heads * s.group * s.dim_v);
    run(&s, &d, false);
    float *exact = allocate(n * sizeof *exact);
    memcpy(exact, d.out, n * sizeof *exact);
    tkv_attend_stats stats = {0, 0};
    s.params.stats = &stats;
    s.params.sparse_v = 1e-6f;
    run(&s, &d, false);
    assert_int_equal(stats.n_weights, 1000 * s.n_kv_heads * s.group);
    assert_true(stats.n_skipped > stats.n_weights / 10 && stats.n_skipped < stats.n_weights);
    assert_true(relative_error(n, d.out, exact) < 1e-3);
    s.params.sparse_v = 1.0f;
    const int64_t before = stats.n_skipped;
    run(&s, &d, false);
    assert_true(stats.n_skipped - before > stats.n_weights / 4);
    s.params.sparse_v = 0.0f;
    run(&s, &d, false);
    assert_memory_equal(d.out, exact, n * sizeof *exact);
    free(exact);
    free_data(&d);
}

static void assert_finite(size_t n, const float *x)
{
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(x[i]));
    }
}

static void extreme_queries_give_finite_results(void **state)
{
    shape s = base_shape();
    data d = create_data(*state, &s, 3);
    const size_t n_q = (size_t)(s.n_kv_heads * s.group * s.dim_k);
    const float sizes[] = {1e30f, 3e38f, 1e-38f, 0.0f};
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < n_q; j++) {
            d.q[j] = j % 2 ? sizes[i] : -sizes[i];
        }
        run(&s, &d, false);
        assert_finite((size_t)(s.n_kv_heads * s.group * s.dim_v), d.out);
    }
    free_data(&d);
}

static void extreme_keys_and_values_give_finite_results(void **state)
{
    const float sizes[] = {1e6f, 1e30f, -3.4e38f};
    for (int i = 0; i < 3 * TKV_TYPE_COUNT * 4; i++) {
        shape s = base_shape();
        s.type_k = (tkv_type)(i / 3 % TKV_TYPE_COUNT);
        s.type_v = (tkv_type)(i / 3 % TKV_TYPE_COUNT);
        s.n_kv_heads = 1;
        s.n_tokens = 150;
        s.dim_k = 80;
        s.outlier = sizes[i % 3];
        s.n_recent = i / 27 & 1 ? 70 : 0;
        s.centre_tokens = i / 27 & 2 ? 66 : 0;
        s.n_sinks = i & 1;
        data d = create_data(*state, &s, (uint64_t)i);
        run(&s, &d, false);
        assert_finite((size_t)s.n_tokens * (size_t)(s.n_kv_heads * s.dim_k), d.k);
        assert_finite((size_t)(s.n_kv_heads * s.group * s.dim_v), d.out);
        free_data(&d);
    }
}

static void mistakes_are_explained(void **state)
{
    shape s = base_shape();
    data d = create_data(*state, &s, 3);
    const tkv_attend_params base = {.n_queries = 1, .n_heads = 8, .first_position = 199};
    tkv_attend_params p = base;
    assert_fails(tkv_attend(d.cache, 1, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "layer 1");
    assert_fails(tkv_attend(d.cache, -1, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "layer -1");
    assert_fails(tkv_attend(NULL, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
    assert_fails(tkv_attend(d.cache, 0, NULL, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "NULL");
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
    assert_fails(tkv_attend(d.cache, 0, &p, NULL, d.out, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
    p.n_heads = 7;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "n_heads 7");
    p = base;
    p.first_position = 200;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "200 tokens");
    p.first_position = -1;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "position -1");
    p = base;
    p.n_queries = 0;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "0 queries");
    p.n_queries = INT_MAX;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "queries from position 199");
    p = base;
    p.n_heads = 0;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "n_heads 0");
    p = base;
    p.scale = INFINITY;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "scale inf");
    p = base;
    p.window = -1;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "window -1");
    p = base;
    p.logit_softcap = NAN;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "softcap");
    p = base;
    p.sparse_v = 2.0f;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "sparse_v 2");
    p = base;
    d.sinks[3] = NAN;
    p.sinks = d.sinks;
    assert_fails(tkv_attend(d.cache, 0, &p, d.q, d.out, &error), TKV_ERR_NOT_FINITE,
                 "sink of head 3");
    d.q[64 + 5] = INFINITY;
    assert_fails(tkv_attend(d.cache, 0, &base, d.q, d.out, &error), TKV_ERR_NOT_FINITE,
                 "query 0, head 1, coordinate 5");
    free_data(&d);
}

static int set_up(void **state)
{
    *state = create_context(2);
    return 0;
}

static int tear_down(void **state)
{
    tkv_context_free(*state);
    return 0;
}

int main(void)
{
    const tkv_kernels *kernels;
    tkv_error reason;
    if (tkv_kernels_select(getenv("TKV_CPU"), &kernels, &reason) != TKV_OK) {
        print_message("skipped: %s\n", reason.message);
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_and_head_dims),
        cmocka_unit_test(lengths_around_page_edges),
        cmocka_unit_test(groups),
        cmocka_unit_test(windows_caps_sinks_and_scales),
        cmocka_unit_test(sinks_may_be_absent),
        cmocka_unit_test(policies),
        cmocka_unit_test(threads_do_not_change_the_result),
        cmocka_unit_test(sparse_v_is_as_defined),
        cmocka_unit_test(sparse_v_skips_small_weights_only),
        cmocka_unit_test(extreme_queries_give_finite_results),
        cmocka_unit_test(extreme_keys_and_values_give_finite_results),
        cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
