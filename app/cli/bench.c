/* Lists that the benchmarks take. */
#include "cli/bench.h"

#include "common/try.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NUMBER 100000000

tkv_status bench_parse_types(const char *text, tkv_type types[TKV_TYPE_COUNT], int *n_types,
                             tkv_error *error)
{
    *n_types = 0;
    if (!text) {
        for (int i = 0; i < TKV_TYPE_COUNT; i++) {
            types[(*n_types)++] = (tkv_type)i;
        }
        return TKV_OK;
    }
    char name[32];
    do {
        const size_t length = strcspn(text, ",");
        snprintf(name, sizeof name, "%.*s", (int)(length < 31 ? length : 31), text);
        if (*n_types == TKV_TYPE_COUNT) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "--types: more than the %d there are",
                            TKV_TYPE_COUNT);
        }
        TKV_TRY(tkv_type_from_name(name, &types[(*n_types)++], error));
        text += length;
    } while (*text++);
    return TKV_OK;
}

tkv_status bench_parse_numbers(const char *name, const char *text, int low, int capacity,
                               int *numbers, int *n_numbers, tkv_error *error)
{
    *n_numbers = 0;
    for (;;) {
        char *end;
        const long number = strtol(text, &end, 10);
        if (!isdigit((unsigned char)*text) || (*end && *end != ',') || number < low ||
            number > MAX_NUMBER || *n_numbers == capacity) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "--%s: expected up to %d whole numbers from %d to %d, found '%.40s'",
                            name, capacity, low, MAX_NUMBER, text);
        }
        numbers[(*n_numbers)++] = (int)number;
        if (!*end) {
            return TKV_OK;
        }
        text = end + 1;
    }
}
