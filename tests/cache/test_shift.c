#include "device/context.h"
#include "support/support.h"

#include <limits.h>

enum { DIM = 64, N_KV_HEADS = 2, N_TOKENS = 400 };

/* RoPE by definition, in double. */
static void turn(const tkv_rope *rope, int position, const float *in, float *out)
{
    memcpy(out, in, DIM * sizeof *out);
    for (int i = 0; i < rope->n_rotated / 2; i++) {
        const int a = rope->is_interleaved ? 2 * i : i;
        const int b = rope->is_interleaved ? 2 * i + 1 : i + rope->n_rotated / 2;
        const double angle = position * (double)rope->frequencies[i];
        out[a] = (float)((double)in[a] * cos(angle) - (double)in[b] * sin(angle));
        out[b] = (float)((double)in[a] * sin(angle) + (double)in[b] * cos(angle));
    }
}

static tkv_cache *create(tkv_context *context, tkv_type type, int sinks, int recent, int centre)
{
    const tkv_type types[1] = {type};
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = N_TOKENS,
                                     .types_k = types,
                                     .types_v = types,
                                     .n_sinks = sinks,
                                     .n_recent = recent,
                                     .centre_tokens = centre};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

/* Appends token `index` as if it stood at `position`. */
static void append(tkv_cache *cache, const tkv_rope *rope, const float *k, const float *v,
                   int index, int position)
{
    float turned[N_KV_HEADS * DIM];
    for (int h = 0; h < N_KV_HEADS; h++) {
        turn(rope, position, k + (index * N_KV_HEADS + h) * DIM, turned + h * DIM);
    }
    assert_ok(tkv_cache_append(cache, 0, 1, turned, v + index * N_KV_HEADS * DIM, &error));
}

/* A shifted cache is as close to one built from scratch at the new positions as coding allows. */
static void shifting_equals_recomputing(void **state)
{
    (void)state;
    const struct {
        tkv_type type;
        double bound; /* relative error of keys against exact ones: one coding, and one more */
    } cases[] = {{TKV_TYPE_F16, 1e-3},
                 {TKV_TYPE_TURBO8, 0.013},
                 {TKV_TYPE_TURBO4, 0.15},
                 {TKV_TYPE_TURBO3, 0.29}};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 5;
    float *k = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *v = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *v);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, k);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, v);
    float frequencies[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) {
        frequencies[i] = (float)pow(10000.0, -2.0 * i / DIM);
    }
    for (int variant = 0; variant < 16; variant++) {
        const tkv_rope rope = {variant & 1, variant & 2 ? DIM : DIM / 2, frequencies};
        const int first = variant & 4 ? 4 : 70;
        const int n_drop = variant & 8 ? 1 : 131;
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            tkv_cache *cache =
                create(context, cases[c].type, 4, variant & 1 ? 64 : 0, variant & 2 ? 64 : 0);
            for (int i = 0; i < 300; i++) {
                append(cache, &rope, k, v, i, i);
            }
            assert_ok(tkv_cache_shift(cache, first, n_drop, &rope, &error));
            assert_int_equal(tkv_cache_length(cache, 0), 300 - n_drop);
            for (int i = 300; i < 320; i++) {
                append(cache, &rope, k, v, i, i - n_drop);
            }
            const int n = 320 - n_drop;
            const size_t size = (size_t)n * N_KV_HEADS * DIM;
            float *x = allocate(4 * size * sizeof *x);
            assert_ok(tkv_cache_read(cache, 0, 0, n, x, x + size, &error));
            for (int i = 0; i < n * N_KV_HEADS; i++) {
                const int position = i / N_KV_HEADS;
                const int index =
                    (position < first ? position : position + n_drop) * N_KV_HEADS + i % N_KV_HEADS;
                turn(&rope, position, k + index * DIM, x + 2 * size + (size_t)i * DIM);
                memcpy(x + 3 * size + (size_t)i * DIM, v + index * DIM, DIM * sizeof *x);
            }
            assert_true(relative_error(size, x, x + 2 * size) < cases[c].bound);
            assert_true(relative_error(size, x + size, x + 3 * size) < cases[c].bound);
            free(x);
            tkv_cache_free(cache);
        }
    }
    free(k);
    free(v);
    tkv_context_free(context);
}

/* Means that tokens are coded with stay, whatever became of those that they were made of. */
static void what_is_coded_stays_as_it_is(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 6;
    float *k = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *before = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *after = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, k);
    for (int i = 0; i < N_TOKENS * N_KV_HEADS * DIM; i++) {
        k[i] += 4.0f;
    }
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 0, 0, 64);
    assert_ok(tkv_cache_append(cache, 0, 200, k, k, &error));
    assert_ok(tkv_cache_read(cache, 0, 170, 30, before, NULL, &error));
    const size_t bytes = tkv_cache_bytes(cache);
    assert_ok(tkv_cache_shift(cache, 0, 170, NULL, &error));
    assert_ok(tkv_cache_read(cache, 0, 0, 30, after, NULL, &error));
    assert_memory_equal(before, after, 30 * N_KV_HEADS * DIM * sizeof *k);
    assert_true(tkv_cache_bytes(cache) < bytes); /* pages of dropped tokens are given back */
    tkv_cache_free(cache);
    free(k);
    free(before);
    free(after);
    tkv_context_free(context);
}

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

static tkv_context *create_context(void)
{
    const tkv_context_params params = {.n_threads = 1, .effort = TKV_EFFORT_FAST};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

static float *gauss_rows(uint64_t seed, int n_tokens)
{
    float *x = allocate((size_t)(n_tokens * N_KV_HEADS * DIM) * sizeof *x);
    fill_gauss(&seed, (size_t)(n_tokens * N_KV_HEADS * DIM), x);
    return x;
}

static void fill_frequencies(float frequencies[DIM / 2])
{
    for (int i = 0; i < DIM / 2; i++) {
        frequencies[i] = (float)pow(10000.0, -2.0 * i / DIM);
    }
}

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

/* No sum of arguments overflows, in a check or in its message. */
static void the_largest_arguments_are_refused(void **state)
{
    (void)state;
    tkv_context *context = create_context();
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 4, 0, 0);
    float *x = gauss_rows(1, 100);
    assert_ok(tkv_cache_append(cache, 0, 100, x, x, &error));
    assert_fails(tkv_cache_shift(cache, INT_MAX, INT_MAX, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "drops 2147483647 tokens from position 2147483647 on, but layer 0 holds 100");
    assert_fails(tkv_cache_shift(cache, 1, INT_MAX, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_shift(cache, INT_MAX, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_shift(cache, INT_MIN, INT_MIN, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "-2147483648");
    assert_fails(tkv_cache_read(cache, 0, INT_MAX, INT_MAX, x, x, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_append(cache, 0, INT_MAX, x, x, &error), TKV_ERR_INVALID_ARGUMENT,
                 "full");
    assert_ok(tkv_cache_truncate(cache, INT_MAX, &error));
    assert_int_equal(tkv_cache_length(cache, 0), 100);
    free(x);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

/* A layer with a window has given back what is behind it. */
static tkv_cache *create_windowed(tkv_context *context, int window, const float *x, int n)
{
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_layer_shape shape = {N_KV_HEADS, DIM, DIM, window, NULL};
    const tkv_cache_params params = {.n_layers = 1,
                                     .max_tokens = N_TOKENS,
                                     .types_k = &type,
                                     .types_v = &type,
                                     .shapes = &shape};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    for (int i = 0; i < n; i++) {
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    }
    return cache;
}

/* A shift may drop all tokens that a layer with a window still holds: queries of tokens that are no
 * longer there have nothing to see. */
static void queries_of_tokens_that_are_gone_are_refused(void **state)
{
    (void)state;
    enum { N = 205, LEFT = 55 };
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 9;
    float *x = allocate(20 * N_KV_HEADS * DIM * sizeof *x);
    float *out = allocate(20 * N_KV_HEADS * DIM * sizeof *out);
    fill_gauss(&seed, 20 * N_KV_HEADS * DIM, x);
    for (int n_kept = 0; n_kept < 6; n_kept += 5) { /* of the tokens that are held */
        tkv_error refusal;
        tkv_cache *cache = create_windowed(context, 16, x, N);
        assert_ok(tkv_cache_shift(cache, LEFT - n_kept, N - LEFT, NULL, &error));
        assert_int_equal(tkv_cache_length(cache, 0), LEFT);
        tkv_attend_params params = {
            .n_queries = 20, .n_heads = N_KV_HEADS, .first_position = LEFT - 20};
        assert_int_equal(tkv_attend(cache, 0, &params, x, out, &refusal), TKV_ERR_INVALID_ARGUMENT);
        params.n_queries = 1;
        params.first_position = LEFT - 1 - n_kept;
        assert_int_equal(tkv_attend(cache, 0, &params, x, out, &refusal), TKV_ERR_INVALID_ARGUMENT);
        /* The next token sees itself. */
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
        params.first_position = LEFT;
        assert_ok(tkv_attend(cache, 0, &params, x, out, &error));
        assert_true(isfinite(out[0]));
        tkv_cache_free(cache);
    }
    free(x);
    free(out);
    tkv_context_free(context);
}

/* What a window misses because of a shift is no licence to miss all of it. */
static void a_shift_does_not_bring_back_what_a_window_lost(void **state)
{
    (void)state;
    enum { N = 300 };
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    const float x[N_KV_HEADS * DIM] = {1.0f};
    tkv_error refusal;
    tkv_cache *fork = NULL;
    tkv_cache *cache = create_windowed(context, 16, x, N);
    assert_ok(tkv_cache_shift(cache, 4, 1, NULL, &error));
    assert_int_equal(tkv_cache_truncate(cache, 100, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_int_equal(tkv_cache_fork(cache, 100, &fork, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_int_equal(tkv_cache_length(cache, 0), N - 1);
    /* A token or two are no trouble, nor are drafts from after a shift that windows notice. */
    assert_ok(tkv_cache_truncate(cache, N - 2, &error));
    assert_ok(tkv_cache_shift(cache, 50, N - 2 - 55, NULL, &error));
    for (int i = 0; i < 3; i++) {
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    }
    assert_ok(tkv_cache_truncate(cache, 55, &error));
    assert_int_equal(tkv_cache_truncate(cache, 54, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_ok(tkv_cache_truncate(cache, 0, &error));
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void another_rope_is_refused(void **state)
{
    (void)state;
    float frequencies[DIM / 2];
    fill_frequencies(frequencies);
    const tkv_rope rope = {false, DIM, frequencies};
    const tkv_rope others[] = {{true, DIM, frequencies}, {false, DIM / 2, frequencies}};
    tkv_context *context = create_context();
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 4, 0, 0);
    float *x = gauss_rows(1, 100);
    assert_ok(tkv_cache_append(cache, 0, 100, x, x, &error));
    assert_ok(tkv_cache_shift(cache, 10, 5, &rope, &error));
    for (int i = 0; i < 2; i++) {
        assert_fails(tkv_cache_shift(cache, 10, 5, &others[i], &error), TKV_ERR_INVALID_ARGUMENT,
                     "another RoPE");
    }
    assert_int_equal(tkv_cache_length(cache, 0), 95);
    free(x);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void wrong_shifts_are_refused(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 0, 0, 0);
    const tkv_rope odd = {false, 3, (const float[]){1.0f, 1.0f}};
    const tkv_rope wide = {false, DIM + 2, (const float[]){1.0f}};
    assert_fails(tkv_cache_shift(cache, 0, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "holds 0");
    assert_fails(tkv_cache_shift(cache, 0, 0, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "at least one");
    assert_fails(tkv_cache_shift(cache, -1, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "-1");
    assert_fails(tkv_cache_shift(cache, 0, 1, &odd, &error), TKV_ERR_INVALID_ARGUMENT, "3");
    assert_fails(tkv_cache_shift(cache, 0, 1, &wide, &error), TKV_ERR_INVALID_ARGUMENT, "66");
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shifting_equals_recomputing),
        cmocka_unit_test(what_is_coded_stays_as_it_is),
        cmocka_unit_test(ten_thousand_shifts_are_one_coding),
        cmocka_unit_test(shifts_at_random_are_one_coding),
        cmocka_unit_test(the_largest_arguments_are_refused),
        cmocka_unit_test(queries_of_tokens_that_are_gone_are_refused),
        cmocka_unit_test(a_shift_does_not_bring_back_what_a_window_lost),
        cmocka_unit_test(another_rope_is_refused),
        cmocka_unit_test(wrong_shifts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
