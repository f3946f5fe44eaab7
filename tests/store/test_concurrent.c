/* Several threads read one store and attend to it at a time; each gets what one alone gets. */
#include "store_model.h"

#include <pthread.h>

enum { N_THREADS = 4, N_ROUNDS = 5, DIM = 64, N_HEADS = 4, N_SLOTS = 512 };

static tkv_store *store;
static store_shape shape;
static float q[N_HEADS * DIM];
static float expected[N_HEADS * DIM];

static void attend(float *out)
{
    const tkv_slot_range range = {0, N_SLOTS};
    const tkv_slot_view view = {0, 1, 0};
    const tkv_store_attend_params params = {
        .n_queries = 1, .n_heads = N_HEADS, .views = &view, .ranges = &range, .n_ranges = 1};
    assert_ok(tkv_attend_store(store, &params, q, out, &error));
}

static void *read_and_attend(void *result)
{
    bool *is_same = result;
    for (int i = 0; i < N_ROUNDS; i++) {
        float out[N_HEADS * DIM];
        attend(out);
        held_rows rows = read_all(store, &shape);
        *is_same = *is_same && relative_error(N_HEADS * DIM, out, expected) < 1e-5;
        free_rows(&rows);
    }
    return NULL;
}

static void readers_in_parallel(void **state)
{
    (void)state;
    tkv_context *context = create_store_context(2);
    shape = (store_shape){.type_k = TKV_TYPE_TURBO4,
                          .type_v = TKV_TYPE_TURBO4,
                          .dim_k = DIM,
                          .dim_v = DIM,
                          .n_kv_heads = 2,
                          .group = 2,
                          .n_slots = N_SLOTS,
                          .n_exact = 70};
    store = create_store(context, &shape);
    write_slots(store, &shape, 1, 0, N_SLOTS);
    uint64_t seed = 2;
    fill_gauss(&seed, N_HEADS * DIM, q);
    attend(expected);
    pthread_t threads[N_THREADS];
    bool is_same[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        is_same[i] = true;
        assert_int_equal(pthread_create(&threads[i], NULL, read_and_attend, &is_same[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(is_same[i]);
    }
    tkv_store_free(store);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(readers_in_parallel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
