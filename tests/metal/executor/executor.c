/* The scheduler, and what kernels call: barriers, exchanges of a simdgroup, positions. */
#include "executor.h"
#include "fibre.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef HAVE_THREAD_SANITIZER /* in the program: this file itself is not instrumented */
#include <sanitizer/tsan_interface.h>
#endif

enum { SLOT_BYTES = 16, MAX_SIMDGROUPS = MSL_MAX_THREADS / MSL_SIMD_WIDTH };

/* mem_flags of the shim */
enum { MEM_NONE = 0 };

typedef enum lane_state {
    READY,
    AT_EXCHANGE,
    AT_SIMDGROUP_BARRIER,
    AT_THREADGROUP_BARRIER,
    FINISHED
} lane_state;

typedef struct lane {
    fibre fibre;
    lane_state state;
    /* Where and for what it waits. */
    const void *call_site;
    uint32_t operation;
    uint32_t bytes;
    unsigned char slot[SLOT_BYTES];
    /* Barriers passed. Only their parity counts: it picks the object that ThreadSanitizer sees. */
    uint32_t n_threadgroup_barriers;
    uint32_t n_simdgroup_barriers;
} lane;

typedef struct simdgroup {
    int n_lanes;
    bool is_waiting;  /* all at the threadgroup's barrier */
    bool is_finished; /* all */
    /* What the lanes put into their slots when the last one had arrived. */
    _Alignas(16) unsigned char snapshot[MSL_SIMD_WIDTH][SLOT_BYTES];
    char barrier[2];
} simdgroup;

/* A kernel calls back without a context, so there is one executor, held by one dispatch at a time.
 */
static struct {
    pthread_mutex_t lock;
    const msl_dispatch *dispatch;
    long owner; /* thread of the program */
    msl_size position;
    int n_threads;
    int n_simdgroups;
    int current; /* the thread that runs, or -1 */
    bool has_failed;
    char *message;
    size_t message_size;
    uint64_t random;
    lane lanes[MSL_MAX_THREADS];
    simdgroup simdgroups[MAX_SIMDGROUPS];
    char barrier[2];
    char start;
    char end;
} executor = {.lock = PTHREAD_MUTEX_INITIALIZER, .current = -1};

/* Edges of the happens-before relation that ThreadSanitizer is to know. Without them the fibres of
 * a dispatch are concurrent. */
static void release(void *object)
{
#ifdef HAVE_THREAD_SANITIZER
    __tsan_release(object);
#endif
    (void)object;
}

static void acquire(void *object)
{
#ifdef HAVE_THREAD_SANITIZER
    __tsan_acquire(object);
#endif
    (void)object;
}

/* A loop of its own: sanitizers intercept memcpy and would take the copies for the kernel's. */
static void copy(unsigned char *to, const unsigned char *from, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        to[i] = from[i];
    }
}

static void fail(const char *format, ...)
{
    if (executor.has_failed) {
        return;
    }
    executor.has_failed = true;
    const msl_size at = executor.position;
    const int used = snprintf(executor.message, executor.message_size,
                              "kernel %s, threadgroup (%u, %u, %u): ", executor.dispatch->kernel,
                              at.x, at.y, at.z);
    if (used < 0 || (size_t)used >= executor.message_size) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(executor.message + used, executor.message_size - (size_t)used, format, arguments);
    va_end(arguments);
}

static void suspend(void)
{
    fibre_suspend(&executor.lanes[executor.current].fibre);
}

/* What kernels call. The shim declares these functions. */

typedef enum position_kind {
    THREADGROUP_POSITION_IN_GRID,
    THREADGROUPS_PER_GRID,
    THREAD_POSITION_IN_THREADGROUP,
    THREADS_PER_THREADGROUP
} position_kind;

uint32_t msl_position(uint32_t kind, uint32_t axis);
uint32_t msl_thread_index(void);
uint32_t msl_thread_count(void);
void msl_threadgroup_barrier(uint32_t flags);
void msl_simdgroup_barrier(uint32_t flags);
const void *msl_exchange(const void *value, uint32_t bytes, uint32_t operation);
const void *msl_exchanged(const void *snapshot, uint32_t index);
uint32_t msl_simdgroup_lanes(void);

static uint32_t component(msl_size size, uint32_t axis)
{
    return axis == 0 ? size.x : axis == 1 ? size.y : size.z;
}

static uint32_t thread_position(uint32_t axis)
{
    const msl_size size = executor.dispatch->threads;
    const uint32_t index = (uint32_t)executor.current;
    return axis == 0   ? index % size.x
           : axis == 1 ? index / size.x % size.y
                       : index / (size.x * size.y);
}

uint32_t msl_position(uint32_t kind, uint32_t axis)
{
    switch ((position_kind)kind) {
    case THREADGROUP_POSITION_IN_GRID: return component(executor.position, axis);
    case THREADGROUPS_PER_GRID: return component(executor.dispatch->threadgroups, axis);
    case THREAD_POSITION_IN_THREADGROUP: return thread_position(axis);
    case THREADS_PER_THREADGROUP: return component(executor.dispatch->threads, axis);
    }
    return 0;
}

uint32_t msl_thread_index(void)
{
    return (uint32_t)executor.current;
}

uint32_t msl_thread_count(void)
{
    return (uint32_t)executor.n_threads;
}

void msl_threadgroup_barrier(uint32_t flags)
{
    lane *self = &executor.lanes[executor.current];
    self->state = AT_THREADGROUP_BARRIER;
    self->call_site = __builtin_return_address(0);
    /* Two objects take turns: one alone would order a thread after writes that its peers make
     * before the next barrier. */
    void *object = &executor.barrier[self->n_threadgroup_barriers++ & 1];
    if (flags != MEM_NONE) {
        release(object);
    }
    suspend();
    if (flags != MEM_NONE) {
        acquire(object);
    }
}

void msl_simdgroup_barrier(uint32_t flags)
{
    lane *self = &executor.lanes[executor.current];
    self->state = AT_SIMDGROUP_BARRIER;
    self->call_site = __builtin_return_address(0);
    simdgroup *group = &executor.simdgroups[executor.current / MSL_SIMD_WIDTH];
    void *object = &group->barrier[self->n_simdgroup_barriers++ & 1];
    if (flags != MEM_NONE) {
        release(object);
    }
    suspend();
    if (flags != MEM_NONE) {
        acquire(object);
    }
}

/* Gives the simdgroup a value and waits until all lanes have. Returns what msl_exchanged reads,
 * valid until the lane's next call. */
const void *msl_exchange(const void *value, uint32_t bytes, uint32_t operation)
{
    lane *self = &executor.lanes[executor.current];
    self->state = AT_EXCHANGE;
    self->call_site = __builtin_return_address(0);
    self->operation = operation;
    self->bytes = bytes;
    copy(self->slot, value, bytes);
    suspend();
    return executor.simdgroups[executor.current / MSL_SIMD_WIDTH].snapshot;
}

/* The value of a lane. */
const void *msl_exchanged(const void *snapshot, uint32_t index)
{
    if (index >= msl_simdgroup_lanes()) {
        fail("thread %d reads the value of lane %u of %u", executor.current, index,
             msl_simdgroup_lanes());
        suspend();
    }
    return (const unsigned char *)snapshot + (size_t)index * SLOT_BYTES;
}

uint32_t msl_simdgroup_lanes(void)
{
    return (uint32_t)executor.simdgroups[executor.current / MSL_SIMD_WIDTH].n_lanes;
}

/* The scheduler. */

static uint32_t random_below(uint32_t n)
{
    /* xorshift64*, Vigna, arXiv 1402.6246 */
    uint64_t x = executor.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    executor.random = x;
    return (uint32_t)((x * 0x2545f4914f6cdd1du) >> 33) % n;
}

/* The numbers below n in the order of the dispatch. */
static void fill_order(int n, int *order)
{
    for (int i = 0; i < n; i++) {
        order[i] = executor.dispatch->order == MSL_REVERSE ? n - 1 - i : i;
    }
    for (int i = n - 1; executor.dispatch->order == MSL_RANDOM && i > 0; i--) {
        const int j = (int)random_below((uint32_t)i + 1);
        const int other = order[j];
        order[j] = order[i];
        order[i] = other;
    }
}

/* A lane's fibre: one call of the kernel per threadgroup. */
static void run_lane(void)
{
    for (;;) {
        acquire(&executor.start);
        executor.dispatch->entry(&executor.dispatch->arguments);
        release(&executor.end);
        executor.lanes[executor.current].state = FINISHED;
        suspend();
    }
}

static const char *describe(lane_state state)
{
    switch (state) {
    case READY: return "running";
    case AT_EXCHANGE: return "at a SIMD function";
    case AT_SIMDGROUP_BARRIER: return "at a simdgroup_barrier";
    case AT_THREADGROUP_BARRIER: return "at a threadgroup_barrier";
    case FINISHED: return "finished";
    }
    return "";
}

static int count(const lane *lanes, int n, lane_state state)
{
    int total = 0;
    for (int i = 0; i < n; i++) {
        total += lanes[i].state == state;
    }
    return total;
}

static void fail_divergent(int group, const lane *lanes, int n)
{
    char text[256] = "";
    int used = 0;
    for (int state = AT_EXCHANGE; state <= FINISHED; state++) {
        const int lanes_there = count(lanes, n, (lane_state)state);
        if (lanes_there > 0) {
            used += snprintf(text + used, sizeof text - (size_t)used, "%s%d lanes %s",
                             used ? ", " : "", lanes_there, describe((lane_state)state));
        }
    }
    fail("simdgroup %d is divergent: %s", group, text);
}

/* All lanes have stopped: lets them pass what they wait for together, or fails. */
static void resolve(int group)
{
    simdgroup *g = &executor.simdgroups[group];
    lane *lanes = &executor.lanes[group * MSL_SIMD_WIDTH];
    const lane *first = &lanes[0];
    for (int i = 0; i < g->n_lanes; i++) {
        if (lanes[i].state != first->state) {
            fail_divergent(group, lanes, g->n_lanes);
            return;
        }
        if (first->state != FINISHED && lanes[i].call_site != first->call_site) {
            fail("simdgroup %d is divergent: lanes 0 and %d are %s, but in different places", group,
                 i, describe(first->state));
            return;
        }
        if (first->state == AT_EXCHANGE &&
            (lanes[i].operation != first->operation || lanes[i].bytes != first->bytes)) {
            fail("simdgroup %d is divergent: lanes 0 and %d call different SIMD functions", group,
                 i);
            return;
        }
    }
    g->is_finished = first->state == FINISHED;
    g->is_waiting = first->state == AT_THREADGROUP_BARRIER;
    if (g->is_finished || g->is_waiting) {
        return;
    }
    for (int i = 0; i < g->n_lanes; i++) {
        if (lanes[i].state == AT_EXCHANGE) {
            copy(g->snapshot[i], lanes[i].slot, lanes[i].bytes);
        }
        lanes[i].state = READY;
    }
}

/* Runs every lane of the simdgroup up to where it waits. */
static void step(int group)
{
    int order[MSL_SIMD_WIDTH];
    const int n_lanes = executor.simdgroups[group].n_lanes;
    fill_order(n_lanes, order);
    for (int i = 0; i < n_lanes && !executor.has_failed; i++) {
        executor.current = group * MSL_SIMD_WIDTH + order[i];
        fibre_enter(&executor.lanes[executor.current].fibre);
    }
    executor.current = -1;
    if (!executor.has_failed) {
        resolve(group);
    }
}

/* Every simdgroup waits at the barrier or has finished: lets them pass, or fails. */
static void resolve_threadgroup(void)
{
    const int n_waiting = count(executor.lanes, executor.n_threads, AT_THREADGROUP_BARRIER);
    if (n_waiting < executor.n_threads) {
        fail("threadgroup_barrier reached by %d of %d threads", n_waiting, executor.n_threads);
        return;
    }
    for (int i = 0; i < executor.n_threads; i++) {
        if (executor.lanes[i].call_site != executor.lanes[0].call_site) {
            fail("threads 0 and %d wait at different calls of threadgroup_barrier", i);
            return;
        }
        executor.lanes[i].state = READY;
    }
    for (int group = 0; group < executor.n_simdgroups; group++) {
        executor.simdgroups[group].is_waiting = false;
    }
}

static void poison_threadgroup_memory(void)
{
    for (int m = 0; m < executor.dispatch->n_threadgroup_memory; m++) {
        const msl_memory memory = executor.dispatch->threadgroup_memory[m];
        for (size_t i = 0; i < memory.bytes; i++) {
            ((unsigned char *)memory.address)[i] = 0xff; /* a NaN in every floating-point type */
        }
    }
}

static void start_threadgroup(void)
{
    poison_threadgroup_memory();
    for (int i = 0; i < executor.n_threads; i++) {
        executor.lanes[i].state = READY;
    }
    for (int group = 0; group < executor.n_simdgroups; group++) {
        const int left = executor.n_threads - group * MSL_SIMD_WIDTH;
        executor.simdgroups[group].n_lanes = left < MSL_SIMD_WIDTH ? left : MSL_SIMD_WIDTH;
        executor.simdgroups[group].is_waiting = false;
        executor.simdgroups[group].is_finished = false;
    }
    release(&executor.start);
}

static void run_threadgroup(msl_size position)
{
    executor.position = position;
    start_threadgroup();
    int n_finished = 0;
    while (n_finished < executor.n_simdgroups && !executor.has_failed) {
        int order[MAX_SIMDGROUPS];
        fill_order(executor.n_simdgroups, order);
        bool has_run = false;
        n_finished = 0;
        for (int i = 0; i < executor.n_simdgroups && !executor.has_failed; i++) {
            simdgroup *group = &executor.simdgroups[order[i]];
            if (!group->is_waiting && !group->is_finished) {
                step(order[i]);
                has_run = true;
            }
            n_finished += group->is_finished;
        }
        if (!has_run && !executor.has_failed) {
            resolve_threadgroup();
        }
    }
    acquire(&executor.end);
}

/* The i-th threadgroup in the order of the dispatch. An odd stride that shares no factor with the
 * number of threadgroups visits each of them once. */
static uint64_t visit(uint64_t i, uint64_t n, uint64_t stride)
{
    switch (executor.dispatch->order) {
    case MSL_FORWARD: return i;
    case MSL_REVERSE: return n - 1 - i;
    case MSL_RANDOM: return i * stride % n;
    }
    return i;
}

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static void run_grid(void)
{
    const msl_size size = executor.dispatch->threadgroups;
    const uint64_t n = (uint64_t)size.x * size.y * size.z;
    uint64_t stride = 1 + random_below(1u << 20);
    while (greatest_common_divisor(stride, n) != 1) {
        stride++;
    }
    for (uint64_t i = 0; i < n && !executor.has_failed; i++) {
        const uint64_t at = visit(i, n, stride);
        run_threadgroup((msl_size){(uint32_t)(at % size.x), (uint32_t)(at / size.x % size.y),
                                   (uint32_t)(at / size.x / size.y)});
    }
}

static bool prepare_lanes(void)
{
    for (int i = 0; i < executor.n_threads; i++) {
        lane *l = &executor.lanes[i];
        /* A lane that finished goes on in run_lane's loop; others are new or were abandoned. */
        if ((!l->fibre.stack || l->state != FINISHED) && !fibre_prepare(&l->fibre, run_lane)) {
            fail("out of memory for the stacks of %d threads", executor.n_threads);
            return false;
        }
    }
    return true;
}

bool msl_execute(const msl_dispatch *dispatch, char *message, size_t size)
{
    pthread_mutex_lock(&executor.lock);
    executor.dispatch = dispatch;
    executor.message = message;
    executor.message_size = size;
    executor.has_failed = false;
    executor.random = dispatch->seed * 2 + 1;
    executor.position = (msl_size){0, 0, 0};
    executor.n_threads = (int)(dispatch->threads.x * dispatch->threads.y * dispatch->threads.z);
    executor.n_simdgroups = (executor.n_threads + MSL_SIMD_WIDTH - 1) / MSL_SIMD_WIDTH;
    executor.owner = syscall(SYS_gettid);
    if (executor.n_threads < 1 || executor.n_threads > MSL_MAX_THREADS) {
        fail("%d threads per threadgroup: expected 1 to %d", executor.n_threads, MSL_MAX_THREADS);
    } else if (prepare_lanes()) {
        run_grid();
    }
    const bool has_failed = executor.has_failed;
    executor.owner = 0;
    pthread_mutex_unlock(&executor.lock);
    return !has_failed;
}

bool msl_running(char *text, size_t size)
{
    if (executor.owner != syscall(SYS_gettid) || executor.current < 0) {
        return false;
    }
    const msl_size at = executor.position;
    snprintf(text, size, "kernel %s, threadgroup (%u, %u, %u), thread %d",
             executor.dispatch->kernel, at.x, at.y, at.z, executor.current);
    return true;
}
