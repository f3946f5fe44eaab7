#include "gate/probe.h"

#include "common/error.h"
#include "eval/clock.h"

#include <stdlib.h>

enum { MAX_TOKENS = 16384, CHUNK = TKV_PAGE_TOKENS };

/* To fill the cache of one type, and to time it. */
static const double FILL_SECONDS = 0.6;
static const double TIME_SECONDS = 0.3;

static const int MIN_CALLS = 3;

typedef struct prober {
    struct tkv_context context;
    int n_tokens;
    float *rows; /* [CHUNK][TKV_PROBE_KV_HEADS][TKV_PROBE_HEAD_DIM] */
    float *query;
    float *out; /* [TKV_PROBE_KV_HEADS * TKV_PROBE_GROUP][TKV_PROBE_HEAD_DIM] */
} prober;

/* Fast and Gaussian enough: what the values are does not matter to speed. */
static void fill(uint32_t seed, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            seed = seed * 1664525u + 1013904223u;
            sum += (float)(seed >> 8) * 0x1p-24f - 0.5f;
        }
        x[i] = 1.7f * sum;
    }
}

static tkv_status fill_cache(const prober *p, tkv_cache *cache, int n_tokens, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int done = 0; done < n_tokens && status == TKV_OK; done += CHUNK) {
        status = tkv_cache_append(cache, 0, CHUNK, p->rows, p->rows, error);
    }
    return status;
}

static tkv_status create_cache(prober *p, tkv_type type, tkv_cache **cache, tkv_error *error)
{
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = TKV_PROBE_KV_HEADS,
                                     .head_dim_k = TKV_PROBE_HEAD_DIM,
                                     .head_dim_v = TKV_PROBE_HEAD_DIM,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = &type,
                                     .types_v = &type};
    return tkv_cache_create(&p->context, &params, cache, error);
}

/* As many tokens as the type that is slowest to encode allows. */
static tkv_status choose_length(prober *p, tkv_error *error)
{
    double slowest = 0.0;
    tkv_status status = TKV_OK;
    for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
        tkv_cache *cache = NULL;
        status = create_cache(p, (tkv_type)type, &cache, error);
        const double start = tkv_clock();
        if (status == TKV_OK) {
            status = fill_cache(p, cache, CHUNK, error);
        }
        const double seconds = tkv_clock() - start;
        slowest = seconds > slowest ? seconds : slowest;
        tkv_cache_free(cache);
    }
    const double n_chunks = slowest > 0.0 ? FILL_SECONDS / slowest : MAX_TOKENS;
    p->n_tokens = n_chunks >= MAX_TOKENS / CHUNK ? MAX_TOKENS : CHUNK * (1 + (int)n_chunks);
    return status;
}

/* The fastest of as many calls as there is time for: others use the machine too. */
static tkv_status time_calls(const prober *p, const tkv_cache *cache, double *microseconds,
                             tkv_error *error)
{
    const tkv_attend_params params = {.n_queries = 1,
                                      .n_heads = TKV_PROBE_KV_HEADS * TKV_PROBE_GROUP,
                                      .first_position = p->n_tokens - 1};
    const double begin = tkv_clock();
    double best = 1e9;
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && (i < MIN_CALLS || tkv_clock() - begin < TIME_SECONDS);
         i++) {
        const double start = tkv_clock();
        status = tkv_attend(cache, 0, &params, p->query, p->out, error);
        const double seconds = tkv_clock() - start;
        best = seconds < best ? seconds : best;
    }
    *microseconds = 1e6 * best;
    return status;
}

static tkv_status time_type(prober *p, tkv_type type, double *microseconds, tkv_error *error)
{
    tkv_cache *cache = NULL;
    tkv_status status = create_cache(p, type, &cache, error);
    if (status == TKV_OK) {
        status = fill_cache(p, cache, p->n_tokens, error);
    }
    if (status == TKV_OK) {
        status = time_calls(p, cache, microseconds, error);
    }
    tkv_cache_free(cache);
    return status;
}

tkv_status tkv_probe_run(const tkv_kernels *kernels, int n_threads, tkv_probe *probe,
                         tkv_error *error)
{
    const size_t n_rows = (size_t)CHUNK * TKV_PROBE_KV_HEADS * TKV_PROBE_HEAD_DIM;
    const size_t n_out = (size_t)TKV_PROBE_KV_HEADS * TKV_PROBE_GROUP * TKV_PROBE_HEAD_DIM;
    prober p = {.context = {.kernels = kernels, .n_threads = n_threads, .effort = TKV_EFFORT_FAST},
                .rows = malloc(n_rows * sizeof(float)),
                .query = malloc(n_out * sizeof(float)),
                .out = malloc(n_out * sizeof(float))};
    tkv_status status = p.rows && p.query && p.out
                            ? TKV_OK
                            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the probe");
    if (status == TKV_OK) {
        fill(1, n_rows, p.rows);
        fill(2, n_out, p.query);
        status = choose_length(&p, error);
    }
    *probe = (tkv_probe){.n_threads = p.context.n_threads, .n_tokens = p.n_tokens};
    for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
        status = time_type(&p, (tkv_type)type, &probe->microseconds[type], error);
    }
    free(p.rows);
    free(p.query);
    free(p.out);
    return status;
}
