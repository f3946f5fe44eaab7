/* Attention of a device against a softmax in double over the rows that the reference decodes. */
#include "check/attention.h"

#include "base/random.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Relative to the norm of the output: what float arithmetic leaves. */
static const double FLOAT_BOUND = 2e-5;

/* Host copies of what goes in and comes out. */
typedef struct attention_data {
    float *q;                  /* [n_sequences][n_queries][n_heads][head_dim_k] */
    const float *out;          /* likewise with head_dim_v */
    float *expected;           /* likewise */
    float *slack;              /* likewise: how far sparse V may move it */
    const float *log_sums;     /* [n_sequences][n_queries][n_heads], or NULL */
    double *expected_log_sums; /* likewise */
    float *sinks;              /* [n_heads] */
    double *logits;            /* [of the longest sequence] */
    double n_weights;
    double n_small; /* weights that sparse V may skip */
    bool is_intact; /* guards are, and counters are possible */
} attention_data;

/* ---- By definition -------------------------------------------------------------------------- */

/* The decoded rows of one sequence: [n_tokens][n_kv_heads][head_dim]. */
static float *decode_sequence(const tkv_trial_layer *l, int sequence, int order)
{
    const tkv_device_layer *layer = &l->params->layer;
    const size_t head_dim = (size_t)tkv_trial_head_dim(layer, order);
    const int n = l->sequences[sequence].entry.n_tokens * layer->n_kv_heads;
    float *rows = tkv_trial_host(l->trial, (size_t)n * head_dim * sizeof *rows);
    for (int i = 0; rows && i < n; i++) {
        tkv_trial_load_row(l, sequence, i / layer->n_kv_heads, i % layer->n_kv_heads, order,
                           rows + (size_t)i * head_dim);
    }
    return rows;
}

static double logit_of(const tkv_attention_case *c, const float *q, const float *k)
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
static int first_seen(const tkv_attention_case *c, int position)
{
    const int oldest = c->window && position >= c->window ? position + 1 - c->window : 0;
    return oldest > c->data.begin ? oldest : c->data.begin;
}

static int end_seen(const tkv_attention_case *c, int position)
{
    return c->data.end && c->data.end <= position ? c->data.end : position + 1;
}

/* Adds the values that a row sees, and those that sparse V may leave out, to sums [2][dim_v];
 * returns the sum of weights. What is left out of coded values is what they are beside their mean
 * (NULL: none), which is added back for all. */
static double add_values(const tkv_attention_case *c, int position, int head, const float *v_rows,
                         const float *mean, double maximum, double largest, double *sums,
                         attention_data *data)
{
    const size_t dim_v = (size_t)c->data.layer.head_dim_v;
    double total = 0.0;
    for (int t = first_seen(c, position); t < end_seen(c, position); t++) {
        const size_t at = (size_t)(t * c->data.layer.n_kv_heads + head / c->group);
        const double weight = exp(data->logits[t] - maximum);
        const bool is_small = exp(data->logits[t] - largest) < 1.01 * (double)c->sparse_v;
        total += weight;
        data->n_weights += 1.0;
        data->n_small += is_small;
        for (size_t j = 0; j < dim_v; j++) {
            const double value = (double)v_rows[at * dim_v + j];
            const double beside = mean ? fabs(value - (double)mean[j]) : 0.0;
            sums[j] += weight * value;
            sums[dim_v + j] += is_small ? weight * fmax(fabs(value), beside) : 0.0;
        }
    }
    return total;
}

/* One output row. */
static void attend_row(const tkv_attention_case *c, int position, int head, const float *k_rows,
                       const float *v_rows, const float *mean, size_t row, attention_data *data)
{
    const size_t dim_k = (size_t)c->data.layer.head_dim_k;
    const size_t dim_v = (size_t)c->data.layer.head_dim_v;
    double sums[2 * TKV_MAX_HEAD_DIM] = {0.0};
    double largest = -INFINITY;
    for (int t = first_seen(c, position); t < end_seen(c, position); t++) {
        const size_t at = (size_t)(t * c->data.layer.n_kv_heads + head / c->group);
        data->logits[t] = logit_of(c, data->q + row * dim_k, k_rows + at * dim_k);
        largest = fmax(largest, data->logits[t]);
    }
    const double sink = c->has_sinks ? (double)data->sinks[head] : -INFINITY;
    const double maximum = fmax(sink, largest);
    const double total = (c->has_sinks ? exp(sink - maximum) : 0.0) +
                         add_values(c, position, head, v_rows, mean, maximum, largest, sums, data);
    for (size_t j = 0; j < dim_v; j++) {
        data->expected[row * dim_v + j] = (float)(sums[j] / total);
        data->slack[row * dim_v + j] = (float)(sums[dim_v + j] / total);
    }
    data->expected_log_sums[row] = total > 0.0 ? maximum + log(total) : -INFINITY;
}

static void attend_by_definition(const tkv_attention_case *c, const tkv_trial_layer *l,
                                 attention_data *data)
{
    const int n_heads = c->group * c->data.layer.n_kv_heads;
    for (int s = 0; s < c->data.n_sequences; s++) {
        const float *k = decode_sequence(l, s, TKV_ORDER_KEY);
        const float *v = decode_sequence(l, s, TKV_ORDER_VALUE);
        const float *means = l->sequences[s].means[TKV_ORDER_VALUE];
        const int first =
            c->first_position >= 0 ? c->first_position : c->data.n_tokens[s] - c->n_queries;
        for (int i = 0; tkv_trial_is_on(l->trial) && i < c->n_queries * n_heads; i++) {
            const float *mean =
                means ? means + i % n_heads / c->group * c->data.layer.head_dim_v : NULL;
            attend_row(c, first + i / n_heads, i % n_heads, k, v, mean,
                       (size_t)(s * c->n_queries * n_heads + i), data);
        }
    }
}

/* ---- On the device --------------------------------------------------------------------------- */

/* Plans and attends, in a workspace that earlier calls may have used. */
static void attend_part(tkv_trial *trial, const tkv_device_attend *params)
{
    tkv_attend_plan plan;
    if (!tkv_trial_is_on(trial)) {
        return;
    }
    tkv_trial_note(trial, trial->table->plan(trial->device, params, &plan, trial->check->error));
    if (tkv_trial_is_on(trial) && plan.workspace_bytes > trial->workspace_bytes) {
        tkv_trial_forget_workspace(trial);
        tkv_trial_note(trial, trial->table->allocate(trial->device, plan.workspace_bytes,
                                                     &trial->workspace, trial->check->error));
        trial->workspace_bytes = tkv_trial_is_on(trial) ? plan.workspace_bytes : 0;
    }
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->attend(trial->device, &plan, trial->workspace,
                                                   trial->check->error));
    }
}

/* Runs the call, in one or in two parts. */
static void run_attention(tkv_trial *trial, const tkv_attention_case *c,
                          const tkv_device_attend *params, size_t n_rows)
{
    const size_t n_out = n_rows * (size_t)c->data.layer.head_dim_v;
    tkv_device_attend parts[2] = {*params, *params};
    if (c->split == 0) {
        attend_part(trial, params);
        return;
    }
    const tkv_device_join join = {.parts = tkv_trial_allocate(trial, 2 * n_out * sizeof(float)),
                                  .log_sums = tkv_trial_allocate(trial, 2 * n_rows * sizeof(float)),
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
        parts[i].out = join.parts + i * n_out * sizeof(float);
        parts[i].log_sums = join.log_sums + i * n_rows * sizeof(float);
        attend_part(trial, &parts[i]);
    }
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->join(trial->device, &join, trial->check->error));
    }
}

static void read_stats(tkv_trial *trial, uint64_t address, attention_data *data)
{
    tkv_attend_stats stats = {0, 0};
    tkv_trial_get(trial, &stats, address, sizeof stats);
    data->is_intact = data->is_intact && (double)stats.n_weights == data->n_weights &&
                      stats.n_skipped >= 0 && (double)stats.n_skipped <= data->n_small;
}

static void attend_on_device(const tkv_trial_layer *l, const tkv_attention_case *c, size_t n_rows,
                             attention_data *data)
{
    tkv_trial *trial = l->trial;
    const tkv_device_layer *layer = &c->data.layer;
    const size_t n_out = n_rows * (size_t)layer->head_dim_v;
    const int n_heads = c->group * layer->n_kv_heads;
    const tkv_attend_stats none = {0, 0};
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
                                .sequences = l->address,
                                .begin = c->data.begin,
                                .end = c->data.end};
    for (int s = 0; s < c->data.n_sequences; s++) {
        const int n = c->data.n_tokens[s];
        params.max_tokens = n > params.max_tokens ? n : params.max_tokens;
    }
    params.q = tkv_trial_put(trial, data->q, n_rows * (size_t)layer->head_dim_k * sizeof(float));
    params.out = tkv_trial_put_guarded(trial, n_out);
    params.sinks =
        c->has_sinks ? tkv_trial_put(trial, data->sinks, (size_t)n_heads * sizeof(float)) : 0;
    params.stats = c->has_stats ? tkv_trial_put(trial, &none, sizeof none) : 0;
    params.log_sums = c->has_log_sums ? tkv_trial_put_guarded(trial, n_rows) : 0;
    run_attention(trial, c, &params, n_rows);
    data->is_intact = true;
    data->out = tkv_trial_get_guarded(trial, params.out, n_out, &data->is_intact);
    if (c->has_log_sums) {
        data->log_sums = tkv_trial_get_guarded(trial, params.log_sums, n_rows, &data->is_intact);
    }
    if (c->has_stats) {
        read_stats(trial, params.stats, data);
    }
}

/* ---- Compared ------------------------------------------------------------------------------- */

/* What float arithmetic leaves, and what the table's rounding of queries and weights does to a mean
 * of values, whose norm is a fraction of theirs (as in tests/attention). */
static double attention_bound(const tkv_device_table *table, const tkv_layer_case *c)
{
    const bool is_exact = c->layer.type_k == TKV_TYPE_F16 && c->layer.type_v == TKV_TYPE_F16;
    const float query = tkv_device_query_rounding(table, c->layer.type_k);
    const float coded = fmaxf(table->weight_rounding, query);
    return FLOAT_BOUND +
           10.0 * (double)(is_exact ? table->exact_rounding : fmaxf(coded, table->exact_rounding));
}

/* Rows that see nothing have no logarithm; the others' is as exact as outputs are. */
static double log_sum_error(size_t n_rows, const attention_data *data)
{
    double worst = 0.0;
    for (size_t i = 0; i < n_rows; i++) {
        const double expected = data->expected_log_sums[i];
        const double found = (double)data->log_sums[i];
        const double error = isinf(expected) ? (found == expected ? 0.0 : INFINITY)
                                             : fabs(found - expected) / (1.0 + fabs(expected));
        worst = tkv_check_worse(worst, error);
    }
    return worst;
}

/* Of all outputs, relative to their norm; rows that see nothing may be anything. */
static double output_error(size_t n_rows, size_t width, const attention_data *data)
{
    double square = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < n_rows * width; i++) {
        if (isinf(data->expected_log_sums[i / width])) {
            continue;
        }
        double difference = fabs((double)data->out[i] - (double)data->expected[i]);
        difference = difference > (double)data->slack[i] ? difference - (double)data->slack[i]
                     : isnan(difference)                 ? NAN
                                                         : 0.0;
        square += difference * difference;
        norm += (double)data->expected[i] * (double)data->expected[i];
    }
    return square == 0.0 ? 0.0 : sqrt(square / norm);
}

static void tell(const tkv_trial_layer *l, const tkv_attention_case *c, size_t n_rows,
                 const attention_data *data)
{
    char what[240];
    double error = output_error(n_rows, (size_t)c->data.layer.head_dim_v, data);
    if (data->log_sums) {
        error = tkv_check_worse(error, log_sum_error(n_rows, data));
    }
    snprintf(what, sizeof what,
             "%d queries%s from %d, group %d, window %d, scale %g, softcap %g, sparse_v %g, "
             "sinks %d, split at %d",
             c->n_queries, c->split ? " to two parts" : "", c->first_position, c->group, c->window,
             (double)c->scale, (double)c->logit_softcap, (double)c->sparse_v, c->has_sinks,
             c->split);
    tkv_trial_name(l, TKV_OPERATION_ATTEND, TKV_ORDER_KEY, what);
    tkv_check_tell(l->trial->check, NULL, error, attention_bound(l->trial->table, &c->data), NULL);
    tkv_check_tell(l->trial->check, NULL, !data->is_intact, 0.0,
                   "writes outside its arrays, or counts wrongly");
}

void tkv_check_attention(tkv_trial_layer *l, const tkv_attention_case *c)
{
    tkv_trial *trial = l->trial;
    const tkv_device_layer *layer = &c->data.layer;
    const int n_heads = c->group * layer->n_kv_heads;
    const size_t n_rows = (size_t)(c->data.n_sequences * c->n_queries * n_heads);
    const size_t n_q = n_rows * (size_t)layer->head_dim_k;
    const size_t n_out = n_rows * (size_t)layer->head_dim_v;
    uint64_t seed = c->data.seed + 99;
    int longest = c->first_position + c->n_queries + 1;
    for (int s = 0; s < c->data.n_sequences; s++) {
        longest = c->data.n_tokens[s] > longest ? c->data.n_tokens[s] : longest;
    }
    attention_data data = {.q = tkv_trial_host(trial, n_q * sizeof(float)),
                           .expected = tkv_trial_host(trial, n_out * sizeof(float)),
                           .slack = tkv_trial_host(trial, n_out * sizeof(float)),
                           .expected_log_sums = tkv_trial_host(trial, n_rows * sizeof(double)),
                           .sinks = tkv_trial_host(trial, (size_t)n_heads * sizeof(float)),
                           .logits = tkv_trial_host(trial, (size_t)(longest + 1) * sizeof(double))};
    if (tkv_trial_is_on(trial)) {
        tkv_random_fill(&seed, n_q, data.q);
        tkv_random_fill(&seed, (size_t)n_heads, data.sinks);
        attend_by_definition(c, l, &data);
    }
    if (tkv_trial_is_on(trial)) {
        attend_on_device(l, c, n_rows, &data);
    }
    if (tkv_trial_is_on(trial)) {
        tell(l, c, n_rows, &data);
    }
}
