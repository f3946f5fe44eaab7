/* The attention kernels of the Metal back end against attention in double precision over the rows
 * that the device itself decodes (tests/conformance holds those to the reference, to the bit). */
#include "base/half.h"
#include "check/trial.h"
#include "device/metal/metal.h"
#include "support/support.h"

#include <float.h>

/* A run of the harness that reports nothing: cases are compared here. */
static tkv_error failure;
static tkv_check run = {.error = &failure};

static void assert_on(const tkv_trial *trial)
{
    if (!tkv_trial_is_on(trial)) {
        fail_msg("%s", failure.message);
    }
}

/* Of the largest value of the head: float sums of some hundred terms. */
#define TOLERANCE 3e-5

typedef struct attend_case {
    tkv_layer_case cache;
    int group;
    int n_queries;
    int back; /* the queries end so many tokens before the sequence does; 0: first_position is -1 */
    int window;
    float softcap;
    float sparse_v;
    bool has_sinks;
} attend_case;

/* What one attention reads and writes. */
typedef struct attend_memory {
    tkv_trial_layer cache;
    float *k[TKV_TRIAL_SEQUENCES]; /* [n_tokens][n_kv_heads][head_dim_k], as decoded */
    float *v[TKV_TRIAL_SEQUENCES];
    float *q;
    float *sinks;
    float *out;
    float *log_sums;
    tkv_attend_stats stats;
} attend_memory;

/* The first position of a sequence that holds a token, and the one after the last. */
static int begin_of(const attend_case *c)
{
    return c->cache.begin;
}

static int end_of(const attend_case *c, int sequence)
{
    return c->cache.end ? c->cache.end : c->cache.n_tokens[sequence];
}

/* Positions without a token keep the random bits that the harness puts there. */
static void fill_cache(tkv_trial *trial, const attend_case *c, attend_memory *m)
{
    const tkv_device_layer *layer = &c->cache.layer;
    tkv_trial_create_layer(trial, &c->cache, &m->cache);
    for (int s = 0; s < c->cache.n_sequences; s++) {
        const int n_tokens = c->cache.n_tokens[s];
        const uint64_t sequence = m->cache.address + (uint64_t)s * sizeof(tkv_device_sequence);
        uint64_t x[2];
        float **decoded[2] = {&m->k[s], &m->v[s]};
        size_t bytes[2];
        for (int order = 0; order < 2; order++) {
            bytes[order] = (size_t)(n_tokens * layer->n_kv_heads) *
                           (size_t)tkv_trial_head_dim(layer, order) * sizeof(float);
            x[order] = tkv_trial_put(trial, m->cache.sequences[s].rows[order], bytes[order]);
        }
        const uint64_t skipped = (uint64_t)(begin_of(c) * layer->n_kv_heads) * sizeof(float);
        assert_ok(trial->table->store(trial->device, layer, sequence, 1, begin_of(c),
                                      end_of(c, s) - begin_of(c),
                                      x[0] + skipped * (uint64_t)layer->head_dim_k,
                                      x[1] + skipped * (uint64_t)layer->head_dim_v, &error));
        assert_ok(
            trial->table->load(trial->device, layer, sequence, 0, n_tokens, x[0], x[1], &error));
        for (int order = 0; order < 2; order++) {
            *decoded[order] = tkv_trial_host(trial, bytes[order]);
            assert_on(trial);
            assert_ok(trial->table->download(trial->device, *decoded[order], x[order], bytes[order],
                                             &error));
        }
    }
}

static int first_position_of(const attend_case *c, int sequence)
{
    return c->cache.n_tokens[sequence] - c->back - c->n_queries;
}

static tkv_device_attend params_of(const attend_case *c, const attend_memory *m)
{
    const tkv_device_layer *layer = &c->cache.layer;
    int max_tokens = 0;
    for (int s = 0; s < c->cache.n_sequences; s++) {
        max_tokens = c->cache.n_tokens[s] > max_tokens ? c->cache.n_tokens[s] : max_tokens;
    }
    return (tkv_device_attend){.layer = *layer,
                               .n_sequences = c->cache.n_sequences,
                               .max_tokens = max_tokens,
                               .n_queries = c->n_queries,
                               .n_heads = layer->n_kv_heads * c->group,
                               .first_position = c->back ? first_position_of(c, 0) : -1,
                               .window = c->window,
                               .scale = 1.0f / sqrtf((float)layer->head_dim_k),
                               .logit_softcap = c->softcap,
                               .sparse_v = c->sparse_v,
                               .sequences = m->cache.address,
                               .begin = c->cache.begin,
                               .end = c->cache.end};
}

/* Runs the device's attention; out lies between guards. */
static void attend_on_device(tkv_trial *trial, const attend_case *c, attend_memory *m)
{
    tkv_device_attend params = params_of(c, m);
    const tkv_device_layer *layer = &c->cache.layer;
    const size_t rows =
        (size_t)(c->cache.n_sequences * c->n_queries) * (size_t)(layer->n_kv_heads * c->group);
    const size_t q_floats = rows * (size_t)layer->head_dim_k;
    const size_t out_floats = rows * (size_t)layer->head_dim_v;
    uint64_t seed = c->cache.seed + 1;
    m->q = tkv_trial_host(trial, q_floats * sizeof *m->q);
    m->sinks = tkv_trial_host(trial, (size_t)params.n_heads * sizeof *m->sinks);
    m->out = tkv_trial_host(trial, out_floats * sizeof *m->out);
    m->log_sums = tkv_trial_host(trial, rows * sizeof *m->log_sums);
    assert_on(trial);
    fill_gauss(&seed, q_floats, m->q);
    fill_gauss(&seed, (size_t)params.n_heads, m->sinks);
    params.q = tkv_trial_put(trial, m->q, q_floats * sizeof *m->q);
    params.out = tkv_trial_allocate(trial, out_floats * sizeof *m->out);
    params.log_sums = tkv_trial_allocate(trial, rows * sizeof *m->log_sums);
    params.sinks = c->has_sinks
                       ? tkv_trial_put(trial, m->sinks, (size_t)params.n_heads * sizeof *m->sinks)
                       : 0;
    params.stats = c->sparse_v > 0.0f ? tkv_trial_put(trial, &m->stats, sizeof m->stats) : 0;
    tkv_attend_plan plan;
    assert_ok(trial->table->plan(trial->device, &params, &plan, &error));
    const uint64_t workspace = tkv_trial_allocate(trial, plan.workspace_bytes);
    assert_ok(trial->table->attend(trial->device, &plan, workspace, &error));
    assert_ok(trial->table->download(trial->device, m->out, params.out, out_floats * sizeof *m->out,
                                     &error));
    assert_ok(trial->table->download(trial->device, m->log_sums, params.log_sums,
                                     rows * sizeof *m->log_sums, &error));
    if (params.stats) {
        assert_ok(trial->table->download(trial->device, &m->stats, params.stats, sizeof m->stats,
                                         &error));
    }
}

static double logit_of(const attend_case *c, const float *q, const float *k)
{
    const int head_dim = c->cache.layer.head_dim_k;
    double sum = 0.0;
    for (int j = 0; j < head_dim; j++) {
        sum += (double)q[j] * (double)k[j];
    }
    sum *= (double)(1.0f / sqrtf((float)head_dim));
    return c->softcap > 0.0f ? (double)c->softcap * tanh(sum / (double)c->softcap) : sum;
}

/* One query row over tokens first .. end - 1; returns the logarithm of its softmax's sum. */
static double attend_row(const attend_case *c, const attend_memory *m, int s, int kv_head,
                         const float *q, float sink, int first, int end, double *out)
{
    const tkv_device_layer *layer = &c->cache.layer;
    const size_t dim_k = (size_t)layer->head_dim_k;
    const size_t dim_v = (size_t)layer->head_dim_v;
    double *weights = allocate((size_t)end * sizeof *weights);
    double maximum = c->has_sinks ? (double)sink : -DBL_MAX;
    for (int t = first; t < end; t++) {
        weights[t] =
            logit_of(c, q, m->k[s] + ((size_t)(t * layer->n_kv_heads) + (size_t)kv_head) * dim_k);
        maximum = weights[t] > maximum ? weights[t] : maximum;
    }
    double total = c->has_sinks ? exp((double)sink - maximum) : 0.0;
    memset(out, 0, dim_v * sizeof *out);
    for (int t = first; t < end; t++) {
        const double weight = exp(weights[t] - maximum);
        const float *v = m->v[s] + ((size_t)(t * layer->n_kv_heads) + (size_t)kv_head) * dim_v;
        total += weight;
        for (size_t j = 0; j < dim_v; j++) {
            out[j] += weight * (double)v[j];
        }
    }
    for (size_t j = 0; j < dim_v; j++) {
        out[j] /= total;
    }
    free(weights);
    return total > 0.0 ? maximum + log(total) : -INFINITY;
}

static void describe_case(const attend_case *c, char *text, size_t size)
{
    snprintf(text, size,
             "types %d/%d, head_dim %d/%d, %d KV heads, group %d, %d queries ending %d before the "
             "end of %d tokens, those from %d to %d held, %d sequences, %d sinks, window %d, "
             "softcap %g, sink logits %d, "
             "sparse V %g, centred %d, exact share %d",
             c->cache.layer.type_k, c->cache.layer.type_v, c->cache.layer.head_dim_k,
             c->cache.layer.head_dim_v, c->cache.layer.n_kv_heads, c->group, c->n_queries, c->back,
             c->cache.n_tokens[0], begin_of(c), end_of(c, 0), c->cache.n_sequences,
             c->cache.layer.n_sinks, c->window, (double)c->softcap, c->has_sinks,
             (double)c->sparse_v, c->cache.is_centred, c->cache.exact_share);
}

static float largest_value(const attend_case *c, const attend_memory *m, int s)
{
    float largest = 0.0f;
    const int token = c->cache.layer.n_kv_heads * c->cache.layer.head_dim_v;
    for (int i = begin_of(c) * token; i < end_of(c, s) * token; i++) {
        largest = fmaxf(largest, fabsf(m->v[s][i]));
    }
    return largest;
}

/* Compares all rows; returns how many weights they have. */
static int64_t compare_rows(const attend_case *c, const attend_memory *m)
{
    const tkv_device_layer *layer = &c->cache.layer;
    const int n_heads = layer->n_kv_heads * c->group;
    double expected[TKV_MAX_HEAD_DIM];
    int64_t n_weights = 0;
    for (int s = 0; s < c->cache.n_sequences; s++) {
        const double bound =
            (TOLERANCE + 4.0 * (double)c->sparse_v) * (double)largest_value(c, m, s);
        const int first_position = c->back ? first_position_of(c, 0) : first_position_of(c, s);
        for (int i = 0; i < c->n_queries * n_heads; i++) {
            const size_t row = (size_t)(s * c->n_queries * n_heads + i);
            const int head = i % n_heads;
            const int next = first_position + i / n_heads + 1;
            const int oldest = c->window && next > c->window ? next - c->window : 0;
            const int first = oldest > begin_of(c) ? oldest : begin_of(c);
            const int end = next < end_of(c, s) ? next : end_of(c, s);
            const double log_sum =
                attend_row(c, m, s, head / c->group, m->q + row * (size_t)layer->head_dim_k,
                           m->sinks[head], first, end, expected);
            const double difference = fabs((double)m->log_sums[row] - log_sum);
            assert_true(isinf(log_sum) ? (double)m->log_sums[row] == log_sum
                                       : difference <= TOLERANCE * (1.0 + fabs(log_sum)));
            n_weights += end > first ? end - first : 0;
            for (int j = 0; !isinf(log_sum) && j < layer->head_dim_v; j++) {
                const double actual = (double)m->out[row * (size_t)layer->head_dim_v + (size_t)j];
                if (!(fabs(actual - expected[j]) <= bound)) {
                    char text[400];
                    describe_case(c, text, sizeof text);
                    fail_msg("sequence %d, query %d, head %d, coordinate %d: %g, expected %g "
                             "within %g: %s",
                             s, i / n_heads, head, j, actual, expected[j], bound, text);
                }
            }
        }
    }
    return n_weights;
}

static void check_attention(tkv_trial *trial, const attend_case *c)
{
    attend_memory m = {.stats = {0, 0}};
    fill_cache(trial, c, &m);
    attend_on_device(trial, c, &m);
    const int64_t n_weights = compare_rows(c, &m);
    if (c->sparse_v > 0.0f) {
        assert_int_equal(m.stats.n_weights, n_weights);
        assert_true(m.stats.n_skipped > 0 && m.stats.n_skipped < n_weights);
    }
    assert_on(trial);
    tkv_trial_end(trial);
}

static attend_case make_case(int type_k, int type_v, int head_dim, int n_queries, int group)
{
    return (attend_case){.cache = {.layer = {.type_k = type_k,
                                             .type_v = type_v,
                                             .n_kv_heads = 1,
                                             .head_dim_k = head_dim,
                                             .head_dim_v = head_dim,
                                             .n_sinks = 4,
                                             .effort = type_k % TKV_EFFORT_COUNT},
                                   .n_sequences = 1,
                                   .n_tokens = {150},
                                   .exact_share = 1,
                                   .n_kinds = 1,
                                   .seed = (uint64_t)(100 * type_k + type_v)},
                         .group = group,
                         .n_queries = n_queries};
}

/* Opens the device with one way or the other of finding levels. */
static tkv_trial open_with(const char *table)
{
    tkv_trial trial = {
        .check = &run, .table = &tkv_device_table_metal, .kernels = &tkv_kernels_scalar};
    setenv("TKV_METAL_TABLE", table, 1);
    assert_ok(trial.table->open(0, NULL, &trial.device, &error));
    assert_non_null(strstr(trial.table->description(trial.device),
                           strcmp(table, "full") == 0 ? "full" : "4-magnitude"));
    return trial;
}

/* Every type of keys and of values, with few queries and with many, with both kinds of tables. */
static void every_type(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        tkv_trial trial = open_with(wide ? "full" : "4mag");
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            const int other = (type + 1 + 4 * wide) % TKV_TYPE_COUNT;
            attend_case decode = make_case(type, other, 64, 1, 2);
            attend_case prefill = make_case(type, other, 64, 9, 2);
            decode.cache.is_centred = type % 2;
            prefill.cache.is_centred = !decode.cache.is_centred;
            check_attention(&trial, &decode);
            check_attention(&trial, &prefill);
        }
        trial.table->close(trial.device);
    }
}

/* Every head_dim, the types in turn. */
static void every_head_dim(void **state)
{
    (void)state;
    const int types[][2] = {{3, 5}, {5, 3}, {1, 2}, {7, 6}, {2, 7}, {6, 8}, {4, 1}, {8, 0}, {7, 5}};
    tkv_trial trial = open_with("4mag");
    for (int i = 0; i <= N_HEAD_DIMS; i++) {
        const int head_dim = i < N_HEAD_DIMS ? all_head_dims[i] : 16;
        const attend_case decode = make_case(types[i][0], types[i][1], head_dim, 1, 3);
        const attend_case prefill = make_case(types[i][0], types[i][1], head_dim, 5, 2);
        check_attention(&trial, &decode);
        check_attention(&trial, &prefill);
    }
    trial.table->close(trial.device);
}

/* Windows, soft caps, sink logits, sparse V, several sequences and heads, more sinks than a block
 * has, keys wider than values, queries that are not the last. */
static void every_option(void **state)
{
    (void)state;
    tkv_trial trial = open_with("4mag");
    for (int i = 0; i < 12; i++) {
        attend_case c = make_case(3, 2, 64, i % 2 ? 20 : 1 + i % 3, i % 2 ? 3 : 2);
        c.cache.is_centred = i % 3 == 0;
        c.window = i / 2 % 2 ? 70 : 0;
        c.softcap = i % 4 > 1 ? 3.0f : 0.0f;
        c.has_sinks = i % 3 == 1;
        c.sparse_v = i > 9 ? 0.02f : 0.0f;
        c.back = i == 4 || i == 5 ? 33 : 0;
        c.cache.layer.n_sinks = i == 6 || i == 7 ? 70 : i % 3;
        c.cache.layer.n_kv_heads = 1 + i % 2;
        c.cache.layer.head_dim_v = i == 8 || i == 9 ? 48 : 64;
        c.cache.n_sequences = c.back ? 1 : 1 + i % 3;
        c.cache.n_tokens[0] = 330;
        c.cache.n_tokens[1] = 65;
        c.cache.n_tokens[2] = 129;
        check_attention(&trial, &c);
    }
    trial.table->close(trial.device);
}

/* One token, and lengths around the edges of pages. */
static void every_length(void **state)
{
    (void)state;
    const int lengths[] = {1, 2, 31, 64, 65, 68, 127, 257};
    tkv_trial trial = open_with("full");
    for (int i = 0; i < 8; i++) {
        attend_case c = make_case(5, 3, 64, 1, 2);
        c.cache.n_tokens[0] = lengths[i];
        check_attention(&trial, &c);
        c.n_queries = lengths[i] < 12 ? lengths[i] : 12;
        check_attention(&trial, &c);
    }
    trial.table->close(trial.device);
}

/* A part of a sequence: slots before its first token and behind its last are random bits. Some
 * queries are behind it, and some of those see nothing of it through a window. */
static void every_part(void **state)
{
    (void)state;
    const int parts[][2] = {{3, 0}, {70, 150}, {0, 61}, {17, 64}, {64, 100}, {1, 2}};
    const int types[][2] = {{0, 0}, {3, 0}, {5, 7}};
    tkv_trial trial = open_with("4mag");
    for (int i = 0; i < 12; i++) {
        attend_case c = make_case(types[i % 3][0], types[i % 3][1], 64, i % 2 ? 1 : 20, 2);
        c.cache.n_tokens[0] = 170;
        c.cache.begin = parts[i / 2][0];
        c.cache.end = parts[i / 2][1];
        c.cache.exact_share = 2;
        c.window = i % 4 == 2 ? 40 : 0;
        c.has_sinks = i % 6 == 5;
        check_attention(&trial, &c);
    }
    trial.table->close(trial.device);
}

/* Rows decoded to halves are the rows decoded to floats, rounded. */
static void halves_are_rounded_floats(void **state)
{
    (void)state;
    tkv_trial trial = open_with("full");
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        const attend_case c = make_case(type, (type + 3) % TKV_TYPE_COUNT, 64, 1, 1);
        attend_memory m = {.stats = {0, 0}};
        fill_cache(&trial, &c, &m);
        const int n = c.cache.n_tokens[0] * c.cache.layer.head_dim_k;
        uint16_t *halves = allocate((size_t)n * sizeof *halves);
        const uint64_t address = tkv_trial_allocate(&trial, (size_t)n * sizeof *halves);
        for (int order = 0; order < 2; order++) {
            assert_ok(trial.table->load_half(trial.device, &c.cache.layer, m.cache.address, 0,
                                             c.cache.n_tokens[0], order ? 0 : address,
                                             order ? address : 0, &error));
            assert_ok(trial.table->download(trial.device, halves, address,
                                            (size_t)n * sizeof *halves, &error));
            for (int i = 0; i < n; i++) {
                assert_int_equal(halves[i], tkv_float_to_finite_half((order ? m.v[0] : m.k[0])[i]));
            }
        }
        free(halves);
        tkv_trial_end(&trial);
    }
    trial.table->close(trial.device);
}

/* An argument chooses tests by pattern: "every_t*". */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type),   cmocka_unit_test(every_head_dim),
        cmocka_unit_test(every_option), cmocka_unit_test(every_length),
        cmocka_unit_test(every_part),   cmocka_unit_test(halves_are_rounded_floats),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
