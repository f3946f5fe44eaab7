#include "check/speed.h"

#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CALLS = 1 << 20 };
static const double DEFAULT_SECONDS = 0.02;
static const double COPY_SECONDS = 0.02;

static const int default_dims[] = {64, 80, 96, 128, 256};
enum { N_DEFAULT_DIMS = sizeof default_dims / sizeof *default_dims };

tkv_type tkv_check_timed_type(const tkv_check_params *params, int index)
{
    if (params->types) {
        return index < params->n_types ? params->types[index] : TKV_TYPE_COUNT;
    }
    return index < TKV_TYPE_COUNT ? (tkv_type)index : TKV_TYPE_COUNT;
}

int tkv_check_timed_dim(const tkv_check_params *params, int index)
{
    if (params->head_dims) {
        return index < params->n_head_dims ? params->head_dims[index] : 0;
    }
    return index < N_DEFAULT_DIMS ? default_dims[index] : 0;
}

double tkv_check_turn_seconds(const tkv_check_params *params)
{
    return (params->seconds > 0.0 ? params->seconds : DEFAULT_SECONDS) / TKV_CHECK_TURNS;
}

int tkv_check_calls(const tkv_check_params *params, double seconds)
{
    const double n = tkv_check_turn_seconds(params) / fmax(seconds, 1e-9);
    return n < 1.0 ? 1 : n > MAX_CALLS ? MAX_CALLS : (int)n;
}

static int compare_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

double tkv_check_median(double turns[TKV_CHECK_TURNS])
{
    qsort(turns, TKV_CHECK_TURNS, sizeof *turns, compare_seconds);
    return turns[TKV_CHECK_TURNS / 2];
}

double tkv_check_copy_speed(uint8_t *memory, size_t bytes)
{
    const size_t half = bytes / 2;
    const double begin = tkv_seconds();
    double best = 0.0;
    do {
        /* Enough copies that the clock does not matter. */
        const int n = half < (1 << 20) ? (1 << 20) / (int)half : 1;
        const double start = tkv_seconds();
        for (int i = 0; i < n; i++) {
            memcpy(memory + half, memory, half);
            memory[i % (int)half] ^= 1; /* so that no copy may be left out */
        }
        best = fmax(best, 2.0 * (double)half * n / (tkv_seconds() - start));
    } while (tkv_seconds() - begin < COPY_SECONDS);
    return best;
}

void tkv_verdict_note(void *user, const tkv_check_result *result)
{
    tkv_verdict *verdict = user;
    verdict->error = fmax(verdict->error, result->error);
    verdict->bound = result->bound;
    if (result->fault && !verdict->fault[0]) {
        snprintf(verdict->fault, sizeof verdict->fault, "%s", result->fault);
    }
}

void tkv_check_tell_time(tkv_check *check, const tkv_verdict *verdict, tkv_check_result result)
{
    result.text = "";
    result.fault = verdict->fault[0] ? verdict->fault : NULL;
    result.error = verdict->error;
    result.bound = verdict->bound;
    check->report(check->user, &result);
}
