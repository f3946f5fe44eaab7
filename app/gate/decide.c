/* What follows from the tests and measurements of a machine. */
#include "gate/machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Attention on compressed types that takes longer than this many times f16's is worth having only
 * for its memory. */
static const double SLOW = 2.0;

/* Types of the same speed as f16, or faster, allowing for the noise of a short measurement. */
static const double AS_FAST = 0.95;

const char *tkv_gate_verdict_name(tkv_gate_verdict verdict)
{
    return verdict == TKV_GATE_GO ? "go" : verdict == TKV_GATE_FALLBACK ? "fallback" : "no-go";
}

double tkv_gate_speed(const tkv_gate_backend *backend, tkv_type type)
{
    const double *times = backend->probe.microseconds;
    return backend->probe.n_tokens > 0 && times[type] > 0.0 ? times[TKV_TYPE_F16] / times[type]
                                                            : 0.0;
}

__attribute__((format(printf, 2, 3))) static void add_reason(tkv_gate *gate, const char *format,
                                                             ...)
{
    if (gate->n_reasons == TKV_GATE_MAX_REASONS) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(gate->reasons[gate->n_reasons++], TKV_GATE_TEXT, format, arguments);
    va_end(arguments);
}

/* Names of the types that are as fast as f16 (or that are not), with a comma between them. */
static void list_types(const tkv_gate_backend *backend, bool is_fast, char text[TKV_GATE_TEXT])
{
    size_t used = 0;
    text[0] = '\0';
    for (int type = 1; type < TKV_TYPE_COUNT && used < TKV_GATE_TEXT; type++) {
        if ((tkv_gate_speed(backend, (tkv_type)type) >= AS_FAST) == is_fast) {
            used += (size_t)snprintf(text + used, TKV_GATE_TEXT - used, "%s%s (%.2fx)",
                                     used ? ", " : "", tkv_type_get_info((tkv_type)type)->name,
                                     tkv_gate_speed(backend, (tkv_type)type));
        }
    }
}

static void name_types(tkv_gate *gate, const tkv_gate_backend *backend)
{
    char names[TKV_GATE_TEXT];
    list_types(backend, true, names);
    if (names[0]) {
        add_reason(gate, "as fast as f16 or faster: %.220s", names);
    }
    list_types(backend, false, names);
    if (names[0]) {
        add_reason(gate, "slower than f16, for their memory: %.210s", names);
    }
}

static double best_speed(const tkv_gate_backend *backend)
{
    double best = 0.0;
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        const double speed = tkv_gate_speed(backend, (tkv_type)type);
        best = speed > best ? speed : best;
    }
    return best;
}

/* Whether two back ends are devices of one kind, of which the first serves. */
static bool are_alike(const tkv_gate_backend *a, const tkv_gate_backend *b)
{
    return strcmp(a->device, "cpu") != 0 && strcmp(a->device, b->device) == 0;
}

/* The last back end that passed; those that failed after it are what it stands in for. */
static void choose(tkv_gate *gate)
{
    gate->chosen = -1;
    for (int i = 0; i < gate->n_backends; i++) {
        const bool is_known =
            gate->chosen >= 0 && are_alike(&gate->backends[gate->chosen], &gate->backends[i]);
        gate->chosen =
            gate->backends[i].state == TKV_BACKEND_PASSED && !is_known ? i : gate->chosen;
    }
    for (int i = gate->n_backends - 1; i >= 0; i--) {
        const tkv_gate_backend *backend = &gate->backends[i];
        if (backend->state != TKV_BACKEND_FAILED) {
            continue;
        }
        if (gate->chosen >= 0 && i > gate->chosen) {
            gate->verdict = TKV_GATE_FALLBACK;
            add_reason(gate, "%s falls back to %s: %.200s", backend->name,
                       gate->backends[gate->chosen].name, backend->reason);
        } else {
            add_reason(gate, "%s must not be used: %.200s", backend->name, backend->reason);
        }
    }
}

/* Says at least that a failed back end has none: a record that others wrote may lack it. */
static void complete_reasons(tkv_gate *gate)
{
    for (int i = 0; i < gate->n_backends; i++) {
        tkv_gate_backend *backend = &gate->backends[i];
        const bool is_blank = !backend->reason[strspn(backend->reason, " \t\r\n")];
        if (backend->state == TKV_BACKEND_FAILED && is_blank) {
            snprintf(backend->reason, sizeof backend->reason, "no reason is recorded");
        }
    }
}

void tkv_gate_decide(tkv_gate *gate)
{
    gate->verdict = TKV_GATE_GO;
    gate->n_reasons = 0;
    complete_reasons(gate);
    choose(gate);
    if (gate->chosen < 0) {
        gate->verdict = TKV_GATE_NO_GO;
        add_reason(gate, "no back end gives the right answers");
        return;
    }
    const tkv_gate_backend *chosen = &gate->backends[gate->chosen];
    add_reason(gate, "use %s: all %d known answers are right", chosen->name, chosen->n_cases);
    if (strcmp(chosen->name, tkv_kernels_name(0, NULL)) == 0) {
        gate->verdict = TKV_GATE_FALLBACK;
        add_reason(gate, "%s is portable C: right, but slow", chosen->name);
    }
    const double best = best_speed(chosen);
    if (best * SLOW < 1.0) {
        gate->verdict = TKV_GATE_FALLBACK;
        add_reason(gate,
                   "attention on the fastest compressed type takes %.1f times f16's: keep "
                   "f16 unless memory is short",
                   best > 0.0 ? 1.0 / best : 0.0);
    }
    name_types(gate, chosen);
}
