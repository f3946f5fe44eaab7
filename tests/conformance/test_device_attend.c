/* Attention of every device table of this build, on every device that it finds, against a softmax
 * in double over the rows that the CPU reference decodes. TKV_TEST_QUICK=1 as in test_device.c. */
#include "conformance/device_case.h"

/* What is asked of a case's sequences. */
typedef struct attend_case {
    device_case data;
    int group;     /* query heads a KV head */
    int n_queries; /* the last tokens of each sequence, or from first_position on */
    int first_position;
    int max_tokens; /* 0: the longest sequence */
    int window;
    float scale;
    float logit_softcap;
    float sparse_v;
    bool has_sinks;
    bool has_stats;
} attend_case;

/* Host copies of what goes in and comes out. */
typedef struct attend_data {
    float *q;        /* [n_sequences][n_queries][n_heads][head_dim_k] */
    float *out;      /* likewise with head_dim_v */
    float *expected; /* likewise */
    float *slack;    /* likewise: how far sparse V may move it */
    float *sinks;    /* [n_heads] */
    double n_weights;
    double n_small; /* weights that sparse V may skip */
} attend_data;

/* The decoded rows of one sequence: [n_tokens][n_kv_heads][head_dim]. */
static float *decode_sequence(const case_memory *memory, int sequence, int order)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const size_t head_dim = (size_t)case_head_dim(layer, order);
    const int n = memory->sequences[sequence].entry.n_tokens * layer->n_kv_heads;
    float *rows = allocate((size_t)n * head_dim * sizeof *rows);
    for (int i = 0; i < n; i++) {
        case_load_row(memory, sequence, i / layer->n_kv_heads, i % layer->n_kv_heads, order,
                      rows + (size_t)i * head_dim);
    }
    return rows;
}

static double logit_of(const attend_case *c, const float *q, const float *k)
{
    double sum = 0.0;
    for (int j = 0; j < c->data.layer.head_dim_k; j++) {
        sum += (double)q[j] * (double)k[j];
    }
    const double logit = sum * (double)c->scale;
    const double cap = (double)c->logit_softcap;
    return cap > 0.0 ? cap * tanh(logit / cap) : logit;
}

/* One output row by definition, in double. */
static void attend_row(const attend_case *c, int position, int head, const float *k_rows,
                       const float *v_rows, size_t row, attend_data *data)
{
    const tkv_device_layer *layer = &c->data.layer;
    const size_t dim_k = (size_t)layer->head_dim_k;
    const size_t dim_v = (size_t)layer->head_dim_v;
    const int first = c->window && position >= c->window ? position + 1 - c->window : 0;
    double *logits = allocate((size_t)(position + 1) * sizeof *logits);
    double *sums = allocate(2 * dim_v * sizeof *sums);
    double maximum = c->has_sinks ? (double)data->sinks[head] : -INFINITY;
    double largest = -INFINITY;
    for (int t = first; t <= position; t++) {
        const size_t at = (size_t)(t * layer->n_kv_heads + head / c->group);
        logits[t] = logit_of(c, data->q + row * dim_k, k_rows + at * dim_k);
        largest = fmax(largest, logits[t]);
    }
    maximum = fmax(maximum, largest);
    double total = c->has_sinks ? exp((double)data->sinks[head] - maximum) : 0.0;
    for (int t = first; t <= position; t++) {
        const size_t at = (size_t)(t * layer->n_kv_heads + head / c->group);
        const double weight = exp(logits[t] - maximum);
        const bool is_small = exp(logits[t] - largest) < 1.01 * (double)c->sparse_v;
        total += weight;
        data->n_weights += 1.0;
        data->n_small += is_small;
        for (size_t j = 0; j < dim_v; j++) {
            const double part = weight * (double)v_rows[at * dim_v + j];
            sums[j] += part;
            sums[dim_v + j] += is_small ? fabs(part) : 0.0;
        }
    }
    for (size_t j = 0; j < dim_v; j++) {
        data->expected[row * dim_v + j] = (float)(sums[j] / total);
        data->slack[row * dim_v + j] = (float)(sums[dim_v + j] / total);
    }
    free(logits);
    free(sums);
}

static void attend_by_definition(const attend_case *c, const case_memory *memory, attend_data *data)
{
    const int n_heads = c->group * c->data.layer.n_kv_heads;
    for (int s = 0; s < c->data.n_sequences; s++) {
        float *k = decode_sequence(memory, s, TKV_ORDER_KEY);
        float *v = decode_sequence(memory, s, TKV_ORDER_VALUE);
        const int first =
            c->first_position >= 0 ? c->first_position : c->data.n_tokens[s] - c->n_queries;
        for (int i = 0; i < c->n_queries * n_heads; i++) {
            attend_row(c, first + i / n_heads, i % n_heads, k, v,
                       (size_t)(s * c->n_queries * n_heads + i), data);
        }
        free(k);
        free(v);
    }
}

/* A workspace that earlier calls may have used. */
static uint64_t take_workspace(device_under_test *dut, const tkv_device_attend *params)
{
    const size_t bytes = dut->table->attend_workspace_bytes(dut->device, params);
    if (bytes > dut->workspace_bytes) {
        if (dut->workspace) {
            dut->table->release(dut->device, dut->workspace);
        }
        dut->workspace = device_allocate(dut, bytes);
        dut->workspace_bytes = bytes;
    }
    return dut->workspace;
}

static void attend_on_device(device_under_test *dut, const attend_case *c,
                             const case_memory *memory, size_t n_rows, attend_data *data)
{
    const tkv_device_layer *layer = &c->data.layer;
    const size_t n_out = n_rows * (size_t)layer->head_dim_v + GUARD_FLOATS;
    const int n_heads = c->group * layer->n_kv_heads;
    tkv_attend_stats stats = {0, 0};
    tkv_device_attend params = {.layer = *layer,
                                .n_sequences = c->data.n_sequences,
                                .max_tokens = c->max_tokens,
                                .n_queries = c->n_queries,
                                .n_heads = n_heads,
                                .first_position = c->first_position,
                                .window = c->window,
                                .scale = c->scale,
                                .logit_softcap = c->logit_softcap,
                                .sparse_v = c->sparse_v,
                                .sequences = memory->address};
    for (int s = 0; s < c->data.n_sequences; s++) {
        params.max_tokens =
            c->data.n_tokens[s] > params.max_tokens ? c->data.n_tokens[s] : params.max_tokens;
    }
    for (size_t i = 0; i < n_out; i++) {
        data->out[i] = i < n_out - GUARD_FLOATS ? NAN : GUARD_VALUE;
    }
    params.q = device_put(dut, data->q, n_rows * (size_t)layer->head_dim_k * sizeof(float));
    params.out = device_put(dut, data->out, n_out * sizeof(float));
    if (c->has_sinks) {
        params.sinks = device_put(dut, data->sinks, (size_t)n_heads * sizeof(float));
    }
    if (c->has_stats) {
        params.stats = device_put(dut, &stats, sizeof stats);
    }
    params.workspace = take_workspace(dut, &params);
    assert_ok(dut->table->attend(dut->device, &params, &error));
    assert_ok(
        dut->table->download(dut->device, data->out, params.out, n_out * sizeof(float), &error));
    for (size_t i = n_out - GUARD_FLOATS; i < n_out; i++) {
        assert_true(data->out[i] == GUARD_VALUE);
    }
    if (c->has_stats) {
        assert_ok(dut->table->download(dut->device, &stats, params.stats, sizeof stats, &error));
        assert_true((double)stats.n_weights == data->n_weights);
        assert_true(stats.n_skipped >= 0 && (double)stats.n_skipped <= data->n_small);
    }
    const uint64_t addresses[] = {params.q, params.out, params.sinks, params.stats};
    for (int i = 0; i < 4; i++) {
        if (addresses[i]) {
            dut->table->release(dut->device, addresses[i]);
        }
    }
}

/* Relative to the norm of the output: what float arithmetic leaves, and what the table's rounding
 * of queries and weights does to a mean of values, whose norm is a fraction of theirs (as in
 * tests/attention). */
static double attend_bound(const tkv_device_table *table, const device_case *c)
{
    const bool is_exact = c->layer.type_k == TKV_TYPE_F16 && c->layer.type_v == TKV_TYPE_F16;
    const float query =
        c->layer.type_k == TKV_TYPE_TURBO8 ? table->query_rounding_turbo8 : table->query_rounding;
    const float coded = fmaxf(table->weight_rounding, query);
    return 1e-5 +
           10.0 * (double)(is_exact ? table->exact_rounding : fmaxf(coded, table->exact_rounding));
}

static void compare_attention(const attend_case *c, const case_memory *memory, size_t n_rows,
                              const attend_data *data)
{
    const size_t n = n_rows * (size_t)c->data.layer.head_dim_v;
    double square = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)data->out[i] - (double)data->expected[i]);
        difference = difference > (double)data->slack[i] ? difference - (double)data->slack[i]
                     : isnan(difference)                 ? NAN
                                                         : 0.0;
        square += difference * difference;
        norm += (double)data->expected[i] * (double)data->expected[i];
    }
    const double error = sqrt(square / norm);
    const double bound = attend_bound(memory->dut->table, &c->data);
    if (!(error <= bound)) {
        char what[240];
        snprintf(what, sizeof what,
                 "relative error %g of attention, expected %g: group %d, %d queries from %d, "
                 "window %d, scale %g, softcap %g, sparse_v %g, sinks %d",
                 error, bound, c->group, c->n_queries, c->first_position, c->window,
                 (double)c->scale, (double)c->logit_softcap, (double)c->sparse_v, c->has_sinks);
        fail_case(&c->data, what);
    }
}

static void check_attention(device_under_test *dut, const attend_case *c)
{
    case_memory memory;
    const tkv_device_layer *layer = &c->data.layer;
    const int n_heads = c->group * layer->n_kv_heads;
    const size_t n_rows = (size_t)(c->data.n_sequences * c->n_queries * n_heads);
    const size_t n_out = n_rows * (size_t)layer->head_dim_v;
    uint64_t seed = c->data.seed + 99;
    attend_data data = {.q = allocate(n_rows * (size_t)layer->head_dim_k * sizeof(float)),
                        .out = allocate((n_out + GUARD_FLOATS) * sizeof(float)),
                        .expected = allocate(n_out * sizeof(float)),
                        .slack = allocate(n_out * sizeof(float)),
                        .sinks = allocate((size_t)n_heads * sizeof(float))};
    fill_gauss(&seed, n_rows * (size_t)layer->head_dim_k, data.q);
    fill_gauss(&seed, (size_t)n_heads, data.sinks);
    case_create(dut, &c->data, &memory);
    case_fill(&memory);
    attend_by_definition(c, &memory, &data);
    attend_on_device(dut, c, &memory, n_rows, &data);
    compare_attention(c, &memory, n_rows, &data);
    case_free(&memory);
    free(data.q);
    free(data.out);
    free(data.expected);
    free(data.slack);
    free(data.sinks);
}

static attend_case base_case(int type_k, int type_v, int head_dim, uint64_t seed)
{
    return (attend_case){.data = {.layer = {.type_k = type_k,
                                            .type_v = type_v,
                                            .n_kv_heads = 2,
                                            .head_dim_k = head_dim,
                                            .head_dim_v = head_dim,
                                            .effort = TKV_EFFORT_FAST},
                                  .n_sequences = 1,
                                  .n_tokens = {200},
                                  .n_kinds = 1,
                                  .seed = seed},
                         .group = 4,
                         .n_queries = 1,
                         .first_position = -1,
                         .scale = 1.0f / sqrtf((float)head_dim)};
}

/* Every pair of types at the tuned head_dim, every type at the others; exact blocks among coded
 * ones, centred or not. */
static void attention_of_all_types(device_under_test *dut)
{
    const int n_head_dims = dut->is_quick ? 4 : (int)N_CASE_HEAD_DIMS;
    for (int k = 0; k < TKV_TYPE_COUNT; k++) {
        for (int v = 0; v < TKV_TYPE_COUNT; v += dut->is_quick ? 4 : 1) {
            attend_case c = base_case(k, v, 128, (uint64_t)(9 * k + v));
            c.data.is_centred = (k + v) % 2;
            c.data.exact_share = v % 3;
            c.n_queries = v % 4 == 3 ? 5 : 1;
            check_attention(dut, &c);
        }
        for (int d = 1; d < n_head_dims; d++) {
            attend_case c = base_case(k, (k + d) % TKV_TYPE_COUNT, case_head_dims[d],
                                      (uint64_t)(1000 + 100 * k + d));
            c.data.layer.head_dim_v = d % 3 == 2 ? case_head_dims[(d + 2) % 7] : case_head_dims[d];
            c.data.n_tokens[0] = 130;
            c.data.exact_share = d % 2;
            c.data.is_centred = k % 2;
            c.n_queries = d % 5 == 4 ? 3 : 1;
            check_attention(dut, &c);
        }
    }
}

/* Lengths and query counts around the edges of pages and of the kernels' tiles. */
static void attention_of_all_lengths(device_under_test *dut)
{
    const int lengths[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 1000, 3000};
    const int queries[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 64, 100};
    for (int i = 0; i < 14; i += dut->is_quick ? 4 : 1) {
        attend_case c = base_case(TKV_TYPE_TURBO3, TKV_TYPE_TURBO3, 128, (uint64_t)(2000 + i));
        c.data.n_tokens[0] = lengths[i];
        c.data.layer.n_sinks = i % 3 == 0 ? 4 : i % 3 == 1 ? 70 : 0;
        check_attention(dut, &c);
        c.max_tokens = 5000;
        c.has_sinks = true;
        check_attention(dut, &c);
    }
    for (int i = 0; i < 13; i += dut->is_quick ? 4 : 1) {
        attend_case c = base_case(TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS3, i % 4 == 3 ? 64 : 128,
                                  (uint64_t)(2100 + i));
        c.n_queries = queries[i];
        c.data.n_tokens[0] = queries[i] + 40 * (i % 4);
        c.data.exact_share = i % 2;
        check_attention(dut, &c);
        c.first_position = c.data.n_tokens[0] > c.n_queries + 3 ? 3 : 0;
        check_attention(dut, &c);
    }
}

static void attention_of_all_groups(device_under_test *dut)
{
    for (int group = 1; group <= 17; group += dut->is_quick ? 5 : 1) {
        attend_case c = base_case(group % 2 ? TKV_TYPE_TURBO2 : TKV_TYPE_TURBO4Q, TKV_TYPE_TURBO4,
                                  128, (uint64_t)(2200 + group));
        c.group = group == 17 ? 40 : group;
        c.n_queries = group % 3 ? 1 : 4;
        c.data.layer.n_kv_heads = 1 + group % 2;
        check_attention(dut, &c);
    }
}

static void attention_with_all_options(device_under_test *dut)
{
    const int windows[] = {0, 1, 5, 64, 150, 100000};
    for (int i = 0; i < 24; i += dut->is_quick ? 5 : 1) {
        attend_case c = base_case(i % 2 ? TKV_TYPE_TURBO3 : TKV_TYPE_TRELLIS2, TKV_TYPE_TURBO3, 128,
                                  (uint64_t)(2300 + i));
        c.data.n_tokens[0] = 260;
        c.data.layer.n_sinks = i % 4 == 1 ? 4 : 0;
        c.data.exact_share = i % 3 == 1;
        c.data.is_centred = i % 3 == 2;
        c.n_queries = i % 2 ? 70 : 1;
        c.window = windows[i % 6];
        c.logit_softcap = i / 6 % 2 ? 3.0f : 0.0f;
        c.scale = i % 5 ? c.scale : 0.3f;
        c.has_sinks = i / 12;
        c.sparse_v = i % 4 == 3 ? 0.02f : 0.0f;
        c.has_stats = c.sparse_v > 0.0f;
        check_attention(dut, &c);
    }
}

/* Sequences of different lengths in one call. */
static void attention_of_batches(device_under_test *dut)
{
    for (int i = 0; i < 12; i += dut->is_quick ? 5 : 1) {
        uint64_t seed = (uint64_t)(2400 + i);
        attend_case c = base_case(1 + i % 8, 1 + i / 2 % 8, i % 3 == 2 ? 64 : 128, seed);
        c.data.n_sequences = 1 + random_below(&seed, MAX_SEQUENCES);
        c.n_queries = i % 4 == 3 ? 6 : 1;
        for (int s = 0; s < c.data.n_sequences; s++) {
            c.data.n_tokens[s] = c.n_queries + random_below(&seed, s % 3 ? 200 : 700);
        }
        c.data.layer.n_sinks = i % 2 ? 4 : 0;
        c.data.exact_share = i % 3;
        check_attention(dut, &c);
    }
}

static void test_attention_types(void **state)
{
    (void)state;
    on_every_device(attention_of_all_types);
}

static void test_attention_lengths(void **state)
{
    (void)state;
    on_every_device(attention_of_all_lengths);
}

static void test_attention_groups(void **state)
{
    (void)state;
    on_every_device(attention_of_all_groups);
}

static void test_attention_options(void **state)
{
    (void)state;
    on_every_device(attention_with_all_options);
}

static void test_attention_batches(void **state)
{
    (void)state;
    on_every_device(attention_of_batches);
}

/* An argument chooses tests by pattern: "test_page*". */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_types),   cmocka_unit_test(test_attention_lengths),
        cmocka_unit_test(test_attention_groups),  cmocka_unit_test(test_attention_options),
        cmocka_unit_test(test_attention_batches),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
