/* The gate of a machine: which back ends it has, whether their kernels give the right answers, how
 * fast they are, and what follows. */
#ifndef TKV_GATE_MACHINE_H
#define TKV_GATE_MACHINE_H

#include "gate/probe.h"
#include "gate/self_test.h"

#define TKV_GATE_MAX_BACKENDS 12
#define TKV_GATE_MAX_REASONS 12
#define TKV_GATE_TEXT 256

typedef enum tkv_gate_verdict {
    TKV_GATE_GO = 0,       /* the best back end of this machine is right and fast */
    TKV_GATE_FALLBACK = 1, /* another one than the best has to serve, or a slow one */
    TKV_GATE_NO_GO = 2     /* none is right */
} tkv_gate_verdict;

typedef enum tkv_backend_state {
    TKV_BACKEND_ABSENT = 0, /* not in this build, or not on this machine */
    TKV_BACKEND_FAILED,
    TKV_BACKEND_PASSED
} tkv_backend_state;

typedef struct tkv_gate_backend {
    char device[16]; /* "cpu", "cuda", ... */
    char name[32];   /* of the kernel table, as in tkv_context_kernels, or of the device: "cuda",
                        "cuda:1"; empty: none is built */
    char description[TKV_GATE_TEXT]; /* of a device; empty for a CPU's kernels */
    tkv_backend_state state;
    char reason[400]; /* of absence or failure; room for what a shader compiler says */
    int n_cases;      /* of known answers */
    int n_failed;
    bool type_passed[TKV_TYPE_COUNT];
    uint32_t operations; /* that it consists of: a bit for each */
    bool operation_passed[TKV_OPERATION_COUNT];
    tkv_probe probe; /* n_tokens 0: not measured */
} tkv_gate_backend;

typedef struct tkv_gate {
    char machine[TKV_GATE_TEXT];
    int n_backends;
    tkv_gate_backend backends[TKV_GATE_MAX_BACKENDS]; /* the best last */
    tkv_gate_verdict verdict;
    int chosen; /* the back end to use; -1: none */
    int n_reasons;
    char reasons[TKV_GATE_MAX_REASONS][TKV_GATE_TEXT];
} tkv_gate;

typedef struct tkv_gate_params {
    int n_threads; /* of the probe */
    void (*progress)(void *user, int n_done, int n_steps);
    void *progress_user;
} tkv_gate_params;

/* "go", "fallback", "no-go". Static storage. */
const char *tkv_gate_verdict_name(tkv_gate_verdict verdict);

/* "absent", "failed", "passed". Static storage. */
const char *tkv_backend_state_name(tkv_backend_state state);

/* This machine in one line: processor and what else tells it from another one. */
void tkv_gate_describe_machine(char text[TKV_GATE_TEXT]);

/* Tests and times every back end, in processes of their own; takes less than two minutes. To be
 * called before this process has started threads. */
tkv_status tkv_gate_run(const tkv_gate_params *params, tkv_gate *gate, tkv_error *error);

/* What is known of devices: the library's, or a test's. */
typedef struct tkv_gate_devices {
    const char *(*name)(int index); /* as tkv_device_name, tkv_device_count, tkv_context_create */
    int (*count)(const char *name, char *reason, size_t size);
    tkv_status (*open)(const tkv_context_params *params, tkv_context **context, tkv_error *error);
} tkv_gate_devices;

extern const tkv_gate_devices tkv_gate_library_devices;

/* What is to be examined: kernels of the CPU, or a device; neither: what is absent. */
typedef struct tkv_gate_candidate {
    const char *kernels;
    const tkv_gate_devices *devices;
    char device[32]; /* "cuda:1" */
} tkv_gate_candidate;

/* Lists what there is: back ends in `gate`, and for each its candidate [TKV_GATE_MAX_BACKENDS].
 * Devices are counted in a process of its own, within timeout_seconds a kind. */
tkv_status tkv_gate_list(const tkv_gate_devices *devices, int timeout_seconds, tkv_gate *gate,
                         tkv_gate_candidate *candidates, tkv_error *error);

/* Tests a candidate and times it if it passed, each within timeout_seconds. */
tkv_status tkv_gate_examine(const tkv_gate_candidate *what, int n_threads, int timeout_seconds,
                            tkv_gate_backend *backend, tkv_error *error);

/* Fills verdict, chosen and reasons from the back ends, and what these lack: a failed one has a
 * reason. */
void tkv_gate_decide(tkv_gate *gate);

/* How many times as fast as on f16 attention on a type is; 0: unknown. */
double tkv_gate_speed(const tkv_gate_backend *backend, tkv_type type);

#endif
