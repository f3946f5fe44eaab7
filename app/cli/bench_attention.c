/* turbokv bench attention: decode or prefill attention over a coded cache, by KV type, beside the
 * time to read its bytes and attention in fp16. */
#include "cli/bench_attention.h"

#include "cli/bench.h"
#include "cli/check_memory.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/progress.h"
#include "common/try.h"
#include "eval/bandwidth.h"
#include "eval/clock.h"
#include "eval/device_codec_speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BANDWIDTH_BYTES ((size_t)256 << 20)
#define MAX_REPETITIONS 1000

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

/* ---- Calls as the host sees them ------------------------------------------------------------ */

static tkv_status prepare_work(tkv_context *context, const tkv_attention_shape *shape,
                               int n_sequences, void **work, tkv_error *error)
{
    if (n_sequences != 1) {
        return tkv_fail(
            error, TKV_ERR_INVALID_ARGUMENT, "--batch %d: expected 1 on %s", n_sequences,
            tkv_context_device_kind(context) == TKV_DEVICE_CPU ? "the CPU"
                                                               : tkv_context_device(context));
    }
    tkv_attention_work *created = NULL;
    const tkv_status status = tkv_attention_work_create(context, shape, &created, error);
    *work = created;
    return status;
}

static tkv_status run_work(void *work, double *seconds, tkv_error *error)
{
    return tkv_attention_work_run(work, seconds, error);
}

static tkv_status compare_works(void *work, void *exact_work, double *output_error,
                                tkv_error *error)
{
    (void)error;
    size_t n;
    const float *exact = tkv_attention_work_output(exact_work, &n);
    const float *found = tkv_attention_work_output(work, &n);
    double difference = 0.0;
    double size = 0.0;
    for (size_t j = 0; j < n; j++) {
        difference += pow((double)found[j] - (double)exact[j], 2.0);
        size += pow((double)exact[j], 2.0);
    }
    *output_error = sqrt(difference / size);
    return TKV_OK;
}

static void free_work(void *work)
{
    tkv_attention_work_free(work);
}

static const attention_meter meter_calls = {.prepare = prepare_work,
                                            .step = run_work,
                                            .compare = compare_works,
                                            .finish = free_work,
                                            .copied_bytes = BANDWIDTH_BYTES};

/* Graphs and the device's clock where there are such. */
static const attention_meter *choose_meter(const tkv_context *context)
{
#ifdef TKV_HAVE_CUDA
    if (tkv_context_device_kind(context) == TKV_DEVICE_CUDA) {
        return &attention_meter_cuda;
    }
#endif
    (void)context;
    return &meter_calls;
}

/* ---- The measurement ------------------------------------------------------------------------ */

/* f16 first, then the others that the options name. */
static tkv_status choose_types(attention_run *run, tkv_error *error)
{
    tkv_type named[TKV_TYPE_COUNT];
    int n_named;
    TKV_TRY(bench_parse_types(run->options->types, named, &n_named, error));
    run->results[run->n_results++].type = TKV_TYPE_F16;
    for (int i = 0; i < n_named; i++) {
        if (named[i] != TKV_TYPE_F16) {
            run->results[run->n_results++].type = named[i];
        }
    }
    return TKV_OK;
}

static tkv_attention_shape shape_of(const attention_run *run, tkv_type type)
{
    tkv_attention_shape shape = run->options->shape;
    shape.type_k = shape.type_v = type;
    return shape;
}

/* The caches of all types, and queries and results of each, are there together. A device says
 * itself what it has. */
static tkv_status check_memory(const attention_run *run, tkv_error *error)
{
    const tkv_attention_shape *s = &run->options->shape;
    const double floats = (double)s->n_queries * s->n_kv_heads * s->group * s->head_dim;
    double bytes = 0.0;
    for (int i = 0; i < run->n_results; i++) {
        bytes += run->results[i].bytes + 3.0 * floats * sizeof(float);
    }
    char what[96];
    snprintf(what, sizeof what, "KV caches of %d tokens and %d queries of %d types", s->n_tokens,
             s->n_queries, run->n_results);
    return tkv_context_device_kind(run->context) == TKV_DEVICE_CPU
               ? command_check_memory(what, bytes, error)
               : TKV_OK;
}

/* A step is a cache that is filled, or a call. */
static void show_step(const attention_run *run, progress *bar, int n_done)
{
    progress_update(bar, n_done, (2.0 + run->options->n_repetitions) * run->n_results);
}

static tkv_status create_works(attention_run *run, progress *bar, tkv_error *error)
{
    for (int i = 0; i < run->n_results; i++) {
        const tkv_attention_shape shape = shape_of(run, run->results[i].type);
        TKV_TRY(run->meter->prepare(run->context, &shape, run->options->n_sequences,
                                    &run->results[i].work, error));
        show_step(run, bar, i + 1);
    }
    return TKV_OK;
}

/* All types in turns, so that what else the machine does falls on all of them, and none finds its
 * pages in a cache. seconds [n_results][n_repetitions + 1]; the first turn comes last there and is
 * not counted. */
static tkv_status run_turns(const attention_run *run, progress *bar, double *seconds,
                            tkv_error *error)
{
    const int n = run->options->n_repetitions;
    for (int turn = 0; turn <= n; turn++) {
        for (int i = 0; i < run->n_results; i++) {
            double *time = &seconds[i * (n + 1) + (turn ? turn - 1 : n)];
            TKV_TRY(run->meter->step(run->results[i].work, time, error));
            show_step(run, bar, (turn + 1) * run->n_results + i + 1);
        }
    }
    return TKV_OK;
}

static tkv_status time_works(attention_run *run, progress *bar, tkv_error *error)
{
    const int n = run->options->n_repetitions;
    double *seconds = malloc((size_t)(run->n_results * (n + 1)) * sizeof *seconds);
    if (!seconds) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the times");
    }
    const tkv_status status = run_turns(run, bar, seconds, error);
    for (int i = 0; i < run->n_results && status == TKV_OK; i++) {
        tkv_sort_seconds(n, seconds + i * (n + 1));
        run->results[i].best = seconds[i * (n + 1)];
        run->results[i].median = seconds[i * (n + 1) + n / 2];
    }
    free(seconds);
    return status;
}

/* A device's memory is timed by copies, reads and writes together, of no more than some times the
 * context, as emulated devices take their time. */
static tkv_status measure_bandwidth(attention_run *run, tkv_error *error)
{
    if (tkv_context_device_kind(run->context) == TKV_DEVICE_CPU) {
        return tkv_read_bandwidth(run->options->context.n_threads, BANDWIDTH_BYTES, &run->bandwidth,
                                  error);
    }
    const size_t wanted =
        run->meter->is_graph ? run->meter->copied_bytes : 4 * (size_t)run->results[0].bytes;
    return tkv_device_copy_bandwidth(
        run->context, wanted < run->meter->copied_bytes ? wanted : run->meter->copied_bytes,
        &run->bandwidth, error);
}

static tkv_status measure_with(attention_run *run, progress *bar, tkv_error *error)
{
    TKV_TRY(create_works(run, bar, error));
    TKV_TRY(measure_bandwidth(run, error));
    TKV_TRY(time_works(run, bar, error));
    for (int i = 0; i < run->n_results; i++) {
        attention_result *r = &run->results[i];
        TKV_TRY(run->meter->compare(r->work, run->results[0].work, &r->error, error));
    }
    return TKV_OK;
}

static tkv_status measure(attention_run *run, tkv_error *error)
{
    TKV_TRY(choose_types(run, error));
    for (int i = 0; i < run->n_results; i++) {
        const tkv_attention_shape shape = shape_of(run, run->results[i].type);
        run->results[i].bytes =
            (double)run->options->n_sequences * (double)tkv_attention_shape_bytes(&shape);
    }
    TKV_TRY(check_memory(run, error));
    progress bar;
    progress_begin(&bar, "bench attention");
    const tkv_status status = measure_with(run, &bar, error);
    progress_end(&bar);
    return status;
}

static int run(const attention_options *o, tkv_context *context)
{
    tkv_error error;
    attention_run run = {.options = o, .context = context, .meter = choose_meter(context)};
    const tkv_status status = measure(&run, &error);
    int code = EXIT_OK;
    if (status != TKV_OK) {
        command_fail(&error);
        code = status == TKV_ERR_INVALID_ARGUMENT ? EXIT_USAGE : EXIT_RUNTIME;
    } else if (o->wants_json) {
        code = command_print_json(attention_to_json(&run));
    } else {
        print_attention_table(&run);
    }
    for (int i = 0; i < run.n_results; i++) {
        run.meter->finish(run.results[i].work);
    }
    return code;
}

int bench_attention(int argc, char **argv)
{
    attention_options o;
    int code;
    if (!options_take(&bench_attention_options, argc, argv, &o, &code)) {
        return code;
    }
    tkv_error error;
    tkv_context *context = NULL;
    if (command_open_context(&o.context, o.ignores_gate, &context, &error) != TKV_OK) {
        return command_fail(&error);
    }
    code = run(&o, context);
    tkv_context_free(context);
    return code;
}
