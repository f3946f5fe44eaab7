#include "gate/machine.h"

#include "common/error.h"
#include "eval/clock.h"
#include "gate/isolate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

/* Of the whole gate, and of one step of it. */
static const double TOTAL_SECONDS = 110.0;
static const int STEP_SECONDS = 45;

/* A family of back ends names its kernel tables itself, so that new ones are tested without being
 * listed here. A family that is not in this build has no function. */
typedef struct family {
    const char *device;
    const tkv_kernels *(*built)(int index, bool *is_supported);
} family;

static const family families[] = {
    {"cpu", tkv_kernels_built},
    {"cuda", NULL},
    {"metal", NULL},
};

const char *tkv_backend_state_name(tkv_backend_state state)
{
    return state == TKV_BACKEND_PASSED   ? "passed"
           : state == TKV_BACKEND_FAILED ? "failed"
                                         : "absent";
}

#ifdef __APPLE__
static void processor_name(char *name, size_t size)
{
    if (sysctlbyname("machdep.cpu.brand_string", name, &size, NULL, 0) != 0) {
        name[0] = '\0';
    }
}
#else
/* The first "model name" of the kernel's list; ARM processors have none there. */
static void processor_name(char *name, size_t size)
{
    char line[512];
    name[0] = '\0';
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        const char *colon = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (colon) {
            snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        }
    }
    if (file) {
        fclose(file);
    }
}
#endif

void tkv_gate_describe_machine(char text[TKV_GATE_TEXT])
{
    struct utsname system;
    char processor[128];
    processor_name(processor, sizeof processor);
    const bool is_known = uname(&system) == 0;
    const long n_cores = sysconf(_SC_NPROCESSORS_CONF);
    snprintf(text, TKV_GATE_TEXT, "%.32s %.32s, %s, %ld cores", is_known ? system.sysname : "?",
             is_known ? system.machine : "?", processor[0] ? processor : "processor unknown",
             n_cores);
}

/* One step of the work in a child: a self-test, and a probe if that passed. */
typedef struct step {
    const tkv_kernels *kernels;
    int n_threads;
} step;

static tkv_status test_in_child(void *argument, void *result, tkv_error *error)
{
    const step *s = argument;
    return tkv_self_test_run(s->kernels, result, error);
}

static tkv_status probe_in_child(void *argument, void *result, tkv_error *error)
{
    const step *s = argument;
    return tkv_probe_run(s->kernels, s->n_threads, result, error);
}

static void summarise(const tkv_self_test *test, tkv_gate_backend *backend)
{
    for (int kind = 0; kind < TKV_KERNEL_KINDS; kind++) {
        backend->kind_passed[kind] = true;
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            const tkv_kernel_result *result = &test->results[kind][type];
            backend->n_cases += result->n_cases;
            backend->n_failed += result->n_failed;
            backend->kind_passed[kind] = backend->kind_passed[kind] && result->n_failed == 0;
            if (result->n_failed > 0 && !backend->reason[0]) {
                snprintf(backend->reason, sizeof backend->reason, "%s", result->reason);
            }
        }
    }
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        backend->type_passed[type] = tkv_self_test_passed(test, (tkv_type)type);
    }
    backend->state =
        tkv_self_test_passed(test, TKV_TYPE_COUNT) ? TKV_BACKEND_PASSED : TKV_BACKEND_FAILED;
}

/* Seconds that a step may take so that the whole stays below its limit. */
static int seconds_left(double start)
{
    const double left = TOTAL_SECONDS - (tkv_clock() - start);
    return left >= STEP_SECONDS ? STEP_SECONDS : left >= 1.0 ? (int)left : 1;
}

static tkv_status examine(const tkv_kernels *kernels, const tkv_gate_params *params, double start,
                          tkv_gate_backend *backend, tkv_error *error)
{
    step s = {kernels, params->n_threads};
    tkv_error reason = {TKV_OK, ""};
    tkv_self_test *test = malloc(sizeof *test);
    if (!test) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a self-test");
    }
    if (tkv_isolate(test_in_child, &s, test, sizeof *test, seconds_left(start), &reason) ==
        TKV_OK) {
        summarise(test, backend);
    } else {
        backend->state = TKV_BACKEND_FAILED;
        snprintf(backend->reason, sizeof backend->reason, "the self-test %.200s", reason.message);
    }
    free(test);
    if (backend->state == TKV_BACKEND_PASSED &&
        tkv_isolate(probe_in_child, &s, &backend->probe, sizeof backend->probe, seconds_left(start),
                    &reason) != TKV_OK) {
        backend->probe = (tkv_probe){.n_tokens = 0};
        backend->state = TKV_BACKEND_FAILED;
        snprintf(backend->reason, sizeof backend->reason, "the speed probe %.200s", reason.message);
    }
    return TKV_OK;
}

static tkv_gate_backend *add_backend(tkv_gate *gate, const char *device, const char *name)
{
    tkv_gate_backend *backend = &gate->backends[gate->n_backends++];
    *backend = (tkv_gate_backend){.state = TKV_BACKEND_ABSENT};
    snprintf(backend->device, sizeof backend->device, "%s", device);
    snprintf(backend->name, sizeof backend->name, "%s", name);
    return backend;
}

/* Lists what there is; tables [TKV_GATE_MAX_BACKENDS] receives what is to be tested, else NULL. */
static void list_backends(tkv_gate *gate, const tkv_kernels **tables)
{
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        const tkv_kernels *kernels;
        bool is_supported = false;
        for (int i = 0; families[f].built && gate->n_backends < TKV_GATE_MAX_BACKENDS &&
                        (kernels = families[f].built(i, &is_supported));
             i++) {
            tables[gate->n_backends] = is_supported ? kernels : NULL;
            tkv_gate_backend *backend = add_backend(gate, families[f].device, kernels->name);
            if (!is_supported) {
                snprintf(backend->reason, sizeof backend->reason, "this machine cannot run it");
            }
        }
        if (!families[f].built && gate->n_backends < TKV_GATE_MAX_BACKENDS) {
            tables[gate->n_backends] = NULL;
            tkv_gate_backend *backend = add_backend(gate, families[f].device, "");
            snprintf(backend->reason, sizeof backend->reason, "not in this build");
        }
    }
}

tkv_status tkv_gate_run(const tkv_gate_params *params, tkv_gate *gate, tkv_error *error)
{
    const tkv_kernels *tables[TKV_GATE_MAX_BACKENDS] = {NULL};
    const double start = tkv_clock();
    tkv_status status = TKV_OK;
    memset(gate, 0, sizeof *gate);
    tkv_gate_describe_machine(gate->machine);
    list_backends(gate, tables);
    for (int i = 0; i < gate->n_backends && status == TKV_OK; i++) {
        if (params->progress) {
            params->progress(params->progress_user, i, gate->n_backends);
        }
        if (tables[i]) {
            status = examine(tables[i], params, start, &gate->backends[i], error);
        }
    }
    if (status == TKV_OK) {
        tkv_gate_decide(gate);
    }
    return status;
}
