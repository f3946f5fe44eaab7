/* turbokv bench codec: what each KV type makes of vectors, and how fast. */
#include "cli/bench.h"
#include "cli/bench_codec_device.h"
#include "cli/check_memory.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/progress.h"
#include "common/random.h"
#include "common/try.h"
#include "eval/bandwidth.h"
#include "eval/codec_quality.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_HEAD_DIMS 16
#define SPEED_PAGES 64
#define BANDWIDTH_BYTES ((size_t)256 << 20)
#define DEFAULT_ROWS 4096
#define DEFAULT_DEVICE_ROWS 8192

typedef struct codec_options {
    const char *types;
    const char *head_dims;
    const char *data;
    int n_rows; /* 0: the default */
    int centre_rows;
    int n_queries;
    uint64_t seed;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
} codec_options;

/* One line of the table. */
typedef struct codec_result {
    tkv_type type;
    int head_dim;
    tkv_codec_quality quality;
    tkv_codec_speed key;
    tkv_codec_speed value;
} codec_result;

typedef struct codec_run {
    const codec_options *options;
    tkv_context *context;
    tkv_type types[TKV_TYPE_COUNT];
    int n_types;
    int head_dims[MAX_HEAD_DIMS];
    int n_head_dims;
    double bandwidth;
    codec_result results[TKV_TYPE_COUNT * MAX_HEAD_DIMS];
    int n_results;
    progress bar;
} codec_run;

static const codec_options defaults = {
    .head_dims = "128", .n_queries = 64, .seed = 1, .context = {.n_threads = 1}};

static const option_entry entries[] = {
    {"types", NULL, 'T', OPTION_TEXT, OPTION_AT(codec_options, types), 0, 0, "LIST",
     "KV types (all)"},
    {"head-dim", NULL, 'd', OPTION_TEXT, OPTION_AT(codec_options, head_dims), 0, 0, "LIST",
     "sizes of a head"},
    {"rows", NULL, 'n', OPTION_INT, OPTION_AT(codec_options, n_rows), 0, 10000000, "N",
     "vectors, of data those of one head, on a device tokens of a chunk; 0: 4096, on a device "
     "8192"},
    {"queries", NULL, 'q', OPTION_INT, OPTION_AT(codec_options, n_queries), 1, 1000000, "N",
     "random queries a head"},
    {"data", NULL, 0, OPTION_FILE, OPTION_AT(codec_options, data), 0, 0, "FILE",
     "raw little-endian fp16 [heads][rows][head_dim] in place of Gaussian vectors"},
    {"centre", NULL, 0, OPTION_INT, OPTION_AT(codec_options, centre_rows), 0, 10000000, "N",
     "code relative to the mean of the first N vectors of a head; 0: off"},
    {"device", NULL, 0, OPTION_TEXT, OPTION_AT(codec_options, context.device), 0, 0, "NAME",
     "cpu, or time storing and loading on cuda or cuda:N in place of the rest"},
    {"seed", NULL, 's', OPTION_SEED, OPTION_AT(codec_options, seed), 0, 0, "N",
     "seed of vectors and queries"},
    CONTEXT_EFFORT_ROW(codec_options),
    IGNORE_GATE_ROW(codec_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(codec_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table bench_codec_options = {
    .command = "bench codec",
    .summary = "errors, encoding and decoding by KV type and head_dim",
    .description = "Measures the KV types: relative error beside theory, inner products, and "
                   "the time to\nencode and decode a row on one thread.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

static void fill_gauss(uint64_t seed, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = tkv_draw_gauss(&seed);
    }
}

static tkv_status read_data(const char *path, int n_rows, int head_dim, float **rows, int *n_heads,
                            tkv_error *error)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        return tkv_fail(error, TKV_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    }
    const size_t head = (size_t)n_rows * (size_t)head_dim;
    uint8_t *bytes = malloc(2 * head);
    tkv_status status = TKV_OK;
    size_t n = 2 * head;
    for (*n_heads = 0; bytes && status == TKV_OK; (*n_heads)++) {
        n = fread(bytes, 1, 2 * head, file);
        if (n != 2 * head) {
            break;
        }
        float *larger = realloc(*rows, (size_t)(*n_heads + 1) * head * sizeof **rows);
        if (!larger) {
            status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %s", path);
            break;
        }
        *rows = larger;
        for (size_t i = 0; i < head; i++) {
            const uint16_t half = (uint16_t)(bytes[2 * i] | bytes[2 * i + 1] << 8);
            tkv_halves_to_floats(1, &half, &larger[(size_t)*n_heads * head + i]);
        }
    }
    if (status == TKV_OK && (n != 0 || *n_heads == 0)) {
        status = tkv_fail(error, TKV_ERR_FORMAT,
                          "%s: expected whole heads of %d vectors of %d fp16 values (%zu bytes), "
                          "found %d and %zu bytes",
                          path, n_rows, head_dim, 2 * head, *n_heads, n);
    }
    free(bytes);
    fclose(file);
    return status;
}

/* All heads as floats, and one of them decoded. A pipe's heads are not known before. */
static tkv_status check_memory(const codec_options *o, int head_dim, tkv_error *error)
{
    struct stat info;
    const double head = (double)o->n_rows * head_dim;
    double n_heads = 1.0;
    if (o->data && stat(o->data, &info) == 0 && S_ISREG(info.st_mode)) {
        n_heads = (double)info.st_size / (2.0 * head);
    }
    char what[96];
    snprintf(what, sizeof what, "%.0f heads of %d vectors of %d values", ceil(n_heads), o->n_rows,
             head_dim);
    return command_check_memory(what, (n_heads + 1.0) * head * sizeof(float), error);
}

static tkv_status load_rows(const codec_options *o, int head_dim, float **rows, int *n_heads,
                            tkv_error *error)
{
    if (o->data) {
        return read_data(o->data, o->n_rows, head_dim, rows, n_heads, error);
    }
    const size_t n = (size_t)o->n_rows * (size_t)head_dim;
    *rows = malloc(n * sizeof **rows);
    *n_heads = 1;
    if (!*rows) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d vectors", o->n_rows);
    }
    fill_gauss(o->seed, n, *rows);
    return TKV_OK;
}

static void show_progress(void *user, double share)
{
    codec_run *run = user;
    progress_update(&run->bar, run->n_results - 1 + share, (double)run->n_types * run->n_head_dims);
}

static tkv_status measure_type(codec_run *run, tkv_type type, int head_dim, const float *rows,
                               int n_heads, tkv_error *error)
{
    const codec_options *o = run->options;
    codec_result *r = &run->results[run->n_results++];
    *r = (codec_result){.type = type, .head_dim = head_dim};
    const tkv_codec_quality_params params = {.type = type,
                                             .head_dim = head_dim,
                                             .rows = rows,
                                             .n_heads = n_heads,
                                             .n_rows = o->n_rows,
                                             .centre_rows = o->centre_rows,
                                             .n_queries = o->n_queries,
                                             .seed = o->seed + 1,
                                             .progress = show_progress,
                                             .progress_user = run};
    TKV_TRY(tkv_codec_quality_measure(run->context, &params, &r->quality, error));
    TKV_TRY(tkv_codec_speed_measure(run->context, type, TKV_ORDER_KEY, head_dim, SPEED_PAGES,
                                    &r->key, error));
    return tkv_codec_speed_measure(run->context, type, TKV_ORDER_VALUE, head_dim, SPEED_PAGES,
                                   &r->value, error);
}

static tkv_status measure(codec_run *run, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int d = 0; d < run->n_head_dims && status == TKV_OK; d++) {
        status = check_memory(run->options, run->head_dims[d], error);
    }
    if (status == TKV_OK) {
        status = tkv_read_bandwidth(1, BANDWIDTH_BYTES, &run->bandwidth, error);
    }
    progress_begin(&run->bar, "bench codec");
    for (int d = 0; d < run->n_head_dims && status == TKV_OK; d++) {
        float *rows = NULL;
        int n_heads = 0;
        status = load_rows(run->options, run->head_dims[d], &rows, &n_heads, error);
        for (int i = 0; i < run->n_types && status == TKV_OK; i++) {
            status = measure_type(run, run->types[i], run->head_dims[d], rows, n_heads, error);
        }
        free(rows);
    }
    progress_end(&run->bar);
    return status;
}

static void print_expected(double value)
{
    if (isnan(value)) {
        printf(" %9s", "-");
    } else {
        printf(" %9.2g", value);
    }
}

static void print_result(const codec_run *run, const codec_result *r)
{
    const tkv_codec_quality *q = &r->quality;
    printf("%-9s %5d %7.3f %9.3g", tkv_type_get_info(r->type)->name, r->head_dim,
           tkv_bits_per_value(r->type, r->head_dim), q->nmse);
    print_expected(tkv_codec_expected_error(r->type, r->head_dim));
    print_expected(r->type == TKV_TYPE_F16 ? (double)NAN : tkv_codec_shannon_bound(r->type));
    if (run->options->data) {
        printf(" %9.3g", q->spread_error);
    }
    printf(" %8.5f %9.3g %7.1f%%", q->slope, q->logit_error, 100.0 * q->recall);
    /* Reading the floats of a row is the least that encoding can take. */
    const double bound = (double)r->head_dim * sizeof(float) / run->bandwidth;
    printf(" %8.3f %8.3f %8.3f %8.3f %7.1f%%\n", 1e6 * r->key.encode_seconds,
           1e6 * r->value.encode_seconds, 1e6 * r->key.decode_seconds,
           1e6 * r->value.decode_seconds, 100.0 * bound / r->key.encode_seconds);
}

static void print_table(const codec_run *run)
{
    const codec_options *o = run->options;
    printf("%s kernels, one thread; memory is read at %.1f GB/s; %d %s\n",
           tkv_context_kernels(run->context), run->bandwidth * 1e-9, o->n_rows,
           o->data ? "vectors a head" : "Gaussian vectors");
    printf("%-9s %5s %7s %9s %9s %9s", "type", "dim", "bits", "error", "theory", "Shannon");
    if (o->data) {
        printf(" %9s", "of spread");
    }
    printf(" %8s %9s %8s %8s %8s %8s %8s %8s\n", "slope", "logits", "recall@1", "enc K us",
           "enc V us", "dec K us", "dec V us", "of read");
    for (int i = 0; i < run->n_results; i++) {
        print_result(run, &run->results[i]);
    }
    printf("error: |x-x'|^2 / |x|^2; theory: the codebook's in high dimension; Shannon: the least "
           "at these bits;\n%sslope: of <q,x'> on <q,x>; logits: variance of <q,x'-x> over that "
           "of <q,x>; us: microseconds a row;\nof read: time to read the row's floats over the "
           "time to encode it\n",
           o->data ? "of spread: |x-x'|^2 / |x-mean|^2; " : "");
}

static void add_expected(cJSON *row, const char *name, double value)
{
    if (isnan(value)) {
        cJSON_AddNullToObject(row, name);
    } else {
        cJSON_AddNumberToObject(row, name, value);
    }
}

static cJSON *to_json(const codec_run *run)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(run->context));
    cJSON_AddNumberToObject(json, "read_bytes_per_second", run->bandwidth);
    cJSON_AddNumberToObject(json, "rows", run->options->n_rows);
    cJSON *rows = cJSON_AddArrayToObject(json, "types");
    for (int i = 0; i < run->n_results; i++) {
        const codec_result *r = &run->results[i];
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "type", tkv_type_get_info(r->type)->name);
        cJSON_AddNumberToObject(row, "head_dim", r->head_dim);
        cJSON_AddNumberToObject(row, "bits_per_value", tkv_bits_per_value(r->type, r->head_dim));
        cJSON_AddNumberToObject(row, "nmse", r->quality.nmse);
        add_expected(row, "expected_nmse", tkv_codec_expected_error(r->type, r->head_dim));
        cJSON_AddNumberToObject(row, "shannon_bound", tkv_codec_shannon_bound(r->type));
        cJSON_AddNumberToObject(row, "spread_error", r->quality.spread_error);
        cJSON_AddNumberToObject(row, "slope", r->quality.slope);
        cJSON_AddNumberToObject(row, "logit_error", r->quality.logit_error);
        cJSON_AddNumberToObject(row, "recall_at_1", r->quality.recall);
        cJSON_AddNumberToObject(row, "encode_key_seconds", r->key.encode_seconds);
        cJSON_AddNumberToObject(row, "encode_value_seconds", r->value.encode_seconds);
        cJSON_AddNumberToObject(row, "decode_key_seconds", r->key.decode_seconds);
        cJSON_AddNumberToObject(row, "decode_value_seconds", r->value.decode_seconds);
        cJSON_AddItemToArray(rows, row);
    }
    return json;
}

/* Types and sizes from the options. */
static tkv_status prepare(codec_run *run, tkv_error *error)
{
    TKV_TRY(bench_parse_types(run->options->types, run->types, &run->n_types, error));
    TKV_TRY(bench_parse_numbers("head-dim", run->options->head_dims, 1, MAX_HEAD_DIMS,
                                run->head_dims, &run->n_head_dims, error));
    for (int i = 0; i < run->n_head_dims; i++) {
        TKV_TRY(tkv_check_head_dim(TKV_TYPE_TURBO4, run->head_dims[i], error));
    }
    return TKV_OK;
}

static int measure_device(const codec_run *run)
{
    const codec_options *o = run->options;
    return bench_codec_on_device(run->context,
                                 &(bench_codec_device_params){.types = run->types,
                                                              .n_types = run->n_types,
                                                              .head_dims = run->head_dims,
                                                              .n_head_dims = run->n_head_dims,
                                                              .n_rows = o->n_rows,
                                                              .wants_json = o->wants_json});
}

static int measure_cpu(codec_run *run)
{
    tkv_error error;
    if (measure(run, &error) != TKV_OK) {
        return command_fail(&error);
    }
    if (run->options->wants_json) {
        return command_print_json(to_json(run));
    }
    print_table(run);
    return EXIT_OK;
}

int bench_codec(int argc, char **argv)
{
    codec_options o;
    int code;
    if (!options_take(&bench_codec_options, argc, argv, &o, &code)) {
        return code;
    }
    tkv_error error;
    codec_run run = {.options = &o};
    if (prepare(&run, &error) != TKV_OK) {
        command_fail(&error);
        return EXIT_USAGE;
    }
    const tkv_status status =
        command_open_context(&o.context, o.ignores_gate, &run.context, &error);
    if (status != TKV_OK) {
        return command_fail(&error);
    }
    const bool is_device = tkv_context_device_kind(run.context) != TKV_DEVICE_CPU;
    const int default_rows = is_device ? DEFAULT_DEVICE_ROWS : DEFAULT_ROWS;
    o.n_rows = o.n_rows ? o.n_rows : default_rows;
    code = is_device ? measure_device(&run) : measure_cpu(&run);
    tkv_context_free(run.context);
    return code;
}
