#include "gate/machine.h"

#include "common/try.h"
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
static const int LIST_SECONDS = 20;

/* A back end is not begun with less time than this. */
static const double LEAST_SECONDS = 15.0;

/* Devices that the user may expect a word about where this build lacks them. */
static const char *const known_devices[] = {"cuda", "metal"};

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
    tkv_gate_candidate candidate;
    int n_threads;
} step;

/* A context on what is examined. */
static tkv_status open_context(const step *s, tkv_context **context, tkv_error *error)
{
    const tkv_gate_candidate *c = &s->candidate;
    const tkv_context_params params = {.n_threads = s->n_threads,
                                       .effort = TKV_EFFORT_FAST,
                                       .kernels = c->kernels,
                                       .device = c->kernels ? "cpu" : c->device};
    return c->kernels ? tkv_context_create(&params, context, error)
                      : c->devices->open(&params, context, error);
}

static tkv_status test_in_child(void *argument, void *result, tkv_error *error)
{
    const step *s = argument;
    tkv_context *context = NULL;
    TKV_TRY(open_context(s, &context, error));
    const tkv_status status = tkv_self_test_run(
        context, s->candidate.kernels ? TKV_SELF_TEST_OF_CPU : TKV_SELF_TEST_OF_DEVICE, 0, result,
        error);
    tkv_context_free(context);
    return status;
}

static tkv_status probe_in_child(void *argument, void *result, tkv_error *error)
{
    const step *s = argument;
    tkv_context *context = NULL;
    TKV_TRY(open_context(s, &context, error));
    const tkv_status status =
        s->candidate.kernels
            ? tkv_probe_run(context, result, error)
            : tkv_probe_run_on_device(context, TKV_PROBE_DEVICE_TOKENS, result, error);
    tkv_context_free(context);
    return status;
}

/* The devices of a kind, as a child saw them: a driver that this process has woken could not be
 * used by the children that come after. */
typedef struct device_list {
    int n;
    char reason[TKV_GATE_TEXT];
    char descriptions[TKV_GATE_MAX_BACKENDS][TKV_GATE_TEXT];
} device_list;

/* A kind of devices. */
typedef struct device_kind {
    const tkv_gate_devices *devices;
    const char *name;
} device_kind;

const tkv_gate_devices tkv_gate_library_devices = {tkv_device_name, tkv_device_count,
                                                   tkv_context_create};

static void name_device(const char *kind, int index, char name[32])
{
    snprintf(name, 32, index ? "%.16s:%d" : "%.16s", kind, index);
}

static tkv_status list_in_child(void *argument, void *result, tkv_error *error)
{
    const device_kind *kind = argument;
    device_list *list = result;
    memset(list, 0, sizeof *list);
    list->n = kind->devices->count(kind->name, list->reason, sizeof list->reason);
    list->n = list->n < TKV_GATE_MAX_BACKENDS ? list->n : TKV_GATE_MAX_BACKENDS;
    for (int i = 0; i < list->n; i++) {
        char name[32];
        tkv_context *context = NULL;
        tkv_error reason = {TKV_OK, ""};
        name_device(kind->name, i, name);
        const tkv_context_params params = {.n_threads = 1, .device = name};
        const tkv_status status = kind->devices->open(&params, &context, &reason);
        snprintf(list->descriptions[i], TKV_GATE_TEXT, "%.250s",
                 status == TKV_OK ? tkv_context_device(context) : reason.message);
        tkv_context_free(context);
    }
    (void)error;
    return TKV_OK;
}

static void summarise(const tkv_self_test *test, tkv_gate_backend *backend)
{
    backend->operations = test->operations;
    for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
        backend->operation_passed[i] = true;
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            const tkv_operation_result *result = &test->results[i][type];
            backend->n_cases += result->n_cases;
            backend->n_failed += result->n_failed;
            backend->operation_passed[i] = backend->operation_passed[i] && result->n_failed == 0;
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

/* Whether the machine had no memory or process to spare, which says nothing of CPU kernels. A
 * device's own memory is another matter: its test needs little of it. */
static bool was_not_tested(const tkv_gate_candidate *what, tkv_status status)
{
    return what->kernels && (status == TKV_ERR_OUT_OF_MEMORY || status == TKV_ERR_IO);
}

tkv_status tkv_gate_examine(const tkv_gate_candidate *what, int n_threads, int timeout_seconds,
                            tkv_gate_backend *backend, tkv_error *error)
{
    step s = {*what, n_threads};
    tkv_error reason = {TKV_OK, ""};
    tkv_self_test *test = malloc(sizeof *test);
    if (!test) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a self-test");
    }
    const char *part = "the self-test";
    tkv_status status =
        tkv_isolate(test_in_child, &s, test, sizeof *test, timeout_seconds, &reason);
    if (status == TKV_OK) {
        summarise(test, backend);
    }
    free(test);
    if (status == TKV_OK && backend->state == TKV_BACKEND_PASSED) {
        part = "the speed probe";
        status = tkv_isolate(probe_in_child, &s, &backend->probe, sizeof backend->probe,
                             timeout_seconds, &reason);
    }
    if (was_not_tested(what, status)) {
        return tkv_fail(error, status, "%s of '%s': %.250s", part, what->kernels, reason.message);
    }
    if (status != TKV_OK) {
        /* A device whose memory others hold just now has not failed either. */
        const bool is_busy = status == TKV_ERR_OUT_OF_MEMORY;
        backend->probe = (tkv_probe){.n_tokens = 0};
        backend->state = is_busy ? TKV_BACKEND_ABSENT : TKV_BACKEND_FAILED;
        snprintf(backend->reason, sizeof backend->reason, "%s: %.350s", part, reason.message);
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

static tkv_gate_backend *add_absent(tkv_gate *gate, const char *device, const char *reason)
{
    tkv_gate_backend *backend = add_backend(gate, device, "");
    snprintf(backend->reason, sizeof backend->reason, "%.250s", reason);
    return backend;
}

static void list_cpu(tkv_gate *gate, tkv_gate_candidate *candidates)
{
    const char *kernels;
    bool can_run = false;
    for (int i = 0;
         gate->n_backends < TKV_GATE_MAX_BACKENDS && (kernels = tkv_kernels_name(i, &can_run));
         i++) {
        candidates[gate->n_backends].kernels = can_run ? kernels : NULL;
        tkv_gate_backend *backend = add_backend(gate, "cpu", kernels);
        if (!can_run) {
            snprintf(backend->reason, sizeof backend->reason, "this machine cannot run it");
        }
    }
}

static void list_devices(tkv_gate *gate, const tkv_gate_devices *devices, const char *name,
                         int timeout_seconds, tkv_gate_candidate *candidates, device_list *list)
{
    tkv_error error = {TKV_OK, ""};
    device_kind kind = {devices, name};
    memset(list, 0, sizeof *list);
    if (tkv_isolate(list_in_child, &kind, list, sizeof *list, timeout_seconds, &error) != TKV_OK) {
        list->n = 0;
        snprintf(list->reason, sizeof list->reason, "asking for devices: %.200s", error.message);
    }
    if (list->n < 1 && gate->n_backends < TKV_GATE_MAX_BACKENDS) {
        add_absent(gate, name, list->reason[0] ? list->reason : "no device");
    }
    for (int i = 0; i < list->n && gate->n_backends < TKV_GATE_MAX_BACKENDS; i++) {
        tkv_gate_candidate *candidate = &candidates[gate->n_backends];
        candidate->devices = devices;
        name_device(name, i, candidate->device);
        tkv_gate_backend *backend = add_backend(gate, name, candidate->device);
        snprintf(backend->description, sizeof backend->description, "%s", list->descriptions[i]);
    }
}

tkv_status tkv_gate_list(const tkv_gate_devices *devices, int timeout_seconds, tkv_gate *gate,
                         tkv_gate_candidate *candidates, tkv_error *error)
{
    device_list *list = malloc(sizeof *list);
    const char *name;
    if (!list) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a list of devices");
    }
    memset(candidates, 0, TKV_GATE_MAX_BACKENDS * sizeof *candidates);
    list_cpu(gate, candidates);
    for (size_t k = 0; k < sizeof known_devices / sizeof *known_devices; k++) {
        bool is_built = false;
        for (int i = 0; (name = devices->name(i)); i++) {
            is_built = is_built || strcmp(name, known_devices[k]) == 0;
        }
        if (!is_built && gate->n_backends < TKV_GATE_MAX_BACKENDS) {
            add_absent(gate, known_devices[k], "not in this build");
        }
    }
    for (int i = 0; (name = devices->name(i)); i++) {
        list_devices(gate, devices, name, timeout_seconds, candidates, list);
    }
    free(list);
    return TKV_OK;
}

/* Seconds that each of two steps may take so that the whole stays below its limit. */
static int seconds_left(double start)
{
    const double left = TOTAL_SECONDS - (tkv_clock() - start);
    return left >= 2.0 * STEP_SECONDS ? STEP_SECONDS : (int)(left / 2.0);
}

tkv_status tkv_gate_run(const tkv_gate_params *params, tkv_gate *gate, tkv_error *error)
{
    tkv_gate_candidate candidates[TKV_GATE_MAX_BACKENDS];
    const double start = tkv_clock();
    memset(gate, 0, sizeof *gate);
    tkv_gate_describe_machine(gate->machine);
    TKV_TRY(tkv_gate_list(&tkv_gate_library_devices, LIST_SECONDS, gate, candidates, error));
    for (int i = 0; i < gate->n_backends; i++) {
        tkv_gate_backend *backend = &gate->backends[i];
        if (params->progress) {
            params->progress(params->progress_user, i, gate->n_backends);
        }
        if (!candidates[i].kernels && !candidates[i].devices) {
            continue;
        }
        if (tkv_clock() - start > TOTAL_SECONDS - LEAST_SECONDS) {
            snprintf(backend->reason, sizeof backend->reason,
                     "not tested: the gate's time was over");
            continue;
        }
        TKV_TRY(tkv_gate_examine(&candidates[i], params->n_threads, seconds_left(start), backend,
                                 error));
    }
    tkv_gate_decide(gate);
    return TKV_OK;
}
