/* turbokv bench attention --device cuda: beside the time to copy its bytes, attention over fp16,
 * and attention by definition in double. */
#include "base/error.h"
#include "cli/bench.h"
#include "cli/bench_attention.h"
#include "eval/clock.h"
#include "eval/cuda/attention_graph.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct cuda_result {
    tkv_type type;
    tkv_attention_graph *graph;
    double median; /* seconds */
    double best;
    double error;
} cuda_result;

typedef struct cuda_run {
    const attention_options *options;
    tkv_context *context;
    double bandwidth; /* of a copy */
    int n_results;
    cuda_result results[TKV_TYPE_COUNT + 1]; /* the first one is f16 */
} cuda_run;

static tkv_status create_graphs(cuda_run *run, tkv_error *error)
{
    tkv_type types[TKV_TYPE_COUNT + 1];
    int n_types;
    tkv_status status = bench_attention_types(run->options, types, &n_types, error);
    for (int i = 0; status == TKV_OK && i < n_types; i++) {
        tkv_attention_shape shape = run->options->shape;
        cuda_result *result = &run->results[run->n_results++];
        shape.type_k = shape.type_v = result->type = types[i];
        status = tkv_attention_graph_create(run->context, &shape, run->options->n_sequences,
                                            &result->graph, error);
    }
    return status;
}

/* All types in turns; the first turn is not counted. */
static tkv_status time_graphs(cuda_run *run, tkv_error *error)
{
    const int n = run->options->n_repetitions;
    double *seconds = malloc((size_t)(run->n_results * (n + 1)) * sizeof *seconds);
    tkv_status status =
        seconds ? TKV_OK : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the times");
    for (int turn = 0; turn <= n && status == TKV_OK; turn++) {
        for (int i = 0; i < run->n_results && status == TKV_OK; i++) {
            status = tkv_attention_graph_run(run->results[i].graph,
                                             &seconds[i * (n + 1) + (turn ? turn - 1 : n)], error);
        }
    }
    for (int i = 0; i < run->n_results && status == TKV_OK; i++) {
        tkv_sort_seconds(n, seconds + i * (n + 1));
        run->results[i].best = seconds[i * (n + 1)];
        run->results[i].median = seconds[i * (n + 1) + n / 2];
    }
    free(seconds);
    return status;
}

static tkv_status measure(cuda_run *run, tkv_error *error)
{
    tkv_status status = tkv_cuda_copy_bandwidth(run->context, &run->bandwidth, error);
    if (status == TKV_OK) {
        status = create_graphs(run, error);
    }
    if (status == TKV_OK) {
        status = time_graphs(run, error);
    }
    for (int i = 0; status == TKV_OK && i < run->n_results; i++) {
        cuda_result *result = &run->results[i];
        status = tkv_attention_graph_error(result->graph, &result->error, error);
    }
    return status;
}

static void print_table(const cuda_run *run)
{
    const attention_options *o = run->options;
    const tkv_attention_shape *s = &o->shape;
    printf("%s; memory is copied at %.0f GB/s, read and written\n"
           "%d x %d tokens, %d KV heads of %d, %d query heads each, %d quer%s; medians of %d graph "
           "replays\n",
           tkv_context_device(run->context), run->bandwidth * 1e-9, o->n_sequences, s->n_tokens,
           s->n_kv_heads, s->head_dim, s->group, s->n_queries, s->n_queries == 1 ? "y" : "ies",
           o->n_repetitions);
    printf("%-9s %7s %9s %9s %8s %8s %8s %8s %8s\n", "type", "bits", "us", "best us", "MB", "GB/s",
           "of copy", "of f16", "error");
    for (int i = 0; i < run->n_results; i++) {
        const cuda_result *r = &run->results[i];
        const double bytes = (double)tkv_attention_graph_bytes(r->graph);
        printf("%-9s %7.3f %9.2f %9.2f %8.1f %8.0f %7.1f%% %7.2fx %8.2g\n",
               tkv_type_get_info(r->type)->name, tkv_bits_per_value(r->type, s->head_dim),
               1e6 * r->median, 1e6 * r->best, bytes * 1e-6, bytes / r->median * 1e-9,
               100.0 * bytes / run->bandwidth / r->median, run->results[0].median / r->median,
               r->error);
    }
    printf("MB, GB/s: of coded keys and values; of copy: GB/s over those of a copy; of f16: how "
           "many times\nas fast as f16 here; error: |o - o'| / |o| of two heads, o in double over "
           "the decoded rows\n");
}

static cJSON *to_json(const cuda_run *run)
{
    const attention_options *o = run->options;
    const tkv_attention_shape *s = &o->shape;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(run->context));
    cJSON_AddStringToObject(json, "device", tkv_context_device(run->context));
    cJSON_AddNumberToObject(json, "copy_bytes_per_second", run->bandwidth);
    cJSON_AddNumberToObject(json, "batch", o->n_sequences);
    cJSON_AddNumberToObject(json, "tokens", s->n_tokens);
    cJSON_AddNumberToObject(json, "kv_heads", s->n_kv_heads);
    cJSON_AddNumberToObject(json, "head_dim", s->head_dim);
    cJSON_AddNumberToObject(json, "group", s->group);
    cJSON_AddNumberToObject(json, "queries", s->n_queries);
    cJSON_AddNumberToObject(json, "repetitions", o->n_repetitions);
    cJSON *rows = cJSON_AddArrayToObject(json, "types");
    for (int i = 0; i < run->n_results; i++) {
        const cuda_result *r = &run->results[i];
        const double bytes = (double)tkv_attention_graph_bytes(r->graph);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "type", tkv_type_get_info(r->type)->name);
        cJSON_AddNumberToObject(row, "bits_per_value", tkv_bits_per_value(r->type, s->head_dim));
        cJSON_AddNumberToObject(row, "median_seconds", r->median);
        cJSON_AddNumberToObject(row, "best_seconds", r->best);
        cJSON_AddNumberToObject(row, "bytes", bytes);
        cJSON_AddNumberToObject(row, "share_of_copy", bytes / run->bandwidth / r->median);
        cJSON_AddNumberToObject(row, "times_f16", run->results[0].median / r->median);
        cJSON_AddNumberToObject(row, "output_error", r->error);
        cJSON_AddItemToArray(rows, row);
    }
    return json;
}

int bench_attention_cuda(const attention_options *options, tkv_context *context)
{
    tkv_error error;
    cuda_run run = {.options = options, .context = context};
    const tkv_status status = measure(&run, &error);
    int code = EXIT_OK;
    if (status != TKV_OK) {
        command_fail(&error);
        code = status == TKV_ERR_INVALID_ARGUMENT ? EXIT_USAGE : EXIT_RUNTIME;
    } else if (options->wants_json) {
        code = command_print_json(to_json(&run));
    } else {
        print_table(&run);
    }
    for (int i = 0; i < run.n_results; i++) {
        tkv_attention_graph_free(run.results[i].graph);
    }
    return code;
}
