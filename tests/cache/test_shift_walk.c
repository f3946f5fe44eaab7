/* Any number of shifts, in whatever steps: a token is never coded twice. */
#include "device/context.h"
#include "shift_rows.h"

/* A sequence whose tokens come and go: which of the tokens is at each position, and how its cache
 * was made. */
typedef struct walk {
    tkv_context *context;
    tkv_type type;
    int sinks;
    int recent;
    int centre;
    tkv_rope rope;
    const float *k; /* of all tokens, not turned */
    const float *v;
    int origin[N_TOKENS];
    int length;
    int n_seen;
} walk;

static void append_next(walk *w, tkv_cache *cache)
{
    append(cache, &w->rope, w->k, w->v, w->n_seen, w->length);
    w->origin[w->length++] = w->n_seen++;
}

static void drop(walk *w, tkv_cache *cache, int first, int n)
{
    assert_ok(tkv_cache_shift(cache, first, n, &w->rope, &error));
    memmove(w->origin + first, w->origin + first + n,
            (size_t)(w->length - first - n) * sizeof *w->origin);
    w->length -= n;
    assert_int_equal(tkv_cache_length(cache, 0), w->length);
}

/* Keys and values as they should be: k, then v [length][N_KV_HEADS][DIM]. */
static float *exact_rows(const walk *w)
{
    const size_t size = (size_t)(w->length * N_KV_HEADS * DIM);
    float *x = allocate(2 * size * sizeof *x);
    for (int i = 0; i < w->length * N_KV_HEADS; i++) {
        const int row = w->origin[i / N_KV_HEADS] * N_KV_HEADS + i % N_KV_HEADS;
        turn(&w->rope, i / N_KV_HEADS, w->k + row * DIM, x + i * DIM);
        memcpy(x + size + i * DIM, w->v + row * DIM, DIM * sizeof *x);
    }
    return x;
}

static float *read_rows(const walk *w, const tkv_cache *cache)
{
    const size_t size = (size_t)(w->length * N_KV_HEADS * DIM);
    float *x = allocate(2 * size * sizeof *x);
    assert_ok(tkv_cache_read(cache, 0, 0, w->length, x, x + size, &error));
    return x;
}

/* What coding Gaussian rows once leaves, relative to their norm; the trellis is searched fast. */
static double one_coding(tkv_type type)
{
    const bool is_trellis = type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2;
    const double nmse = tkv_type_get_info(type)->expected_nmse;
    return type == TKV_TYPE_F16 ? 1e-3 : sqrt((is_trellis ? 1.2 : 1.1) * nmse);
}

enum { N_HEADS = 8, N_QUERIES = 3, N_OUT = N_QUERIES * N_HEADS * DIM };

/* Attention by definition over rows as exact_rows and read_rows give them. */
static void attend_over(const walk *w, const float *rows, const float *q, float *out)
{
    const float *v = rows + w->length * N_KV_HEADS * DIM;
    for (int i = 0; i < N_QUERIES * N_HEADS; i++) {
        const int kv_head = i % N_HEADS / (N_HEADS / N_KV_HEADS);
        const int end = w->length - N_QUERIES + i / N_HEADS + 1;
        double sum = 0.0;
        double sums[DIM] = {0.0};
        for (int t = 0; t < end; t++) {
            double logit = 0.0;
            for (int j = 0; j < DIM; j++) {
                logit +=
                    (double)q[i * DIM + j] * (double)rows[(t * N_KV_HEADS + kv_head) * DIM + j];
            }
            const double weight = exp(logit / sqrt(DIM));
            sum += weight;
            for (int j = 0; j < DIM; j++) {
                sums[j] += weight * (double)v[(t * N_KV_HEADS + kv_head) * DIM + j];
            }
        }
        for (int j = 0; j < DIM; j++) {
            out[i * DIM + j] = (float)(sums[j] / sum);
        }
    }
}

static void attend_last(const walk *w, const tkv_cache *cache, const float *q, float *out)
{
    const tkv_attend_params params = {
        .n_queries = N_QUERIES, .n_heads = N_HEADS, .first_position = w->length - N_QUERIES};
    assert_ok(tkv_attend(cache, 0, &params, q, out, &error));
}

/* What the kernels' rounding of queries and weights does to a mean of values. */
static double attention_bound(const tkv_context *context)
{
    const tkv_kernels *k = context->kernels;
    return 1e-5 + 20.0 * (double)fmaxf(k->weight_rounding, k->query_rounding);
}

/* Rows are one coding from exact ones, all of them and the oldest, which were shifted most; and
 * attention is that over these rows. */
static void check_walk(const walk *w, const tkv_cache *cache)
{
    float q[N_OUT];
    float out[N_OUT];
    float expected[N_OUT];
    uint64_t seed = (uint64_t)w->n_seen;
    const size_t size = (size_t)(w->length * N_KV_HEADS * DIM);
    const int n_old = w->length < 40 ? w->length : 40;
    const size_t old = (size_t)(n_old * N_KV_HEADS * DIM);
    float *exact = exact_rows(w);
    float *rows = read_rows(w, cache);
    for (int order = 0; order < 2; order++) {
        const float *x = rows + (order ? size : 0);
        const float *y = exact + (order ? size : 0);
        const double all = relative_error(size, x, y);
        const double oldest = relative_error(old, x, y);
        if (!(all < one_coding(w->type) && oldest < 1.15 * one_coding(w->type))) {
            fail_msg("type %d, %d of %d tokens, %s: errors %g, of the oldest %g", w->type,
                     w->length, w->n_seen, order ? "values" : "keys", all, oldest);
        }
    }
    if (w->length >= N_QUERIES) {
        fill_gauss(&seed, N_OUT, q);
        attend_last(w, cache, q, out);
        attend_over(w, rows, q, expected);
        assert_true(relative_error(N_OUT, out, expected) < attention_bound(w->context));
    }
    free(exact);
    free(rows);
}

/* A cache that was given the tokens of the walk as they are now. */
static tkv_cache *build_afresh(const walk *w)
{
    tkv_cache *cache = create(w->context, w->type, w->sinks, w->recent, w->centre);
    for (int i = 0; i < w->length; i++) {
        append(cache, &w->rope, w->k, w->v, w->origin[i], i);
    }
    return cache;
}

/* Against a cache built afresh: attention is as good, and there is no more memory than the rest of
 * a page on either side of the gap. */
static void check_against_fresh(const walk *w, const tkv_cache *cache)
{
    float q[N_OUT];
    float out[N_OUT];
    float expected[N_OUT];
    uint64_t seed = (uint64_t)w->n_seen;
    tkv_cache *fresh = build_afresh(w);
    float *exact = exact_rows(w);
    fill_gauss(&seed, N_OUT, q);
    attend_over(w, exact, q, expected);
    attend_last(w, fresh, q, out);
    const double of_fresh = relative_error(N_OUT, out, expected);
    attend_last(w, cache, q, out);
    const double of_shifted = relative_error(N_OUT, out, expected);
    if (!(of_shifted < 1.5 * of_fresh + attention_bound(w->context))) {
        fail_msg("type %d after %d tokens: attention errs by %g, a fresh cache's by %g", w->type,
                 w->n_seen, of_shifted, of_fresh);
    }
    const size_t page = 2 * N_KV_HEADS * tkv_page_bytes(TKV_TYPE_F16, DIM);
    const size_t bytes = tkv_cache_bytes(cache);
    if (!(bytes < tkv_cache_bytes(fresh) + 2 * page + 2048)) {
        fail_msg("type %d after %d tokens: %zu bytes, a fresh cache's %zu", w->type, w->n_seen,
                 bytes, tkv_cache_bytes(fresh));
    }
    free(exact);
    tkv_cache_free(fresh);
}

enum { N_SHIFTS = 10000, FULL = 200, N_SEEN = FULL + N_SHIFTS };

/* A window that rolls: one token after the sinks is dropped for each new one. */
static void ten_thousand_shifts_are_one_coding(void **state)
{
    (void)state;
    float frequencies[DIM / 2];
    fill_frequencies(frequencies);
    float *k = gauss_rows(11, N_SEEN);
    float *v = gauss_rows(12, N_SEEN);
    tkv_context *context = create_context();
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        walk w = {.context = context,
                  .type = (tkv_type)type,
                  .sinks = 4,
                  .recent = type % 3 ? 32 : 0,
                  .centre = type % 3 == 2 ? 60 : 0,
                  .rope = {type % 2, DIM, frequencies},
                  .k = k,
                  .v = v};
        tkv_cache *cache = create(context, w.type, w.sinks, w.recent, w.centre);
        while (w.n_seen < FULL) {
            append_next(&w, cache);
        }
        for (int shift = 1; shift <= N_SHIFTS; shift++) {
            drop(&w, cache, 4, 1);
            append_next(&w, cache);
            if (shift == 1 || shift == 10 || shift == 100 || shift % 2500 == 0) {
                check_walk(&w, cache);
                check_against_fresh(&w, cache);
            }
        }
        tkv_cache_free(cache);
    }
    free(k);
    free(v);
    tkv_context_free(context);
}

/* One step of a random walk; returns the cache that goes on. */
static tkv_cache *take_step(walk *w, tkv_cache *cache, uint64_t *seed)
{
    const int n = 1 + random_below(seed, 50);
    const int first = random_below(seed, w->length + 1);
    tkv_cache *fork = NULL;
    switch (random_below(seed, 6)) {
    case 0:
        w->length = w->length > n ? w->length - n : 0;
        assert_ok(tkv_cache_truncate(cache, w->length, &error));
        return cache;
    case 1:
        w->length = first;
        assert_ok(tkv_cache_fork(cache, first, &fork, &error));
        tkv_cache_free(cache);
        return fork;
    case 2:
    case 3:
        if (first < w->length) {
            const int most = w->length - first;
            drop(w, cache, first, n < most ? n : most);
        }
        return cache;
    default:
        for (int i = 0; i < 2 * n && w->length < N_TOKENS && w->n_seen < N_SEEN; i++) {
            append_next(w, cache);
        }
        return cache;
    }
}

/* Shifts of any step at any place, among truncations and forks, whose originals stay as they were.
 */
static void shifts_at_random_are_one_coding(void **state)
{
    (void)state;
    float frequencies[DIM / 2];
    fill_frequencies(frequencies);
    float *k = gauss_rows(13, N_SEEN);
    float *v = gauss_rows(14, N_SEEN);
    tkv_context *context = create_context();
    for (int run = 0; run < 4 * TKV_TYPE_COUNT; run++) {
        uint64_t seed = (uint64_t)run;
        walk w = {.context = context,
                  .type = (tkv_type)(run % TKV_TYPE_COUNT),
                  .sinks = run & 1 ? 4 : 0,
                  .recent = run & 2 ? 32 : 0,
                  .centre = run & 4 ? 60 : 0,
                  .rope = {run & 1, run & 2 ? DIM : DIM / 2, frequencies},
                  .k = k,
                  .v = v};
        tkv_cache *cache = create(context, w.type, w.sinks, w.recent, w.centre);
        for (int step = 0; step < 60; step++) {
            cache = take_step(&w, cache, &seed);
            if (step % 15 == 7) {
                const walk before = w;
                tkv_cache *fork = NULL;
                assert_ok(tkv_cache_fork(cache, w.length, &fork, &error));
                cache = take_step(&w, cache, &seed);
                check_walk(&before, fork);
                tkv_cache_free(fork);
            }
            if (step % 4 == 0) {
                check_walk(&w, cache);
            }
        }
        check_walk(&w, cache);
        tkv_cache_free(cache);
    }
    free(k);
    free(v);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ten_thousand_shifts_are_one_coding),
                                       cmocka_unit_test(shifts_at_random_are_one_coding)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
