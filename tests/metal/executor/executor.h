/* Executes a Metal kernel, compiled for this machine, with the semantics of a GPU whose simdgroups
 * are 32 wide: every thread is a fibre, threadgroups run one after the other, a barrier or SIMD
 * function suspends a thread until its peers have arrived. What is undefined on a GPU is refused:
 * SIMD functions and barriers in divergent control flow, values of threads that do not exist. */
#ifndef TESTS_METAL_EXECUTOR_H
#define TESTS_METAL_EXECUTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MSL_MAX_ARGUMENTS = 31, MSL_MAX_THREADS = 1024, MSL_SIMD_WIDTH = 32 };

/* Addresses by index; as msl/trampolines.py declares them to the kernel's side. */
typedef struct msl_arguments {
    uint64_t buffers[MSL_MAX_ARGUMENTS];
    uint64_t threadgroups[MSL_MAX_ARGUMENTS];
} msl_arguments;

typedef struct msl_size {
    uint32_t x;
    uint32_t y;
    uint32_t z;
} msl_size;

typedef struct msl_memory {
    void *address;
    size_t bytes;
} msl_memory;

/* In which order threads run between two points where they wait, and threadgroups altogether. */
typedef enum msl_order { MSL_FORWARD, MSL_REVERSE, MSL_RANDOM } msl_order;

typedef struct msl_dispatch {
    const char *kernel; /* for messages */
    void (*entry)(const msl_arguments *arguments);
    msl_arguments arguments;
    msl_size threadgroups;                /* per grid */
    msl_size threads;                     /* per threadgroup, at most MSL_MAX_THREADS */
    const msl_memory *threadgroup_memory; /* set to NaN before every threadgroup */
    int n_threadgroup_memory;
    msl_order order;
    uint64_t seed; /* of MSL_RANDOM */
} msl_dispatch;

/* Runs the grid. false: the kernel did what it must not do, *message[size] says what and where. The
 * calling thread does the work; dispatches from several threads queue up. */
bool msl_execute(const msl_dispatch *dispatch, char *message, size_t size);

/* The thread of the kernel that runs now, for signal handlers: "kernel k, threadgroup (x, y, z),
 * thread t". false: none, or in another thread of the program. Async-signal-safe. */
bool msl_running(char *text, size_t size);

#endif
