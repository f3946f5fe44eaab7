/* Fibres: functions with stacks of their own that suspend themselves, known to AddressSanitizer and
 * ThreadSanitizer as such. x86-64 only. */
#ifndef TESTS_METAL_FIBRE_H
#define TESTS_METAL_FIBRE_H

#include <stdbool.h>

typedef struct fibre {
    char *stack;
    void *stack_pointer;
    void *address_sanitizer_stack;
    void *thread_sanitizer_fibre;
} fibre;

/* Readies a fibre, new (all zero) or suspended for good, to call run() when it is entered. run must
 * not return. false: out of memory. */
bool fibre_prepare(fibre *f, void (*run)(void));

/* Runs the fibre until it suspends itself. Called by one thread of the program at a time. */
void fibre_enter(fibre *f);

/* Suspends the fibre that runs. */
void fibre_suspend(fibre *f);

#endif
