/* turbokv bench: speed and error of the parts, beside the bounds that they are under. */
#include "cli/bench.h"

#include "common/error.h"
#include "eval/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct benchmark {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
} benchmark;

static const benchmark benchmarks[] = {
    {"attention", "attention over a cache by KV type, beside fp16 and memory", bench_attention},
    {"codec", "errors, encoding and decoding by KV type and head_dim", bench_codec},
    {"model", "prefill and decode of a model by KV type and depth", bench_model},
};

enum { N_BENCHMARKS = sizeof benchmarks / sizeof *benchmarks };

static void print_usage(FILE *file)
{
    fprintf(file, "usage: turbokv bench NAME [options]\n\nbenchmarks:\n");
    for (int i = 0; i < N_BENCHMARKS; i++) {
        fprintf(file, "  %-10s %s\n", benchmarks[i].name, benchmarks[i].help);
    }
    fprintf(file, "\n'turbokv bench NAME --help' lists the options of a benchmark.\n");
}

int command_bench(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    for (int i = 0; i < N_BENCHMARKS; i++) {
        if (strcmp(argv[1], benchmarks[i].name) == 0) {
            return benchmarks[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr, "turbokv: no benchmark '%s'\n\n", argv[1]);
    print_usage(stderr);
    return EXIT_USAGE;
}

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
        const tkv_status status = tkv_type_from_name(name, &types[(*n_types)++], error);
        if (status != TKV_OK) {
            return status;
        }
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
            number > 100000000 || *n_numbers == capacity) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "--%s: expected up to %d whole numbers from %d, found '%.40s'", name,
                            capacity, low, text);
        }
        numbers[(*n_numbers)++] = (int)number;
        if (!*end) {
            return TKV_OK;
        }
        text = end + 1;
    }
}

tkv_status bench_check_memory(const char *what, double bytes, tkv_error *error)
{
    const double memory = (double)tkv_machine_memory();
    return memory > 0.0 && bytes > memory
               ? tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                          "%s: %.1f GB, but this machine has %.1f GB of memory", what, 1e-9 * bytes,
                          1e-9 * memory)
               : TKV_OK;
}
