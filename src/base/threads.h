/* A team of threads for jobs of many independent items. Between jobs they wait, actively for some
 * microseconds and then asleep, so that a team costs other processes nothing; items are taken one
 * by one, so that a thread that the system has stopped holds up one item and not its share of all.
 */
#ifndef TKV_BASE_THREADS_H
#define TKV_BASE_THREADS_H

#include "turbokv.h"

typedef struct tkv_threads tkv_threads;

/* A team of n_threads >= 1, the caller of a job being one of them. Fails if the system lacks memory
 * or threads; free with tkv_threads_free while no job runs. */
tkv_status tkv_threads_create(const tkv_allocator *allocator, int n_threads, tkv_threads **threads,
                              tkv_error *error);
void tkv_threads_free(tkv_threads *threads);

/* n_threads of the team; of NULL, 1. */
int tkv_threads_count(const tkv_threads *threads);

/* Works on items 0 to n_items - 1, in any order, with up to n_threads of the team (NULL: the caller
 * alone), and returns when all are done. Several threads may call it at a time: one gets the team,
 * the others work alone. An item must not start a job on its own team. */
void tkv_threads_run(tkv_threads *threads, int n_threads, int n_items, tkv_item_work work,
                     void *argument);

#endif
