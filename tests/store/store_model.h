/* What the tests of the store share: a store, the rows that it should hold, and attention by its
 * definition over the rows that it does hold. */
#ifndef TKV_TESTS_STORE_MODEL_H
#define TKV_TESTS_STORE_MODEL_H

#include "support/support.h"

typedef struct store_shape {
    tkv_type type_k;
    tkv_type type_v;
    int dim_k;
    int dim_v; /* 0: keys only */
    int n_value_dims;
    int n_kv_heads;
    int group;
    int n_slots;
    int n_regions;
    int n_exact;
    int n_exact_first;
    const tkv_rope *rope;
} store_shape;

static inline int value_width(const store_shape *s)
{
    return s->dim_v ? s->dim_v : s->n_value_dims;
}

tkv_context *create_store_context(int n_threads);
tkv_store *create_store(tkv_context *context, const store_shape *s);

/* Random rows [n][n_kv_heads][dim]. */
float *random_rows(uint64_t *seed, int n, int n_kv_heads, int dim);

/* Writes random rows into slots first .. first+n-1. */
void write_slots(tkv_store *store, const store_shape *s, uint64_t seed, int64_t first, int n);

/* All slots as the store reads them: keys, then values (of keys only: the beginnings of keys). */
typedef struct held_rows {
    float *k;
    float *v;
} held_rows;
held_rows read_all(const tkv_store *store, const store_shape *s);
void free_rows(held_rows *rows);

/* Attention of all queries of params over the rows, by definition: a query sees a slot as
 * visible[(stream * n_queries + query) * n_slots + slot] says, minus infinity: not, otherwise a
 * number to add. out and log_sums [n_streams][n_queries][n_heads]. */
void attend_by_definition(const store_shape *s, const held_rows *rows,
                          const tkv_store_attend_params *params, const float *q,
                          const double *visible, float *out, float *log_sums);

/* Bound of the relative error of outputs with the context's kernels. */
double store_bound(const tkv_context *context);

#endif
