/* turbokv bench kernels: every kernel of every instruction set of this machine, or every operation
 * of a device, checked and then timed beside a copy of the bytes that it must move. */
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEAD_DIMS = 16 };

typedef struct kernels_options {
    const char *types;
    const char *head_dims;
    const char *operations;
    int n_tokens;
    int milliseconds;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
} kernels_options;

/* One measurement. */
typedef struct kernels_row {
    tkv_check_result result; /* its texts are those below */
    char kernels[24];
    char fault[160]; /* empty: it is right */
} kernels_row;

typedef struct kernels_run {
    const kernels_options *options;
    tkv_context *context;
    tkv_type types[TKV_TYPE_COUNT];
    int head_dims[MAX_HEAD_DIMS];
    tkv_check_params params;
    kernels_row *rows; /* by operation, size, type, and kernels, the reference first */
    int n_rows;
    int capacity;
    bool is_full; /* there was no memory for more */
    progress bar;
} kernels_run;

static const kernels_options defaults = {.head_dims = "64,80,96,128,256",
                                         .n_tokens = 8192,
                                         .milliseconds = 20,
                                         .context = {.n_threads = 1}};

static const option_entry entries[] = {
    {"types", NULL, 'T', OPTION_TEXT, OPTION_AT(kernels_options, types), 0, 0, "LIST",
     "KV types (all)"},
    {"head-dim", NULL, 'd', OPTION_TEXT, OPTION_AT(kernels_options, head_dims), 0, 0, "LIST",
     "sizes of a head"},
    {"operations", NULL, 'o', OPTION_TEXT, OPTION_AT(kernels_options, operations), 0, 0, "LIST",
     "which (all): rotate, unrotate, softmax, encode, decode, prepare_queries, scores, "
     "accumulate; on a device rotate, unrotate, store, load, attend"},
    {"tokens", NULL, 'n', OPTION_INT, OPTION_AT(kernels_options, n_tokens), 1, 1000000, "N",
     "of the layer, on a device"},
    {"time", NULL, 0, OPTION_INT, OPTION_AT(kernels_options, milliseconds), 1, 10000, "N",
     "milliseconds for each measurement"},
    CONTEXT_DEVICE_ROW(kernels_options),
    CONTEXT_EFFORT_ROW(kernels_options),
    IGNORE_GATE_ROW(kernels_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(kernels_options, wants_json), 0, 0, NULL,
     "print JSON"},
    OPTION_HELP_ROW,
};

const option_table bench_kernels_options = {
    .command = "bench kernels",
    .summary = "check and time each kernel of each instruction set",
    .description = "Checks each kernel of each instruction set of this machine, or each operation "
                   "of a\ndevice, against the reference and times it on one thread, beside a copy "
                   "of the bytes\nthat it must read and write.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

static tkv_status parse_operations(const char *text, uint32_t *operations, tkv_error *error)
{
    *operations = 0;
    while (text && *text) {
        const size_t length = strcspn(text, ",");
        int found = -1;
        for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
            const char *name = tkv_operation_name((tkv_operation)i);
            found = strlen(name) == length && strncmp(name, text, length) == 0 ? i : found;
        }
        if (found < 0) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "--operations: none is '%.*s'",
                            (int)(length < 40 ? length : 40), text);
        }
        *operations |= 1u << found;
        text += length + (text[length] == ',');
    }
    return TKV_OK;
}

static tkv_status prepare(kernels_run *run, tkv_error *error)
{
    const kernels_options *o = run->options;
    tkv_check_params *p = &run->params;
    *p = (tkv_check_params){.mode = TKV_CHECK_SPEED,
                            .every_set = true,
                            .types = run->types,
                            .head_dims = run->head_dims,
                            .n_tokens = o->n_tokens,
                            .effort = o->context.effort,
                            .seconds = 1e-3 * o->milliseconds};
    tkv_status status = bench_parse_types(o->types, run->types, &p->n_types, error);
    if (status == TKV_OK) {
        status = bench_parse_numbers("head-dim", o->head_dims, 1, MAX_HEAD_DIMS, run->head_dims,
                                     &p->n_head_dims, error);
    }
    return status == TKV_OK ? parse_operations(o->operations, &p->operations, error) : status;
}

static void add_row(void *user, const tkv_check_result *result)
{
    kernels_run *run = user;
    if (run->n_rows == run->capacity) {
        const int capacity = 2 * run->capacity + 64;
        kernels_row *larger = realloc(run->rows, (size_t)capacity * sizeof *larger);
        run->is_full = run->is_full || !larger;
        if (!larger) {
            return;
        }
        run->rows = larger;
        run->capacity = capacity;
    }
    kernels_row *row = &run->rows[run->n_rows++];
    row->result = *result;
    snprintf(row->kernels, sizeof row->kernels, "%s", result->kernels);
    snprintf(row->fault, sizeof row->fault, "%s", result->fault ? result->fault : "");
    progress_update(&run->bar, result->operation + 1, TKV_OPERATION_COUNT);
}

static tkv_status measure(kernels_run *run, tkv_error *error)
{
    progress_begin(&run->bar, "bench kernels");
    const tkv_status status = tkv_check_run(run->context, &run->params, add_row, run, error);
    progress_end(&run->bar);
    return status == TKV_OK && run->is_full
               ? tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d results", run->n_rows)
               : status;
}

static bool is_same_shape(const kernels_row *a, const kernels_row *b)
{
    return a->result.operation == b->result.operation && a->result.type == b->result.type &&
           a->result.head_dim == b->result.head_dim;
}

/* The rows of one shape, from `first` on: one for each set of kernels. */
static int count_sets(const kernels_run *run, int first)
{
    int n = 1;
    while (first + n < run->n_rows && is_same_shape(&run->rows[first], &run->rows[first + n])) {
        n++;
    }
    return n;
}

static const char *type_name(const kernels_row *row)
{
    return row->result.type == TKV_TYPE_COUNT ? "" : tkv_type_get_info(row->result.type)->name;
}

static const char *limit_name(const kernels_row *row)
{
    return row->result.limit == TKV_LIMIT_CACHE ? "cache" : "memory";
}

/* Bytes a second of copies, where they were measured; 0: they were not. */
static double copy_speed(const kernels_run *run, tkv_limit limit)
{
    for (int i = 0; i < run->n_rows; i++) {
        const tkv_check_result *r = &run->rows[i].result;
        if (r->limit == limit) {
            return r->bytes / r->limit_seconds;
        }
    }
    return 0.0;
}

static void print_head(const kernels_run *run, int first)
{
    const kernels_row *row = &run->rows[first];
    printf("\n%s, bound by %s\n%-9s %5s %9s", tkv_operation_name(row->result.operation),
           limit_name(row), "type", "dim", "bound us");
    for (int i = 0; i < count_sets(run, first); i++) {
        printf(" %20s us", run->rows[first + i].kernels);
    }
    putchar('\n');
}

static void print_line(const kernels_run *run, int first)
{
    const kernels_row *rows = &run->rows[first];
    printf("%-9s %5d %9.3f", type_name(rows), rows->result.head_dim,
           1e6 * rows->result.limit_seconds);
    for (int i = 0; i < count_sets(run, first); i++) {
        const tkv_check_result *r = &rows[i].result;
        printf(" %9.3f %4.0f%% %6.1fx", 1e6 * r->seconds, 100.0 * r->limit_seconds / r->seconds,
               rows->result.seconds / r->seconds);
    }
    putchar('\n');
    for (int i = 0; i < count_sets(run, first); i++) {
        if (rows[i].fault[0]) {
            printf("  WRONG: %s: %s\n", rows[i].kernels, rows[i].fault);
        }
    }
}

static void print_table(const kernels_run *run)
{
    const double memory = copy_speed(run, TKV_LIMIT_MEMORY);
    const double cache = copy_speed(run, TKV_LIMIT_CACHE);
    printf("%s, one thread; copies, bytes read and written:", tkv_context_device(run->context));
    if (memory > 0.0) {
        printf(" memory %.1f GB/s", 1e-9 * memory);
    }
    if (cache > 0.0) {
        printf(" cache %.1f GB/s", 1e-9 * cache);
    }
    putchar('\n');
    for (int i = 0; i < run->n_rows; i += count_sets(run, i)) {
        if (i == 0 || run->rows[i].result.operation != run->rows[i - 1].result.operation) {
            print_head(run, i);
        }
        print_line(run, i);
    }
    printf(
        "\nbound: a copy of the bytes that a call must read and write; of each set of kernels the "
        "median time\nof a call, the bound's share of it, and how many times as fast as the "
        "first set it is\n");
}

static cJSON *row_to_json(const kernels_row *row, const kernels_row *reference)
{
    const tkv_check_result *r = &row->result;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "operation", tkv_operation_name(r->operation));
    cJSON_AddStringToObject(json, "type", type_name(row));
    cJSON_AddNumberToObject(json, "head_dim", r->head_dim);
    cJSON_AddStringToObject(json, "kernels", row->kernels);
    cJSON_AddBoolToObject(json, "right", !row->fault[0]);
    cJSON_AddStringToObject(json, "fault", row->fault);
    cJSON_AddNumberToObject(json, "seconds", r->seconds);
    cJSON_AddNumberToObject(json, "bytes", r->bytes);
    cJSON_AddStringToObject(json, "bound", limit_name(row));
    cJSON_AddNumberToObject(json, "bound_seconds", r->limit_seconds);
    cJSON_AddNumberToObject(json, "speed_against_first", reference->result.seconds / r->seconds);
    return json;
}

static cJSON *to_json(const kernels_run *run)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "device", tkv_context_device(run->context));
    cJSON_AddNumberToObject(json, "memory_copy_bytes_per_second",
                            copy_speed(run, TKV_LIMIT_MEMORY));
    cJSON_AddNumberToObject(json, "cache_copy_bytes_per_second", copy_speed(run, TKV_LIMIT_CACHE));
    cJSON *rows = cJSON_AddArrayToObject(json, "kernels");
    for (int i = 0, reference = 0; i < run->n_rows; i++) {
        reference = is_same_shape(&run->rows[i], &run->rows[reference]) ? reference : i;
        cJSON_AddItemToArray(rows, row_to_json(&run->rows[i], &run->rows[reference]));
    }
    return json;
}

/* EXIT_FAILURE if a kernel is wrong: its time means nothing. */
static int report(const kernels_run *run)
{
    int n_wrong = 0;
    for (int i = 0; i < run->n_rows; i++) {
        n_wrong += run->rows[i].fault[0] != '\0';
    }
    int code = EXIT_OK;
    if (run->options->wants_json) {
        code = command_print_json(to_json(run));
    } else {
        print_table(run);
    }
    if (n_wrong > 0) {
        fprintf(stderr, "turbokv: %d kernels are wrong\n", n_wrong);
    }
    return n_wrong > 0 ? EXIT_FAILURE : code;
}

int bench_kernels(int argc, char **argv)
{
    kernels_options o;
    const option_result result = options_parse(&bench_kernels_options, argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    tkv_error error;
    kernels_run run = {.options = &o};
    if (prepare(&run, &error) != TKV_OK) {
        command_fail(&error);
        return EXIT_USAGE;
    }
    tkv_status status = command_open_context(&o.context, o.ignores_gate, &run.context, &error);
    if (status == TKV_OK) {
        status = measure(&run, &error);
    }
    const int code = status == TKV_OK ? report(&run) : command_fail(&error);
    tkv_context_free(run.context);
    free(run.rows);
    return code;
}
