/* Models that others made: scripts/fetch-models brings them (the tests fetch_* do, before the tests
 * that need them), and without network they are not there. */
#ifndef TESTS_SUPPORT_FETCHED_MODEL_H
#define TESTS_SUPPORT_FETCHED_MODEL_H

#include <stdbool.h>
#include <stddef.h>

/* The path of a model's GGUF file. False if it is not there, after a message that says so. */
bool fetched_model(const char *name, char *path, size_t size);

#endif
