/* The team of threads: every item once, in every combination of sizes and callers. */
#include "base/allocate.h"
#include "base/threads.h"
#include "support/support.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MAX_ITEMS = 1000, MAX_TEAM = 9 };

typedef struct tally {
    atomic_int n_done[MAX_ITEMS];
    atomic_bool is_busy[MAX_TEAM];
    int plain[MAX_ITEMS]; /* written by the thread that has the item, read by the caller */
    atomic_int n_mistakes;
} tally;

static void count_item(void *argument, int item, int thread)
{
    tally *t = argument;
    const bool is_shared =
        thread < 0 || thread >= MAX_TEAM || atomic_exchange(&t->is_busy[thread], true);
    atomic_fetch_add(&t->n_mistakes, is_shared);
    atomic_fetch_add(&t->n_done[item], 1);
    t->plain[item] += item + 1;
    atomic_store(&t->is_busy[thread], false);
}

/* Runs a job and checks that every item was done once more. */
static void run_and_check(tkv_threads *threads, int n_threads, int n_items, tally *t, int n_before)
{
    tkv_threads_run(threads, n_threads, n_items, count_item, t);
    for (int i = 0; i < n_items; i++) {
        if (atomic_load(&t->n_done[i]) != n_before + 1 || t->plain[i] != (n_before + 1) * (i + 1)) {
            atomic_fetch_add(&t->n_mistakes, 1);
        }
    }
}

static void items_are_done_once(void **state)
{
    (void)state;
    const int sizes[] = {1, 2, 3, MAX_TEAM};
    const int items[] = {0, 1, 2, 7, MAX_ITEMS};
    for (int s = 0; s < 4; s++) {
        tkv_threads *threads = NULL;
        assert_ok(tkv_threads_create(&tkv_default_allocator, sizes[s], &threads, &error));
        assert_int_equal(tkv_threads_count(threads), sizes[s]);
        for (int i = 0; i < 5; i++) {
            tally *t = calloc(1, sizeof *t);
            assert_non_null(t);
            for (int round = 0; round < 50; round++) {
                run_and_check(threads, 1 + round % (sizes[s] + 1), items[i], t, round);
            }
            assert_int_equal(atomic_load(&t->n_mistakes), 0);
            free(t);
        }
        tkv_threads_free(threads);
    }
}

static void the_caller_can_work_alone(void **state)
{
    (void)state;
    tally *t = calloc(1, sizeof *t);
    assert_non_null(t);
    run_and_check(NULL, 4, 100, t, 0);
    assert_int_equal(atomic_load(&t->n_mistakes), 0);
    assert_int_equal(tkv_threads_count(NULL), 1);
    tkv_threads_free(NULL);
    free(t);
}

static void *call_often(void *argument)
{
    tkv_threads *threads = argument;
    tally *t = calloc(1, sizeof *t);
    for (int round = 0; t && round < 300; round++) {
        run_and_check(threads, 3, 20, t, round);
    }
    const bool is_right = t && atomic_load(&t->n_mistakes) == 0;
    free(t);
    return is_right ? argument : NULL;
}

static void a_team_may_have_several_callers(void **state)
{
    (void)state;
    enum { N_CALLERS = 4 };
    tkv_threads *threads = NULL;
    pthread_t callers[N_CALLERS];
    assert_ok(tkv_threads_create(&tkv_default_allocator, 3, &threads, &error));
    for (int i = 0; i < N_CALLERS; i++) {
        assert_int_equal(pthread_create(&callers[i], NULL, call_often, threads), 0);
    }
    for (int i = 0; i < N_CALLERS; i++) {
        void *result = NULL;
        pthread_join(callers[i], &result);
        assert_non_null(result);
    }
    tkv_threads_free(threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(items_are_done_once),
                                       cmocka_unit_test(the_caller_can_work_alone),
                                       cmocka_unit_test(a_team_may_have_several_callers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
