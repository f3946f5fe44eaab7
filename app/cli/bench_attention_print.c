#include "cli/bench_attention.h"

#include <stdio.h>

/* Calls on the CPU are set beside reading memory, everything else beside copying it. */
static bool is_read(const attention_run *run)
{
    return tkv_context_device_kind(run->context) == TKV_DEVICE_CPU;
}

static void print_head(const attention_run *run)
{
    const attention_options *o = run->options;
    const tkv_attention_shape *s = &o->shape;
    if (is_read(run)) {
        printf("%s kernels, %d threads; memory is read at %.1f GB/s\n",
               tkv_context_kernels(run->context), o->context.n_threads, run->bandwidth * 1e-9);
    } else {
        printf("%s; memory is copied at %.0f GB/s, read and written\n",
               tkv_context_device(run->context), run->bandwidth * 1e-9);
    }
    if (o->n_sequences > 1) {
        printf("%d x ", o->n_sequences);
    }
    printf("%d tokens, %d KV heads of %d, %d query heads each, %d quer%s; medians of %d %s\n",
           s->n_tokens, s->n_kv_heads, s->head_dim, s->group, s->n_queries,
           s->n_queries == 1 ? "y" : "ies", o->n_repetitions,
           run->meter->is_graph ? "graph replays" : "calls");
}

void print_attention_table(const attention_run *run)
{
    const bool is_graph = run->meter->is_graph;
    const char *unit = is_graph ? "us" : "ms";
    const double scale = is_graph ? 1e6 : 1e3;
    const char *memory = is_read(run) ? "read" : "copy";
    print_head(run);
    printf("%-9s %7s %9s %4s %s %8s %8s %3s %s %8s %8s\n", "type", "bits", unit, "best", unit, "MB",
           "GB/s", "of", memory, "of f16", "error");
    for (int i = 0; i < run->n_results; i++) {
        const attention_result *r = &run->results[i];
        printf("%-9s %7.3f %9.*f %9.*f %8.1f %8.2f %7.1f%% %7.2fx %8.2g\n",
               tkv_type_get_info(r->type)->name,
               tkv_bits_per_value(r->type, run->options->shape.head_dim), is_graph ? 2 : 3,
               scale * r->median, is_graph ? 2 : 3, scale * r->best, r->bytes * 1e-6,
               r->bytes / r->median * 1e-9, 100.0 * r->bytes / run->bandwidth / r->median,
               run->results[0].median / r->median, r->error);
    }
    printf("MB, GB/s: of coded keys and values; of %s: GB/s over those of memory; of f16: how "
           "many times as\nfast as f16 here; error: |o - o'| / |o| of %s\n",
           memory,
           is_graph ? "two heads, o in double over the decoded rows" : "the outputs, o in f16");
}

static cJSON *result_to_json(const attention_run *run, const attention_result *r)
{
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "type", tkv_type_get_info(r->type)->name);
    cJSON_AddNumberToObject(row, "bits_per_value",
                            tkv_bits_per_value(r->type, run->options->shape.head_dim));
    cJSON_AddNumberToObject(row, "median_seconds", r->median);
    cJSON_AddNumberToObject(row, "best_seconds", r->best);
    cJSON_AddNumberToObject(row, "bytes", r->bytes);
    cJSON_AddNumberToObject(row, "bound_seconds", r->bytes / run->bandwidth);
    if (!is_read(run)) {
        cJSON_AddNumberToObject(row, "share_of_copy", r->bytes / run->bandwidth / r->median);
    }
    cJSON_AddNumberToObject(row, "times_f16", run->results[0].median / r->median);
    cJSON_AddNumberToObject(row, "output_error", r->error);
    return row;
}

cJSON *attention_to_json(const attention_run *run)
{
    const attention_options *o = run->options;
    const tkv_attention_shape *s = &o->shape;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(run->context));
    cJSON_AddStringToObject(json, "device", tkv_context_device(run->context));
    cJSON_AddNumberToObject(json, "threads", o->context.n_threads);
    cJSON_AddNumberToObject(json, is_read(run) ? "read_bytes_per_second" : "copy_bytes_per_second",
                            run->bandwidth);
    cJSON_AddNumberToObject(json, "batch", o->n_sequences);
    cJSON_AddNumberToObject(json, "tokens", s->n_tokens);
    cJSON_AddNumberToObject(json, "kv_heads", s->n_kv_heads);
    cJSON_AddNumberToObject(json, "head_dim", s->head_dim);
    cJSON_AddNumberToObject(json, "group", s->group);
    cJSON_AddNumberToObject(json, "queries", s->n_queries);
    cJSON_AddNumberToObject(json, "repetitions", o->n_repetitions);
    cJSON *rows = cJSON_AddArrayToObject(json, "types");
    for (int i = 0; i < run->n_results; i++) {
        cJSON_AddItemToArray(rows, result_to_json(run, &run->results[i]));
    }
    return json;
}
