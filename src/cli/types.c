/* turbokv types: what the KV types cost and how far off they are. */
#include "cli/command.h"
#include "cli/options.h"

#include <stdio.h>

static cJSON *to_json(int head_dim)
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

int command_types(int argc, char **argv)
{
    int head_dim = 128;
    bool wants_json = false;
    bool wants_help = false;
    const option_entry entries[] = {
        {"head-dim", NULL, 'd', OPTION_INT, &head_dim, TKV_MIN_HEAD_DIM, TKV_MAX_HEAD_DIM, "N",
         "size of a head (128)"},
        {"json", NULL, 0, OPTION_FLAG, &wants_json, 0, 0, NULL, "print JSON"},
        {"help", NULL, 'h', OPTION_HELP, &wants_help, 0, 0, NULL, "print this help"},
    };
    const option_result result = options_parse("types", "Lists the KV types.", entries,
                                               sizeof entries / sizeof *entries, argc, argv);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    tkv_error error;
    if (tkv_check_head_dim(TKV_TYPE_F16, head_dim, &error) != TKV_OK) {
        fprintf(stderr, "turbokv: %s\n", error.message);
        return EXIT_USAGE;
    }
    if (wants_json) {
        return command_print_json(to_json(head_dim));
    }
    printf("%-9s %10s %12s  %s\n", "type", "bits/value", "error (NMSE)", "code");
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        const tkv_type_info *info = tkv_type_get_info((tkv_type)i);
        printf("%-9s %10.3f %12.2g  %s\n", info->name, tkv_bits_per_value((tkv_type)i, head_dim),
               info->expected_nmse, info->description);
    }
    printf("bits at head_dim %d; error: E|x-x'|^2 / E|x|^2 on Gaussian rows at head_dim 128\n",
           head_dim);
    return EXIT_OK;
}
