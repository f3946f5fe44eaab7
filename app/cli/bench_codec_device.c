#include "cli/bench_codec_device.h"

#include "cli/command.h"
#include "common/try.h"
#include "eval/device_codec_speed.h"

#include <stdio.h>

#define N_KV_HEADS 8
#define COPY_BYTES ((size_t)256 << 20)

/* Keeps the bytes of a chunk as they are at head_dim 128, far above the device's cache. */
static int chunk_tokens(const bench_codec_device_params *params, int head_dim)
{
    const int n = (int)((long)params->n_rows * 128 / head_dim);
    return n > 0 ? n : 1;
}

static void print_line(const tkv_device_codec_shape *shape, const tkv_device_codec_speed *s,
                       double copy)
{
    printf("%-9s %5d %8d %9.1f %8.0f %6.1f%% %9.2f %9.1f %8.0f %6.1f%%\n",
           tkv_type_get_info(shape->type)->name, shape->head_dim, shape->n_tokens,
           1e6 * s->store_seconds, 1e-6 * s->n_rows / s->store_seconds,
           100.0 * s->n_bytes / s->store_seconds / copy, 1e6 * s->append_seconds,
           1e6 * s->load_seconds, 1e-6 * s->n_rows / s->load_seconds,
           100.0 * s->n_bytes / s->load_seconds / copy);
    fflush(stdout);
}

static void add_line(cJSON *lines, const tkv_device_codec_shape *shape,
                     const tkv_device_codec_speed *s)
{
    cJSON *line = cJSON_CreateObject();
    cJSON_AddStringToObject(line, "type", tkv_type_get_info(shape->type)->name);
    cJSON_AddNumberToObject(line, "head_dim", shape->head_dim);
    cJSON_AddNumberToObject(line, "n_tokens", shape->n_tokens);
    cJSON_AddNumberToObject(line, "rows", s->n_rows);
    cJSON_AddNumberToObject(line, "bytes", s->n_bytes);
    cJSON_AddNumberToObject(line, "store_seconds", s->store_seconds);
    cJSON_AddNumberToObject(line, "append_seconds", s->append_seconds);
    cJSON_AddNumberToObject(line, "load_seconds", s->load_seconds);
    cJSON_AddItemToArray(lines, line);
}

static void print_head(const tkv_context *context, double copy)
{
    printf("%s; its memory is copied at %.0f GB/s; %d KV heads, keys and values\n",
           tkv_context_device(context), copy * 1e-9, N_KV_HEADS);
    printf("%-9s %5s %8s %9s %8s %7s %9s %9s %8s %7s\n", "type", "dim", "tokens", "store us",
           "Mrows/s", "of copy", "append us", "load us", "Mrows/s", "of copy");
}

static tkv_status measure(tkv_context *context, const bench_codec_device_params *params,
                          cJSON *json, tkv_error *error)
{
    double copy;
    TKV_TRY(tkv_device_copy_bandwidth(context, COPY_BYTES, &copy, error));
    cJSON *lines = NULL;
    if (json) {
        cJSON_AddStringToObject(json, "device", tkv_context_device(context));
        cJSON_AddNumberToObject(json, "copy_bytes_per_second", copy);
        cJSON_AddNumberToObject(json, "n_kv_heads", N_KV_HEADS);
        lines = cJSON_AddArrayToObject(json, "types");
    } else {
        print_head(context, copy);
    }
    for (int i = 0; i < params->n_head_dims * params->n_types; i++) {
        const int head_dim = params->head_dims[i / params->n_types];
        const tkv_device_codec_shape shape = {.type = params->types[i % params->n_types],
                                              .head_dim = head_dim,
                                              .n_kv_heads = N_KV_HEADS,
                                              .n_tokens = chunk_tokens(params, head_dim)};
        tkv_device_codec_speed speed;
        TKV_TRY(tkv_device_codec_speed_measure(context, &shape, &speed, error));
        if (json) {
            add_line(lines, &shape, &speed);
        } else {
            print_line(&shape, &speed, copy);
        }
    }
    return TKV_OK;
}

int bench_codec_on_device(tkv_context *context, const bench_codec_device_params *params)
{
    tkv_error error;
    cJSON *json = params->wants_json ? cJSON_CreateObject() : NULL;
    if (measure(context, params, json, &error) != TKV_OK) {
        cJSON_Delete(json);
        return command_fail(&error);
    }
    return json ? command_print_json(json) : EXIT_OK;
}
