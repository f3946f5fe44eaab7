#include "base/threads.h"

#include "base/allocate.h"
#include "base/error.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Kernels keep some hundred KiB on the stack, more than secondary threads have on macOS. */
#define STACK_BYTES ((size_t)4 << 20)
/* Pauses before a thread that waits goes to sleep: 10 to 40 us. Waking it takes about as long. */
#define N_PAUSES 1000

typedef struct team_job {
    tkv_item_work work;
    void *argument;
    int n_items;
} team_job;

struct tkv_threads {
    tkv_allocator allocator;
    int n_threads;
    int n_started; /* of n_threads - 1 */
    pthread_t *started;
    pthread_mutex_t turn; /* held by the caller whose job the team works on */
    pthread_mutex_t lock; /* held to change what follows */
    pthread_cond_t has_job;
    pthread_cond_t is_done;
    team_job job;
    int n_wanted; /* threads that may still join the job */
    int n_joined;
    bool is_ending;
    atomic_int n_working; /* threads that have joined and not left */
    atomic_uint n_jobs;   /* so far */
    atomic_int next_item;
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(tkv_threads *t, int thread)
{
    for (;;) {
        const int item = atomic_fetch_add_explicit(&t->next_item, 1, memory_order_relaxed);
        if (item >= t->job.n_items) {
            return;
        }
        t->job.work(t->job.argument, item, thread);
    }
}

/* Called and returns with the lock. A thread joins a job only while its caller waits for items, so
 * that one that wakes late finds nothing to do instead of a job that has ended. */
static void join_job(tkv_threads *t)
{
    if (t->n_wanted == 0) {
        return;
    }
    t->n_wanted--;
    const int thread = ++t->n_joined;
    atomic_fetch_add(&t->n_working, 1);
    pthread_mutex_unlock(&t->lock);
    take_items(t, thread);
    pthread_mutex_lock(&t->lock);
    if (atomic_fetch_sub(&t->n_working, 1) == 1) {
        pthread_cond_signal(&t->is_done);
    }
}

static void *run_thread(void *argument)
{
    tkv_threads *t = argument;
    unsigned seen = 0;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        pthread_mutex_unlock(&t->lock);
        for (int i = 0; i < N_PAUSES && atomic_load(&t->n_jobs) == seen; i++) {
            pause_briefly();
        }
        pthread_mutex_lock(&t->lock);
        while (!t->is_ending && atomic_load(&t->n_jobs) == seen) {
            pthread_cond_wait(&t->has_job, &t->lock);
        }
        if (t->is_ending) {
            break;
        }
        seen = atomic_load(&t->n_jobs);
        join_job(t);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void post_job(tkv_threads *t, team_job job, int n_threads)
{
    pthread_mutex_lock(&t->lock);
    t->job = job;
    t->n_wanted = n_threads - 1;
    t->n_joined = 0;
    atomic_store(&t->next_item, 0);
    atomic_fetch_add(&t->n_jobs, 1);
    pthread_cond_broadcast(&t->has_job);
    pthread_mutex_unlock(&t->lock);
}

static void wait_for_others(tkv_threads *t)
{
    pthread_mutex_lock(&t->lock);
    t->n_wanted = 0;
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < N_PAUSES && atomic_load(&t->n_working) > 0; i++) {
        pause_briefly();
    }
    pthread_mutex_lock(&t->lock);
    while (atomic_load(&t->n_working) > 0) {
        pthread_cond_wait(&t->is_done, &t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}

void tkv_threads_run(tkv_threads *threads, int n_threads, int n_items, tkv_item_work work,
                     void *argument)
{
    const int n_most = threads ? threads->n_started + 1 : 1;
    n_threads = n_threads < n_most ? n_threads : n_most;
    n_threads = n_threads < n_items ? n_threads : n_items;
    if (n_threads <= 1 || pthread_mutex_trylock(&threads->turn) != 0) {
        for (int item = 0; item < n_items; item++) {
            work(argument, item, 0);
        }
        return;
    }
    post_job(threads, (team_job){work, argument, n_items}, n_threads);
    take_items(threads, 0);
    wait_for_others(threads);
    pthread_mutex_unlock(&threads->turn);
}

int tkv_threads_count(const tkv_threads *threads)
{
    return threads ? threads->n_threads : 1;
}

static bool start_threads(tkv_threads *t)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        return false;
    }
    bool is_started = pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0;
    while (is_started && t->n_started < t->n_threads - 1) {
        is_started = pthread_create(&t->started[t->n_started], &attributes, run_thread, t) == 0;
        t->n_started += is_started;
    }
    pthread_attr_destroy(&attributes);
    return is_started;
}

tkv_status tkv_threads_create(const tkv_allocator *allocator, int n_threads, tkv_threads **threads,
                              tkv_error *error)
{
    *threads = NULL;
    tkv_threads *t = tkv_allocate_zeroed(allocator, sizeof *t);
    pthread_t *started = tkv_allocate_zeroed(allocator, (size_t)n_threads * sizeof *started);
    if (!t || !started) {
        tkv_release(allocator, t);
        tkv_release(allocator, started);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a team of %d threads",
                        n_threads);
    }
    t->allocator = *allocator;
    t->n_threads = n_threads;
    t->started = started;
    pthread_mutex_init(&t->turn, NULL);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->has_job, NULL);
    pthread_cond_init(&t->is_done, NULL);
    if (!start_threads(t)) {
        const int n_started = t->n_started;
        tkv_threads_free(t);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "the system started only %d of %d threads; ask for fewer", n_started + 1,
                        n_threads);
    }
    *threads = t;
    return TKV_OK;
}

void tkv_threads_free(tkv_threads *threads)
{
    if (!threads) {
        return;
    }
    pthread_mutex_lock(&threads->lock);
    threads->is_ending = true;
    atomic_fetch_add(&threads->n_jobs, 1);
    pthread_cond_broadcast(&threads->has_job);
    pthread_mutex_unlock(&threads->lock);
    for (int i = 0; i < threads->n_started; i++) {
        pthread_join(threads->started[i], NULL);
    }
    pthread_cond_destroy(&threads->is_done);
    pthread_cond_destroy(&threads->has_job);
    pthread_mutex_destroy(&threads->lock);
    pthread_mutex_destroy(&threads->turn);
    const tkv_allocator allocator = threads->allocator;
    tkv_release(&allocator, threads->started);
    tkv_release(&allocator, threads);
}
