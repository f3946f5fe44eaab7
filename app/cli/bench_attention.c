/* turbokv bench attention: decode or prefill attention over a coded cache, by KV type, beside the
 * time to read its bytes and attention in fp16. */
#include "cli/bench_attention.h"

#include "base/error.h"
#include "cli/bench.h"
#include "cli/check_memory.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/progress.h"
#include "device/context.h"
#include "eval/bandwidth.h"
#include "eval/clock.h"
#include "eval/device_codec_speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BANDWIDTH_BYTES ((size_t)256 << 20)
#define MAX_REPETITIONS 1000

typedef struct attention_result {
    tkv_type type;
    tkv_attention_work *work;
    double median; /* seconds */
    double best;
    double error; /* of the output, relative to the norm of f16's */
} attention_result;

typedef struct attention_run {
    const attention_options *options;
    tkv_context *context;
    double bandwidth;
    int n_results;
    attention_result results[TKV_TYPE_COUNT + 1]; /* the first one is f16 */
    progress bar;
} attention_run;

static const attention_options defaults = {
    .shape = {.head_dim = 128, .n_kv_heads = 8, .group = 4, .n_tokens = 16384, .n_queries = 1},
    .n_sequences = 1,
    .n_repetitions = 21,
    .context = {.n_threads = 2, .effort = TKV_EFFORT_FAST, .device = "cpu"}};

static const option_entry entries[] = {
    {"types", NULL, 'T', OPTION_TEXT, OPTION_AT(attention_options, types), 0, 0, "LIST",
     "KV types (all)"},
    {"head-dim", NULL, 'd', OPTION_INT, OPTION_AT(attention_options, shape.head_dim), 1,
     TKV_MAX_HEAD_DIM, "N", "size of a head"},
    {"kv-heads", NULL, 0, OPTION_INT, OPTION_AT(attention_options, shape.n_kv_heads), 1, 1024, "N",
     "KV heads"},
    {"group", NULL, 'g', OPTION_INT, OPTION_AT(attention_options, shape.group), 1, 1024, "N",
     "query heads a KV head"},
    {"tokens", NULL, 'n', OPTION_INT, OPTION_AT(attention_options, shape.n_tokens), 1, 10000000,
     "N", "tokens of context"},
    {"queries", NULL, 'q', OPTION_INT, OPTION_AT(attention_options, shape.n_queries), 1, 1000000,
     "N", "query tokens: 1 decodes, more prefill"},
    {"repetitions", NULL, 'r', OPTION_INT, OPTION_AT(attention_options, n_repetitions), 1,
     MAX_REPETITIONS, "N", "calls of each type, in turns"},
    {"threads", NULL, 't', OPTION_INT, OPTION_AT(attention_options, context.n_threads), 1, 1024,
     "N", "threads"},
    CONTEXT_DEVICE_ROW(attention_options),
    {"batch", NULL, 'b', OPTION_INT, OPTION_AT(attention_options, n_sequences), 1, 65536, "N",
     "sequences in one call, on CUDA"},
    IGNORE_GATE_ROW(attention_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(attention_options, wants_json), 0, 0, NULL,
     "print JSON"},
    OPTION_HELP_ROW,
};

const option_table bench_attention_options = {
    .command = "bench attention",
    .summary = "attention over a cache by KV type, beside fp16 and memory",
    .description = "Times attention over a cache of each KV type, beside the time to read "
                   "its bytes and\nattention over an fp16 cache.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

tkv_status bench_attention_types(const attention_options *options,
                                 tkv_type types[TKV_TYPE_COUNT + 1], int *n_types, tkv_error *error)
{
    tkv_type named[TKV_TYPE_COUNT];
    int n_named;
    const tkv_status status = bench_parse_types(options->types, named, &n_named, error);
    *n_types = 0;
    types[(*n_types)++] = TKV_TYPE_F16;
    for (int i = 0; status == TKV_OK && i < n_named; i++) {
        if (named[i] != TKV_TYPE_F16) {
            types[(*n_types)++] = named[i];
        }
    }
    return status;
}

/* The caches of all types, and queries and results of each, are there together. A device says
 * itself what it has. */
static tkv_status check_memory(const attention_run *run, const tkv_type *types, int n_types,
                               tkv_error *error)
{
    tkv_attention_shape s = run->options->shape;
    const double floats = (double)s.n_queries * s.n_kv_heads * s.group * s.head_dim;
    double bytes = 0.0;
    for (int i = 0; i < n_types; i++) {
        s.type_k = s.type_v = types[i];
        bytes += (double)tkv_attention_shape_bytes(&s) + 3.0 * floats * sizeof(float);
    }
    char what[96];
    snprintf(what, sizeof what, "KV caches of %d tokens and %d queries of %d types", s.n_tokens,
             s.n_queries, n_types);
    return run->context->device ? TKV_OK : command_check_memory(what, bytes, error);
}

/* A step is a cache that is filled, or a call. */
static void show_step(attention_run *run, int n_done, int n_types)
{
    const int n_turns = run->options->n_repetitions + 1;
    progress_update(&run->bar, n_done, (1.0 + n_turns) * n_types);
}

static tkv_status create_works(attention_run *run, tkv_error *error)
{
    tkv_type types[TKV_TYPE_COUNT + 1];
    int n_types;
    tkv_status status = bench_attention_types(run->options, types, &n_types, error);
    if (status == TKV_OK) {
        status = check_memory(run, types, n_types, error);
    }
    for (int i = 0; status == TKV_OK && i < n_types; i++) {
        tkv_attention_shape shape = run->options->shape;
        shape.type_k = shape.type_v = run->results[run->n_results].type = types[i];
        status = tkv_attention_work_create(run->context, &shape,
                                           &run->results[run->n_results++].work, error);
        show_step(run, i + 1, n_types);
    }
    return status;
}

/* All types in turns, so that what else the machine does falls on all of them, and none finds its
 * pages in a cache. The first turn is not counted. */
static tkv_status time_works(attention_run *run, tkv_error *error)
{
    const int n = run->options->n_repetitions;
    double *seconds = malloc((size_t)(run->n_results * (n + 1)) * sizeof *seconds);
    tkv_status status =
        seconds ? TKV_OK : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the times");
    for (int turn = 0; turn <= n && status == TKV_OK; turn++) {
        for (int i = 0; i < run->n_results && status == TKV_OK; i++) {
            status = tkv_attention_work_run(run->results[i].work,
                                            &seconds[i * (n + 1) + (turn ? turn - 1 : n)], error);
            show_step(run, (turn + 1) * run->n_results + i + 1, run->n_results);
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

static void compare_outputs(attention_run *run)
{
    const tkv_attention_shape *s = &run->options->shape;
    const size_t n = (size_t)s->n_queries * (size_t)(s->n_kv_heads * s->group * s->head_dim);
    const float *exact = tkv_attention_work_output(run->results[0].work);
    for (int i = 0; i < run->n_results; i++) {
        const float *found = tkv_attention_work_output(run->results[i].work);
        double difference = 0.0;
        double size = 0.0;
        for (size_t j = 0; j < n; j++) {
            difference += pow((double)found[j] - (double)exact[j], 2.0);
            size += pow((double)exact[j], 2.0);
        }
        run->results[i].error = sqrt(difference / size);
    }
}

/* A device's memory is timed by copies, reads and writes together, of no more than some times the
 * context, as emulated devices take their time. */
static tkv_status measure_bandwidth(attention_run *run, tkv_error *error)
{
    if (!run->context->device) {
        return tkv_read_bandwidth(run->options->context.n_threads, BANDWIDTH_BYTES, &run->bandwidth,
                                  error);
    }
    const size_t wanted = 4 * tkv_attention_work_bytes(run->results[0].work);
    return tkv_device_copy_bandwidth(run->context->device,
                                     wanted < BANDWIDTH_BYTES ? wanted : BANDWIDTH_BYTES,
                                     &run->bandwidth, error);
}

static tkv_status measure(attention_run *run, tkv_error *error)
{
    progress_begin(&run->bar, "bench attention");
    tkv_status status = create_works(run, error);
    if (status == TKV_OK) {
        status = measure_bandwidth(run, error);
    }
    if (status == TKV_OK) {
        status = time_works(run, error);
    }
    progress_end(&run->bar);
    if (status == TKV_OK) {
        compare_outputs(run);
    }
    return status;
}

static void print_table(const attention_run *run)
{
    const attention_options *o = run->options;
    const tkv_attention_shape *s = &o->shape;
    printf("%s kernels, %d threads; memory is read at %.1f GB/s\n"
           "%d tokens, %d KV heads of %d, %d query heads each, %d quer%s; medians of %d calls\n",
           tkv_context_kernels(run->context), o->context.n_threads, run->bandwidth * 1e-9,
           s->n_tokens, s->n_kv_heads, s->head_dim, s->group, s->n_queries,
           s->n_queries == 1 ? "y" : "ies", o->n_repetitions);
    printf("%-9s %7s %9s %9s %8s %8s %8s %8s %8s\n", "type", "bits", "ms", "best ms", "MB", "GB/s",
           "of read", "of f16", "error");
    for (int i = 0; i < run->n_results; i++) {
        const attention_result *r = &run->results[i];
        const double bytes = (double)tkv_attention_work_bytes(r->work);
        printf("%-9s %7.3f %9.3f %9.3f %8.1f %8.2f %7.1f%% %7.2fx %8.2g\n",
               tkv_type_get_info(r->type)->name, tkv_bits_per_value(r->type, s->head_dim),
               1e3 * r->median, 1e3 * r->best, bytes * 1e-6, bytes / r->median * 1e-9,
               100.0 * bytes / run->bandwidth / r->median, run->results[0].median / r->median,
               r->error);
    }
    printf("MB, GB/s: of coded keys and values; of read: the time to read them over the time "
           "taken;\nof f16: how many times as fast; error: |o - o'| / |o| of the outputs, o in "
           "f16\n");
}

static cJSON *to_json(const attention_run *run)
{
    const tkv_attention_shape *s = &run->options->shape;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(run->context));
    cJSON_AddNumberToObject(json, "threads", run->options->context.n_threads);
    cJSON_AddNumberToObject(json, "read_bytes_per_second", run->bandwidth);
    cJSON_AddNumberToObject(json, "tokens", s->n_tokens);
    cJSON_AddNumberToObject(json, "kv_heads", s->n_kv_heads);
    cJSON_AddNumberToObject(json, "head_dim", s->head_dim);
    cJSON_AddNumberToObject(json, "group", s->group);
    cJSON_AddNumberToObject(json, "queries", s->n_queries);
    cJSON_AddNumberToObject(json, "repetitions", run->options->n_repetitions);
    cJSON *rows = cJSON_AddArrayToObject(json, "types");
    for (int i = 0; i < run->n_results; i++) {
        const attention_result *r = &run->results[i];
        const double bytes = (double)tkv_attention_work_bytes(r->work);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "type", tkv_type_get_info(r->type)->name);
        cJSON_AddNumberToObject(row, "bits_per_value", tkv_bits_per_value(r->type, s->head_dim));
        cJSON_AddNumberToObject(row, "median_seconds", r->median);
        cJSON_AddNumberToObject(row, "best_seconds", r->best);
        cJSON_AddNumberToObject(row, "bytes", bytes);
        cJSON_AddNumberToObject(row, "bound_seconds", bytes / run->bandwidth);
        cJSON_AddNumberToObject(row, "times_f16", run->results[0].median / r->median);
        cJSON_AddNumberToObject(row, "output_error", r->error);
        cJSON_AddItemToArray(rows, row);
    }
    return json;
}

static int run_works(const attention_options *o, tkv_context *context)
{
    tkv_error error;
    attention_run run = {.options = o, .context = context};
    const tkv_status status = measure(&run, &error);
    int code = EXIT_OK;
    if (status != TKV_OK) {
        command_fail(&error);
        code = status == TKV_ERR_INVALID_ARGUMENT ? EXIT_USAGE : EXIT_RUNTIME;
    } else if (o->wants_json) {
        code = command_print_json(to_json(&run));
    } else {
        print_table(&run);
    }
    for (int i = 0; i < run.n_results; i++) {
        tkv_attention_work_free(run.results[i].work);
    }
    return code;
}

/* With graphs and the device's clock where there are such, else as the host sees it. */
static int run(const attention_options *o, tkv_context *context)
{
#ifdef TKV_HAVE_CUDA
    if (strcmp(tkv_context_kernels(context), "cuda") == 0) {
        return bench_attention_cuda(o, context);
    }
#endif
    if (o->n_sequences != 1) {
        fprintf(stderr, "turbokv: --batch %d: expected 1 on %s\n", o->n_sequences,
                context->device ? tkv_context_device(context) : "the CPU");
        return EXIT_USAGE;
    }
    return run_works(o, context);
}

int bench_attention(int argc, char **argv)
{
    attention_options o;
    const option_result result = options_parse(&bench_attention_options, argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    tkv_error error;
    tkv_context *context = NULL;
    if (command_open_context(&o.context, o.ignores_gate, &context, &error) != TKV_OK) {
        return command_fail(&error);
    }
    const int code = run(&o, context);
    tkv_context_free(context);
    return code;
}
