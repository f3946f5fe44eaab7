/* A policy as text. */
#include "base/error.h"
#include "policy/policy.h"
#include "turbokv.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct writer {
    char *text;
    size_t size;
    size_t used; /* beyond size if it does not fit */
} writer;

__attribute__((format(printf, 2, 3))) static void add(writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const size_t left = w->used < w->size ? w->size - w->used : 0;
    const int length = vsnprintf(left ? w->text + w->used : NULL, left, format, arguments);
    va_end(arguments);
    w->used += length > 0 ? (size_t)length : 0;
}

static const char *name_of(tkv_type type)
{
    return tkv_type_get_info(type)->name;
}

static void add_count(writer *w, const char *key, int count)
{
    if (count > 0) {
        add(w, " %s=%d", key, count);
    }
}

/* With as few digits as give the same number back. */
static void add_number(writer *w, const char *key, float number)
{
    char digits[32];
    int n_digits = 1;
    do {
        snprintf(digits, sizeof digits, "%.*g", n_digits, (double)number);
    } while (strtof(digits, NULL) != number && ++n_digits <= 9);
    add(w, " %s=%s", key, digits);
}

tkv_status tkv_policy_format(const tkv_policy *policy, char *text, size_t size, tkv_error *error)
{
    if (!text) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "text is NULL");
    }
    TKV_TRY(tkv_check_policy(policy, error));
    writer w = {text, size, 0};
    add(&w, "k=%s v=%s", name_of(policy->type_k), name_of(policy->type_v));
    add_count(&w, "sinks", policy->n_sinks);
    add_count(&w, "recent", policy->n_recent);
    add_count(&w, "centre", policy->centre_tokens);
    if (policy->boundary_layers > 0) {
        add(&w, " boundary=%d:%s/%s", policy->boundary_layers, name_of(policy->boundary_k),
            name_of(policy->boundary_v));
    }
    for (int i = 0; i < policy->n_ranges; i++) {
        const tkv_layer_range *range = &policy->ranges[i];
        add(&w, " layers=%d-%d:%s/%s", range->first, range->last, name_of(range->type_k),
            name_of(range->type_v));
    }
    if (policy->sparse_v > 0.0f) {
        add_number(&w, "sparse-v", policy->sparse_v);
    }
    if (w.used >= size) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy text of %zu bytes: expected room for %zu", size, w.used + 1);
    }
    return TKV_OK;
}
