/* turbokv types: what KV types and presets cost, and how far off the types are. */
#include "cli/command.h"
#include "cli/commands.h"

#include <stdio.h>

/* The shape for which presets are priced: many models of 7 to 9 billion parameters have it. */
enum { N_LAYERS = 32, N_KV_HEADS = 8 };

static const int lengths[] = {4096, 32768, 131072};

enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static double preset_bits(const char *name, int head_dim, int n_tokens)
{
    tkv_policy policy;
    return tkv_policy_preset(name, &policy, NULL) == TKV_OK
               ? tkv_policy_bits(&policy, N_LAYERS, N_KV_HEADS, head_dim, head_dim, n_tokens)
               : 0.0;
}

static cJSON *presets_to_json(int head_dim)
{
    cJSON *list = cJSON_CreateArray();
    const char *name;
    for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", name);
        cJSON *bits = cJSON_AddArrayToObject(item, "bits_per_value");
        for (int k = 0; k < N_LENGTHS; k++) {
            cJSON *entry = cJSON_CreateObject();
            cJSON_AddNumberToObject(entry, "tokens", lengths[k]);
            cJSON_AddNumberToObject(entry, "bits", preset_bits(name, head_dim, lengths[k]));
            cJSON_AddItemToArray(bits, entry);
        }
        cJSON_AddItemToArray(list, item);
    }
    return list;
}

static void print_presets(int head_dim)
{
    printf("\n%-9s", "preset");
    for (int k = 0; k < N_LENGTHS; k++) {
        printf(" %9dK", lengths[k] / 1024);
    }
    printf("  policy\n");
    const char *name;
    for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
        tkv_policy policy;
        char text[1024] = "";
        printf("%-9s", name);
        for (int k = 0; k < N_LENGTHS; k++) {
            printf(" %10.3f", preset_bits(name, head_dim, lengths[k]));
        }
        if (tkv_policy_preset(name, &policy, NULL) == TKV_OK &&
            tkv_policy_format(&policy, text, sizeof text, NULL) == TKV_OK) {
            printf("  %s\n", text);
        }
    }
    printf("bits a value by tokens in the cache, exact tokens, scales, means and unused slots "
           "included;\n%d layers, %d KV heads, head_dim %d\n",
           N_LAYERS, N_KV_HEADS, head_dim);
}

static cJSON *types_to_json(int head_dim)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        const tkv_type_info *info = tkv_type_get_info((tkv_type)i);
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", info->name);
        cJSON_AddNumberToObject(item, "head_dim", head_dim);
        cJSON_AddNumberToObject(item, "bits_per_value", tkv_bits_per_value((tkv_type)i, head_dim));
        cJSON_AddNumberToObject(item, "row_bytes", (double)tkv_row_bytes((tkv_type)i, head_dim));
        cJSON_AddNumberToObject(item, "expected_nmse", info->expected_nmse);
        cJSON_AddStringToObject(item, "description", info->description);
        cJSON_AddItemToArray(list, item);
    }
    return list;
}

static cJSON *to_json(int head_dim)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "types", types_to_json(head_dim));
    cJSON_AddItemToObject(json, "presets", presets_to_json(head_dim));
    return json;
}

typedef struct types_options {
    int head_dim;
    bool wants_json;
} types_options;

static const types_options defaults = {.head_dim = 128};

static const option_entry entries[] = {
    {"head-dim", NULL, 'd', OPTION_INT, OPTION_AT(types_options, head_dim), TKV_MIN_HEAD_DIM,
     TKV_MAX_HEAD_DIM, "N", "size of a head"},
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(types_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table command_types_options = {
    .command = "types",
    .summary = "list the KV types with their bits and errors",
    .description = "Lists the KV types and the presets.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

static void print_types(int head_dim)
{
    printf("%-9s %10s %12s  %s\n", "type", "bits/value", "error (NMSE)", "code");
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        const tkv_type_info *info = tkv_type_get_info((tkv_type)i);
        printf("%-9s %10.3f %12.2g  %s\n", info->name, tkv_bits_per_value((tkv_type)i, head_dim),
               info->expected_nmse, info->description);
    }
    printf("bits at head_dim %d; error: E|x-x'|^2 / E|x|^2 on Gaussian rows at head_dim 128\n",
           head_dim);
}

int command_types(int argc, char **argv)
{
    types_options o;
    int code;
    if (!options_take(&command_types_options, argc, argv, &o, &code)) {
        return code;
    }
    tkv_error error;
    if (tkv_check_head_dim(TKV_TYPE_F16, o.head_dim, &error) != TKV_OK) {
        fprintf(stderr, "turbokv: %s\n", error.message);
        return EXIT_USAGE;
    }
    if (o.wants_json) {
        return command_print_json(to_json(o.head_dim));
    }
    print_types(o.head_dim);
    print_presets(o.head_dim);
    return EXIT_OK;
}
