/* The benchmarks of `turbokv bench`. */
#ifndef TKV_CLI_BENCH_H
#define TKV_CLI_BENCH_H

#include "cli/command.h"

/* Reads a comma-separated list of type names; `text` NULL: all types. */
tkv_status bench_parse_types(const char *text, tkv_type types[TKV_TYPE_COUNT], int *n_types,
                             tkv_error *error);

/* Reads a comma-separated list of up to `capacity` whole numbers from `low` on. */
tkv_status bench_parse_numbers(const char *name, const char *text, int low, int capacity,
                               int *numbers, int *n_numbers, tkv_error *error);

#endif
