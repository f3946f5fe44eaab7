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
    bool has_log_sums;
    int split; /* 0, or positions before it and from it on are attended to in two calls and joined
                */
} attend_case;

/* Host copies of what goes in and comes out. */
typedef struct attend_data {
    float *q;        /* [n_sequences][n_queries][n_heads][head_dim_k] */
    float *out;      /* likewise with head_dim_v */
    float *expected; /* likewise */
    float *slack;    /* likewise: how far sparse V may move it */
    float *log_sums; /* [n_sequences][n_queries][n_heads] */
    double *expected_log_sums;
    float *sinks; /* [n_heads] */
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

/* The first position that is seen from another one, and the one after the last. */
static int first_seen(const attend_case *c, int position)
{
    const int oldest = c->window && position >= c->window ? position + 1 - c->window : 0;
    return oldest > c->data.begin ? oldest : c->data.begin;
}

static int end_seen(const attend_case *c, int position)
{
    return c->data.end && c->data.end <= position ? c->data.end : position + 1;
}

/* One output row by definition, in double. */
static void attend_row(const attend_case *c, int position, int head, const float *k_rows,
                       const float *v_rows, size_t row, attend_data *data)
{
    const tkv_device_layer *layer = &c->data.layer;
    const size_t dim_k = (size_t)layer->head_dim_k;
    const size_t dim_v = (size_t)layer->head_dim_v;
    const int first = first_seen(c, position);
    const int end = end_seen(c, position);
    double *logits = allocate((size_t)(position + 1) * sizeof *logits);
    double *sums = allocate(2 * dim_v * sizeof *sums);
    double maximum = c->has_sinks ? (double)data->sinks[head] : -INFINITY;
    double largest = -INFINITY;
    for (int t = first; t < end; t++) {
        const size_t at = (size_t)(t * layer->n_kv_heads + head / c->group);
        logits[t] = logit_of(c, data->q + row * dim_k, k_rows + at * dim_k);
        largest = fmax(largest, logits[t]);
    }
    maximum = fmax(maximum, largest);
    double total = c->has_sinks ? exp((double)data->sinks[head] - maximum) : 0.0;
    for (int t = first; t < end; t++) {
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
    data->expected_log_sums[row] = total > 0.0 ? maximum + log(total) : -INFINITY;
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

/* Plans and attends, in a workspace that earlier calls may have used. */
static void attend_part(device_under_test *dut, const tkv_device_attend *params)
{
    tkv_attend_plan plan;
    assert_ok(dut->table->plan(dut->device, params, &plan, &error));
    if (plan.workspace_bytes > dut->workspace_bytes) {
        if (dut->workspace) {
            dut->table->release(dut->device, dut->workspace);
        }
        dut->workspace = device_allocate(dut, plan.workspace_bytes);
        dut->workspace_bytes = plan.workspace_bytes;
    }
    assert_ok(dut->table->attend(dut->device, &plan, dut->workspace, &error));
}

/* Runs the call, in one or in two parts. */
static void run_attention(device_under_test *dut, const attend_case *c,
                          const tkv_device_attend *params, size_t n_rows)
{
    const tkv_device_table *table = dut->table;
    const size_t n_out = n_rows * (size_t)c->data.layer.head_dim_v;
    tkv_device_attend parts[2] = {*params, *params};
    if (c->split == 0) {
        attend_part(dut, params);
        return;
    }
    const uint64_t outs = device_allocate(dut, 2 * n_out * sizeof(float));
    const uint64_t log_sums = device_allocate(dut, 2 * n_rows * sizeof(float));
    const tkv_device_join join = {.parts = outs,
                                  .log_sums = log_sums,
                                  .out = params->out,
                                  .log_sums_out = params->log_sums,
                                  .n_rows = n_rows,
                                  .n_parts = 2,
                                  .from_width = c->data.layer.head_dim_v,
                                  .to_width = c->data.layer.head_dim_v};
    parts[0].end = c->split;
    parts[0].sinks = 0;
    parts[1].begin = c->split;
    for (size_t i = 0; i < 2; i++) {
        parts[i].out = outs + i * n_out * sizeof(float);
        parts[i].log_sums = log_sums + i * n_rows * sizeof(float);
        attend_part(dut, &parts[i]);
    }
    assert_ok(table->join(dut->device, &join, &error));
    assert_ok(table->wait(dut->device, &error));
    table->release(dut->device, outs);
    table->release(dut->device, log_sums);
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
                                .sequences = memory->address,
                                .begin = c->data.begin,
                                .end = c->data.end};
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
    if (c->has_log_sums) {
        params.log_sums = device_allocate(dut, n_rows * sizeof(float));
    }
    run_attention(dut, c, &params, n_rows);
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
    if (c->has_log_sums) {
        assert_ok(dut->table->download(dut->device, data->log_sums, params.log_sums,
                                       n_rows * sizeof(float), &error));
    }
    const uint64_t addresses[] = {params.q, params.out, params.sinks, params.stats,
                                  params.log_sums};
    for (int i = 0; i < 5; i++) {
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
    const float query = tkv_device_query_rounding(table, c->layer.type_k);
    const float coded = fmaxf(table->weight_rounding, query);
    return 1e-5 +
           10.0 * (double)(is_exact ? table->exact_rounding : fmaxf(coded, table->exact_rounding));
}

static void fail_attention(const attend_case *c, const char *of, double error, double bound)
{
    char what[300];
    snprintf(what, sizeof what,
             "relative error %g of %s, expected %g: group %d, %d queries from %d, window %d, "
             "scale %g, softcap %g, sparse_v %g, sinks %d, split at %d",
             error, of, bound, c->group, c->n_queries, c->first_position, c->window,
             (double)c->scale, (double)c->logit_softcap, (double)c->sparse_v, c->has_sinks,
             c->split);
    fail_case(&c->data, what);
}

/* Rows that see nothing have no logarithm; the others' is as exact as outputs are. */
static void compare_log_sums(const attend_case *c, const case_memory *memory, size_t n_rows,
                             const attend_data *data)
{
    const double bound = attend_bound(memory->dut->table, &c->data);
    for (size_t i = 0; c->has_log_sums && i < n_rows; i++) {
        const double expected = data->expected_log_sums[i];
        const double actual = (double)data->log_sums[i];
        const double error = fabs(actual - expected) / (1.0 + fabs(expected));
        if (isinf(expected) ? actual != expected : !(error <= bound)) {
            fail_attention(c, "a softmax's logarithm", error, bound);
        }
    }
}

static void compare_attention(const attend_case *c, const case_memory *memory, size_t n_rows,
                              const attend_data *data)
{
    const size_t width = (size_t)c->data.layer.head_dim_v;
    const size_t n = n_rows * width;
    double square = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        if (isinf(data->expected_log_sums[i / width])) {
            continue; /* the row sees nothing, and may be anything */
        }
        double difference = fabs((double)data->out[i] - (double)data->expected[i]);
        difference = difference > (double)data->slack[i] ? difference - (double)data->slack[i]
                     : isnan(difference)                 ? NAN
                                                         : 0.0;
        square += difference * difference;
        norm += (double)data->expected[i] * (double)data->expected[i];
    }
    const double error = square == 0.0 ? 0.0 : sqrt(square / norm);
    const double bound = attend_bound(memory->dut->table, &c->data);
    if (!(error <= bound)) {
        fail_attention(c, "attention", error, bound);
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
                        .log_sums = allocate(n_rows * sizeof(float)),
                        .expected_log_sums = allocate(n_rows * sizeof(double)),
                        .sinks = allocate((size_t)n_heads * sizeof(float))};
    fill_gauss(&seed, n_rows * (size_t)layer->head_dim_k, data.q);
    fill_gauss(&seed, (size_t)n_heads, data.sinks);
    case_create(dut, &c->data, &memory);
    case_fill(&memory);
    attend_by_definition(c, &memory, &data);
    attend_on_device(dut, c, &memory, n_rows, &data);
    compare_attention(c, &memory, n_rows, &data);
    compare_log_sums(c, &memory, n_rows, &data);
    case_free(&memory);
    free(data.q);
    free(data.out);
    free(data.expected);
    free(data.slack);
    free(data.log_sums);
    free(data.expected_log_sums);
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
    const int n_head_dims = dut->is_quick ? 5 : (int)N_CASE_HEAD_DIMS;
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
        c.has_log_sums = i % 2 == i / 12;
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

/* Values of every kind that is finite: zero, tiny, huge, with outliers. */
static void attention_to_odd_values(device_under_test *dut)
{
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        for (int i = 0; i < 4; i += dut->is_quick ? 3 : 1) {
            attend_case c = base_case(type, i % 2 ? TKV_TYPE_TURBO3 : type, i == 2 ? 80 : 128,
                                      (uint64_t)(2500 + 10 * type + i));
            c.data.n_value_kinds = N_FINITE_KINDS;
            c.data.exact_share = i / 2;
            c.n_queries = i == 3 ? 9 : 1;
            check_attention(dut, &c);
        }
    }
}

/* A part of a sequence: tokens from a position on, before another one, or both, among what dropped
 * tokens have left; queries also behind the part's end, some of which see nothing through a window.
 */
static void attention_to_parts(device_under_test *dut)
{
    const int begins[] = {0, 5, 64, 70, 133, 17};
    const int ends[] = {0, 200, 65, 129, 134, 60};
    const int types[][2] = {{TKV_TYPE_TURBO3, TKV_TYPE_TURBO4},
                            {TKV_TYPE_F16, TKV_TYPE_F16},
                            {TKV_TYPE_TURBO4Q, TKV_TYPE_TRELLIS3},
                            {TKV_TYPE_TURBO8, TKV_TYPE_TURBO3Q},
                            {TKV_TYPE_F16, TKV_TYPE_TURBO2}};
    for (int i = 0; i < 60; i += dut->is_quick ? 7 : 1) {
        attend_case c = base_case(types[i % 5][0], types[i % 5][1], i % 3 == 2 ? 64 : 128,
                                  (uint64_t)(2600 + i));
        const bool is_far = i % 10 == 5;
        c.data.n_tokens[0] = 230;
        c.data.begin = begins[i % 6];
        c.data.end = ends[i / 2 % 6] > c.data.begin ? ends[i / 2 % 6] : is_far ? 230 : 0;
        c.data.layer.n_sinks = i % 4 == 1 ? 80 : i % 4 == 2 ? 16 : 0;
        c.data.exact_share = i % 3;
        c.data.is_centred = i % 3 == 1;
        c.n_queries = i % 4 == 0 ? 1 : i % 4 == 3 ? 40 : 9;
        c.first_position = is_far ? 1000 : i % 2 ? 190 : -1;
        c.max_tokens = is_far ? 1040 : 0;
        c.window = i % 7 == 3 ? 40 : i % 7 == 5 ? 150 : 0;
        c.has_sinks = i % 5 == 4;
        c.has_log_sums = i % 8 != 7;
        check_attention(dut, &c);
    }
}

/* The parts before and from a position on, joined, are the whole. */
static void attention_to_parts_joined(device_under_test *dut)
{
    const int splits[] = {1, 37, 64, 100, 128, 199};
    for (int i = 0; i < 24; i += dut->is_quick ? 5 : 1) {
        attend_case c =
            base_case(i % 4 == 3 ? TKV_TYPE_F16 : i % 8, i % 4 == 3 ? TKV_TYPE_F16 : i % 7,
                      i % 3 == 2 ? 80 : 128, (uint64_t)(2700 + i));
        c.split = splits[i % 6];
        c.data.layer.n_sinks = i % 3 == 1 ? 32 : 0;
        c.data.exact_share = i % 3;
        c.data.is_centred = i % 3 == 2;
        c.data.n_sequences = i % 4 == 1 ? 3 : 1;
        c.data.n_tokens[1] = 230;
        c.data.n_tokens[2] = 300;
        c.n_queries = i / 6 % 2 && c.split < 150 ? 50 : 1; /* none before the second part */
        c.window = i % 5 == 4 ? 120 : 0;
        c.has_sinks = i / 12;
        c.has_log_sums = i % 2;
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

static void test_attention_odd_values(void **state)
{
    (void)state;
    on_every_device(attention_to_odd_values);
}

static void test_attention_parts(void **state)
{
    (void)state;
    on_every_device(attention_to_parts);
    on_every_device(attention_to_parts_joined);
}

/* An argument chooses tests by pattern: "test_page*". */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_types),   cmocka_unit_test(test_attention_lengths),
        cmocka_unit_test(test_attention_groups),  cmocka_unit_test(test_attention_options),
        cmocka_unit_test(test_attention_batches), cmocka_unit_test(test_attention_odd_values),
        cmocka_unit_test(test_attention_parts),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
