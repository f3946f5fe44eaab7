/* Fuzzing: a target is a program that gets arbitrary bytes and must survive them. A target has the
 * entry point of libFuzzer; driver.c calls it with mutated seeds, the same ones in every run. */
#ifndef TKV_TESTS_FUZZ_FUZZ_H
#define TKV_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "turbokv.h"

#define FUZZ_MAX_INPUT (1 << 18)

/* Of the target: takes one input; whatever is wrong ends the program. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of the target: writes valid input number `index`; returns its size, 0 beyond the last. */
size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT]);

/* Of the target: inputs of one run, so that it takes a few seconds. */
extern const int fuzz_runs;

/* Ends the program with a message. */
_Noreturn void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A call that failed must have said why: in one line, and with this status in the error. */

void fuzz_check_error(int status, const tkv_error *error);

/* A file for inputs that have to be one; removed when the program ends. */
const char *fuzz_file(void);
void fuzz_write_file(const char *path, const uint8_t *data, size_t size);
size_t fuzz_read_file(const char *path, uint8_t data[FUZZ_MAX_INPUT]);

#endif
