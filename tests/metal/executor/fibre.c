#include "fibre.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the executor of Metal kernels switches stacks on x86-64 only"
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#endif
#ifdef HAVE_THREAD_SANITIZER /* in the program: this file itself is not instrumented */
#include <sanitizer/tsan_interface.h>
#endif

/* Kernels compiled for a sanitizer keep every variable of every inlined function on the stack. */
enum { STACK_BYTES = 1 << 18, N_SAVED_REGISTERS = 6 };

/* Saves the callee's registers on the stack and goes on with another one. */
void fibre_switch(void **save, void *load);
__asm__(".text\n"
        ".globl fibre_switch\n"
        ".hidden fibre_switch\n"
        ".type fibre_switch, @function\n"
        "fibre_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size fibre_switch, .-fibre_switch\n");

/* Where the fibre that runs was entered from. */
static struct {
    void *stack_pointer;
    const void *stack;
    size_t stack_bytes;
    void *thread_sanitizer_fibre;
    void (*run)(void);
} entered_from;

static void first_entry(void)
{
#ifdef HAVE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(NULL, &entered_from.stack, &entered_from.stack_bytes);
#endif
    entered_from.run();
}

bool fibre_prepare(fibre *f, void (*run)(void))
{
    if (!f->stack) {
        void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) {
            return false;
        }
        f->stack = stack;
#ifdef HAVE_THREAD_SANITIZER
        f->thread_sanitizer_fibre = __tsan_create_fiber(0);
#endif
    }
#ifdef HAVE_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
    entered_from.run = run;
    /* The address of return leaves the stack as a call would: 8 off a multiple of 16. */
    void **top = (void **)(void *)(f->stack + STACK_BYTES - 64);
    *--top = NULL;
    *--top = (void *)(uintptr_t)first_entry;
    for (int i = 0; i < N_SAVED_REGISTERS; i++) {
        *--top = NULL;
    }
    f->stack_pointer = top;
    f->address_sanitizer_stack = NULL;
    return true;
}

/* No-sync switches: the sanitizer must not take the scheduler's order for the kernel's. */
void fibre_enter(fibre *f)
{
#ifdef HAVE_THREAD_SANITIZER
    entered_from.thread_sanitizer_fibre = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(f->thread_sanitizer_fibre, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef HAVE_ADDRESS_SANITIZER
    void *fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, f->stack, STACK_BYTES);
#endif
    fibre_switch(&entered_from.stack_pointer, f->stack_pointer);
#ifdef HAVE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
}

void fibre_suspend(fibre *f)
{
#ifdef HAVE_THREAD_SANITIZER
    __tsan_switch_to_fiber(entered_from.thread_sanitizer_fibre, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef HAVE_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&f->address_sanitizer_stack, entered_from.stack,
                                   entered_from.stack_bytes);
#endif
    fibre_switch(&f->stack_pointer, entered_from.stack_pointer);
#ifdef HAVE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(f->address_sanitizer_stack, &entered_from.stack,
                                    &entered_from.stack_bytes);
#endif
}
