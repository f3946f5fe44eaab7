/* The gate of this machine, printed. */
#include "cli/gate.h"
#include "cli/progress.h"
#include "gate/record.h"

#include <stdio.h>
#include <stdlib.h>

static void show_progress(void *user, int n_done, int n_steps)
{
    progress_update(user, n_done, n_steps);
}

/* Of a back end that was tested: its kernels, those that are right or those that are not. */
static void print_kernels(const tkv_gate_backend *b, bool are_right)
{
    for (int i = 0; i < TKV_OPERATION_COUNT && b->n_cases > 0; i++) {
        if ((b->operations >> i & 1u) && b->operation_passed[i] == are_right) {
            printf("%s ", tkv_operation_name((tkv_operation)i));
        }
    }
}

static void print_backends(const tkv_gate *gate)
{
    printf("machine: %s\n\n%-8s %-9s %-8s %14s  %s\n", gate->machine, "device", "kernels", "state",
           "known answers", "");
    for (int i = 0; i < gate->n_backends; i++) {
        const tkv_gate_backend *b = &gate->backends[i];
        char answers[32] = "";
        if (b->n_cases > 0) {
            snprintf(answers, sizeof answers, "%d of %d", b->n_cases - b->n_failed, b->n_cases);
        }
        printf("%-8s %-9s %-8s %14s  %s", b->device, b->name, tkv_backend_state_name(b->state),
               answers, b->reason);
        if (b->n_failed > 0) {
            printf("\n%-18s wrong: ", "");
            print_kernels(b, false);
            printf("right: ");
        }
        print_kernels(b, true);
        putchar('\n');
        if (b->description[0]) {
            printf("%-18s %s\n", "", b->description);
        }
    }
}

static void print_speeds(const tkv_gate *gate)
{
    int n_threads = 1;
    for (int i = 0; i < gate->n_backends; i++) {
        const tkv_probe *probe = &gate->backends[i].probe;
        n_threads = probe->n_threads > 0 ? probe->n_threads : n_threads;
    }
    printf("\ndecode attention, %d query heads on %d KV heads of %d, threads: %d; time of a call,\n"
           "and how many times as fast as f16\n%-10s",
           TKV_PROBE_KV_HEADS * TKV_PROBE_GROUP, TKV_PROBE_KV_HEADS, TKV_PROBE_HEAD_DIM, n_threads,
           "");
    for (int i = 0; i < gate->n_backends; i++) {
        if (gate->backends[i].probe.n_tokens > 0) {
            printf(" %21s", gate->backends[i].name);
        }
    }
    printf("\n%-10s", "tokens");
    for (int i = 0; i < gate->n_backends; i++) {
        if (gate->backends[i].probe.n_tokens > 0) {
            printf(" %21d", gate->backends[i].probe.n_tokens);
        }
    }
    putchar('\n');
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        printf("%-10s", tkv_type_get_info((tkv_type)type)->name);
        for (int i = 0; i < gate->n_backends; i++) {
            const tkv_gate_backend *b = &gate->backends[i];
            if (b->probe.n_tokens > 0) {
                printf(" %11.0f us %5.2fx", b->probe.microseconds[type],
                       tkv_gate_speed(b, (tkv_type)type));
            }
        }
        putchar('\n');
    }
}

static void print_decision(const tkv_gate *gate)
{
    printf("\ndecision: %s\n", tkv_gate_verdict_name(gate->verdict));
    for (int i = 0; i < gate->n_reasons; i++) {
        printf("  %s\n", gate->reasons[i]);
    }
}

static tkv_status measure(const gate_options *o, tkv_gate *gate, tkv_error *error)
{
    progress bar;
    progress_begin(&bar, "gate");
    const tkv_gate_params params = {
        .n_threads = o->n_threads, .progress = show_progress, .progress_user = &bar};
    const tkv_status status = tkv_gate_run(&params, gate, error);
    progress_end(&bar);
    return status;
}

/* The decision stands even if it cannot be kept. */
static void keep(const tkv_gate *gate)
{
    char path[4096];
    tkv_error error;
    if (tkv_gate_save(gate, path, sizeof path, &error) != TKV_OK) {
        fprintf(stderr, "turbokv: the result is not kept: %s\n", error.message);
    }
}

int gate_machine(const gate_options *o)
{
    tkv_error error = {TKV_ERR_OUT_OF_MEMORY, "no memory for a gate"};
    tkv_gate *gate = malloc(sizeof *gate);
    tkv_status status = gate ? TKV_OK : error.status;
    if (gate) {
        status = o->is_cached ? tkv_gate_load(gate, &error) : measure(o, gate, &error);
    }
    if (status != TKV_OK) {
        command_fail(&error);
        free(gate);
        return EXIT_GATE_ERROR;
    }
    if (!o->is_cached) {
        keep(gate);
    }
    int code = (int)gate->verdict;
    if (o->wants_json) {
        code = command_print_json(tkv_gate_to_json(gate)) == EXIT_OK ? code : EXIT_GATE_ERROR;
    } else {
        print_backends(gate);
        print_speeds(gate);
        print_decision(gate);
    }
    free(gate);
    return code;
}
