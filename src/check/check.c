/* A run of the harness: buffers between guards, and what becomes of a case. */
#include "check/check.h"

#include "base/error.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64, GUARD_BYTE = 0xa5 };

const int tkv_check_dims[TKV_CHECK_DIMS] = {64, 80, 96, 112, 128, 192, 256, 576, 16};

bool tkv_check_is_on(const tkv_check *check)
{
    return check->status == TKV_OK;
}

bool tkv_check_wants(const tkv_check *check, tkv_operation operation)
{
    const uint32_t operations = check->params->operations;
    return operations == 0 || (operations >> operation & 1u) != 0;
}

bool tkv_check_takes_dim(const tkv_check *check, int head_dim)
{
    return check->params->max_head_dim == 0 || head_dim <= check->params->max_head_dim;
}

uint64_t tkv_check_seed(const tkv_check *check, int index)
{
    return check->params->seed * 1000003u + (uint64_t)index;
}

void *tkv_check_take(tkv_check_memory *memory, size_t bytes)
{
    tkv_check *check = memory->check;
    const size_t whole = (bytes + 3 * GUARD - 1) / GUARD * GUARD;
    uint8_t *buffer = tkv_check_is_on(check) ? aligned_alloc(GUARD, whole) : NULL;
    if (!buffer) {
        check->status = tkv_check_is_on(check)
                            ? tkv_fail(check->error, TKV_ERR_OUT_OF_MEMORY,
                                       "no memory for a check (%zu bytes)", whole)
                            : check->status;
        return NULL;
    }
    memset(buffer, GUARD_BYTE, whole);
    memory->buffers[memory->n] = buffer;
    memory->bytes[memory->n++] = bytes;
    return buffer + GUARD;
}

float *tkv_check_take_floats(tkv_check_memory *memory, size_t n)
{
    float *x = tkv_check_take(memory, (n + 1) * sizeof *x);
    return x ? x + 1 : NULL;
}

void tkv_check_give_back(tkv_check_memory *memory)
{
    while (memory->n > 0) {
        free(memory->buffers[--memory->n]);
    }
}

static bool is_intact(const tkv_check_memory *memory)
{
    for (int b = 0; memory && b < memory->n; b++) {
        const uint8_t *before = memory->buffers[b];
        const uint8_t *after = before + GUARD + memory->bytes[b];
        for (int i = 0; i < GUARD; i++) {
            if (before[i] != GUARD_BYTE || after[i] != GUARD_BYTE) {
                return false;
            }
        }
    }
    return true;
}

void tkv_check_name(tkv_check *check, tkv_operation operation, tkv_type type, int head_dim,
                    const char *format, ...)
{
    const tkv_type_info *info = tkv_operation_has_types(operation) ? tkv_type_get_info(type) : NULL;
    char *text = check->text;
    const size_t size = sizeof check->text;
    char dim[24] = "";
    if (head_dim > 0) {
        snprintf(dim, sizeof dim, ", head_dim %d", head_dim);
    }
    snprintf(text, size, "%s%s%s%s, ", tkv_operation_name(operation), info ? " of " : "",
             info ? info->name : "", dim);
    const size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
    check->result.operation = operation;
    check->result.type = info ? type : TKV_TYPE_COUNT;
    check->result.head_dim = head_dim;
    check->result.text = text;
}

void tkv_check_tell(tkv_check *check, const tkv_check_memory *memory, double error, double bound,
                    const char *fault)
{
    tkv_check_result *result = &check->result;
    if (!tkv_check_is_on(check) || !tkv_check_wants(check, result->operation)) {
        return;
    }
    result->error = error;
    result->bound = bound;
    result->fault = NULL;
    if (!is_intact(memory)) {
        result->fault = "writes outside its arrays";
    } else if (!(error <= bound) && fault) {
        result->fault = fault;
    } else if (!(error <= bound)) {
        snprintf(check->fault, sizeof check->fault, "error %.3g, expected %.3g", error, bound);
        result->fault = check->fault;
    }
    check->report(check->user, result);
}

void tkv_check_tell_equal(tkv_check *check, const tkv_check_memory *memory, const void *found,
                          const void *expected, size_t bytes)
{
    const uint8_t *a = found;
    const uint8_t *b = expected;
    size_t n_other = 0;
    size_t first = 0;
    for (size_t i = bytes; i-- > 0;) {
        const bool is_other = a[i] != b[i];
        n_other += is_other;
        first = is_other ? i : first;
    }
    snprintf(check->fault, sizeof check->fault,
             "other bits than the reference: %zu of %zu bytes, the first is byte %zu", n_other,
             bytes, first);
    tkv_check_tell(check, memory, (double)n_other, 0.0, check->fault);
}

double tkv_check_worse(double a, double b)
{
    return isnan(a) || isnan(b) ? INFINITY : fmax(a, b);
}

uint64_t tkv_check_digest(uint64_t digest, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++) {
        digest = (digest ^ bytes[i]) * 0x100000001b3u;
    }
    return digest;
}

static const char *const operation_names[TKV_OPERATION_COUNT] = {
    "rotate", "unrotate", "softmax",         "move_rows", "join",       "encode", "decode",
    "store",  "load",     "prepare_queries", "scores",    "accumulate", "attend"};

const char *tkv_operation_name(tkv_operation operation)
{
    return (unsigned)operation < TKV_OPERATION_COUNT ? operation_names[operation] : "none";
}

bool tkv_operation_has_types(tkv_operation operation)
{
    return operation >= TKV_OPERATION_ENCODE && operation < TKV_OPERATION_COUNT;
}
