/* Every kernel table of this build against the reference, in the manner of dav1d's checkasm: random
 * and adversarial input, outputs between guards. */
#include "backend/kernels.h"
#include "codec/codec.h"
#include "support/support.h"

#define GUARD 64
#define GUARD_BYTE 0xa5

/* A buffer with guards on both sides. */
typedef struct guarded {
    uint8_t *memory;
    uint8_t *data;
    size_t bytes;
} guarded;

static guarded guard(size_t bytes)
{
    guarded g = {.bytes = bytes};
    g.memory = aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD);
    assert_non_null(g.memory);
    memset(g.memory, GUARD_BYTE, bytes + 2 * GUARD);
    g.data = g.memory + GUARD;
    return g;
}

static void release(guarded *g)
{
    for (int i = 0; i < GUARD; i++) {
        assert_int_equal(g->memory[i], GUARD_BYTE);
        assert_int_equal(g->data[g->bytes + (size_t)i], GUARD_BYTE);
    }
    free(g->memory);
}

/* Rows of many kinds: Gaussian, spikes, zeros, tiny, huge, constant, on a grid, not finite. */
static void fill_rows(uint64_t *seed, int n_rows, int head_dim, bool is_hostile, float *x)
{
    for (int i = 0; i < n_rows; i++) {
        float *row = x + (size_t)i * (size_t)head_dim;
        const int kind = is_hostile ? i % 9 : 0;
        for (int j = 0; j < head_dim; j++) {
            const float g = random_gauss(seed);
            const float values[] = {g,
                                    j == i % head_dim ? 7.0f : 0.0f,
                                    0.0f,
                                    g * 1e-13f,
                                    g * 1e30f,
                                    1.0f,
                                    rintf(4.0f * g) / 4.0f,
                                    j == 5 ? NAN : g,
                                    g * 1e-42f};
            row[j] = values[kind];
        }
    }
}

static void encoding_is_equal_to_the_bit(const tkv_kernels *kernels)
{
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            for (int order = 0; order < 2; order++) {
                const int head_dim = all_head_dims[d];
                uint64_t seed = (uint64_t)(1000 * d + 10 * type + order);
                const tkv_page_span span = {
                    (tkv_type)type,    (tkv_page_order)order, head_dim, 5 * (d % 2), 54,
                    TKV_EFFORT_DEFAULT};
                float *x = allocate(54 * (size_t)head_dim * sizeof *x);
                fill_rows(&seed, 54, head_dim, true, x);
                const size_t bytes = tkv_page_bytes((tkv_type)type, head_dim);
                guarded expected = guard(bytes);
                guarded actual = guard(bytes);
                tkv_kernels_scalar.encode(&span, x, (size_t)head_dim, expected.data);
                kernels->encode(&span, x, (size_t)head_dim, actual.data);
                assert_memory_equal(actual.data, expected.data, bytes);

                guarded a = guard(54 * (size_t)head_dim * sizeof(float));
                guarded b = guard(54 * (size_t)head_dim * sizeof(float));
                tkv_kernels_scalar.decode(&span, expected.data, (float *)a.data, (size_t)head_dim);
                kernels->decode(&span, expected.data, (float *)b.data, (size_t)head_dim);
                assert_memory_equal(a.data, b.data, a.bytes);
                release(&expected);
                release(&actual);
                release(&a);
                release(&b);
                free(x);
            }
        }
    }
}

static void rotation_is_equal_to_the_bit(const tkv_kernels *kernels)
{
    for (int head_dim = 32; head_dim <= 1024; head_dim += 16) {
        uint64_t seed = (uint64_t)head_dim;
        guarded a = guard(5 * (size_t)head_dim * sizeof(float));
        guarded b = guard(5 * (size_t)head_dim * sizeof(float));
        fill_gauss(&seed, 5 * (size_t)head_dim, (float *)a.data);
        memcpy(b.data, a.data, a.bytes);
        tkv_kernels_scalar.rotate(head_dim, 5, (float *)a.data);
        kernels->rotate(head_dim, 5, (float *)b.data);
        assert_memory_equal(a.data, b.data, a.bytes);
        tkv_kernels_scalar.unrotate(head_dim, 5, (float *)a.data);
        kernels->unrotate(head_dim, 5, (float *)b.data);
        assert_memory_equal(a.data, b.data, a.bytes);
        release(&a);
        release(&b);
    }
}

/* Scores and sums against double precision over decoded rows. */
static void check_products(const tkv_kernels *kernels, tkv_type type, int head_dim, int n_rows,
                           int n_tokens)
{
    uint64_t seed = (uint64_t)(head_dim + 10000 * n_rows + n_tokens);
    const size_t n = TKV_PAGE_TOKENS * (size_t)head_dim;
    float *x = allocate(n * sizeof *x);
    float *decoded = allocate(n * sizeof *x);
    float *queries = allocate((size_t)n_rows * (size_t)head_dim * sizeof *x);
    float *weights = allocate((size_t)n_rows * TKV_PAGE_TOKENS * sizeof *x);
    float rescale[16];
    guarded key_page = guard(tkv_page_bytes(type, head_dim));
    guarded value_page = guard(tkv_page_bytes(type, head_dim));
    guarded prepared = guard(kernels->query_bytes(type, head_dim, n_rows));
    guarded scratch = guard(kernels->scratch_bytes(head_dim, n_rows));
    guarded scores = guard((size_t)n_rows * TKV_PAGE_TOKENS * sizeof(float));
    guarded sums = guard((size_t)n_rows * (size_t)head_dim * sizeof(float));
    tkv_page_span span = {type, TKV_ORDER_KEY, head_dim, 0, TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    fill_gauss(&seed, n, x);
    tkv_kernels_scalar.encode(&span, x, (size_t)head_dim, key_page.data);
    span.order = TKV_ORDER_VALUE;
    tkv_kernels_scalar.encode(&span, x, (size_t)head_dim, value_page.data);
    tkv_kernels_scalar.decode(&span, value_page.data, decoded, (size_t)head_dim);
    if (type != TKV_TYPE_F16) {
        tkv_kernels_scalar.rotate(head_dim, TKV_PAGE_TOKENS, decoded);
    }
    fill_gauss(&seed, (size_t)n_rows * (size_t)head_dim, queries);
    fill_gauss(&seed, (size_t)n_rows * (size_t)head_dim, (float *)sums.data);
    float *before = allocate(sums.bytes);
    memcpy(before, sums.data, sums.bytes);
    for (int r = 0; r < n_rows; r++) {
        rescale[r] = (float)random_uniform(&seed);
        for (int t = 0; t < n_tokens; t++) {
            weights[r * TKV_PAGE_TOKENS + t] = expf(2.0f * random_gauss(&seed));
        }
    }
    kernels->prepare_queries(type, head_dim, n_rows, queries, prepared.data);
    kernels->scores(type, head_dim, n_rows, prepared.data, n_tokens, key_page.data,
                    (float *)scores.data, scratch.data);
    kernels->accumulate(type, head_dim, n_rows, weights, rescale, n_tokens, value_page.data,
                        (float *)sums.data, scratch.data);
    for (int r = 0; r < n_rows; r++) {
        for (int t = 0; t < n_tokens; t++) {
            double sum = 0.0;
            for (int j = 0; j < head_dim; j++) {
                sum += (double)queries[r * head_dim + j] * (double)decoded[t * head_dim + j];
            }
            const double score = (double)((float *)scores.data)[r * TKV_PAGE_TOKENS + t];
            assert_true(fabs(score - sum) < 1e-4 * sqrt(head_dim));
        }
        for (int j = 0; j < head_dim; j++) {
            double sum = (double)rescale[r] * (double)before[r * head_dim + j];
            double size = fabs(sum);
            for (int t = 0; t < n_tokens; t++) {
                const double term =
                    (double)weights[r * TKV_PAGE_TOKENS + t] * (double)decoded[t * head_dim + j];
                sum += term;
                size += fabs(term) + (double)weights[r * TKV_PAGE_TOKENS + t];
            }
            assert_true(fabs((double)((float *)sums.data)[r * head_dim + j] - sum) <
                        1e-5 * size + 1e-6);
        }
    }
    release(&key_page);
    release(&value_page);
    release(&prepared);
    release(&scratch);
    release(&scores);
    release(&sums);
    free(x);
    free(decoded);
    free(queries);
    free(weights);
    free(before);
}

static void products_are_within_bounds(const tkv_kernels *kernels)
{
    const int tokens[] = {1, 15, 16, 33, 64};
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            check_products(kernels, (tkv_type)type, all_head_dims[d], 1 + (3 * d + 5 * type) % 16,
                           tokens[(d + type) % 5]);
        }
    }
}

static void softmax_is_within_bounds(const tkv_kernels *kernels)
{
    uint64_t seed = 31;
    for (int trial = 0; trial < 300; trial++) {
        float a[4 * TKV_PAGE_TOKENS];
        float b[4 * TKV_PAGE_TOKENS];
        float maximum[2][4];
        float sum[2][4];
        float rescale[2][4];
        int first[4];
        int end[4];
        fill_gauss(&seed, 4 * TKV_PAGE_TOKENS, a);
        for (int i = 0; i < 4 * TKV_PAGE_TOKENS; i++) {
            a[i] *= trial % 7 == 0 ? 1e30f : 20.0f;
        }
        memcpy(b, a, sizeof a);
        for (int r = 0; r < 4; r++) {
            first[r] = random_below(&seed, TKV_PAGE_TOKENS);
            end[r] = random_below(&seed, TKV_PAGE_TOKENS + 1);
            const bool is_fresh = random_below(&seed, 2) != 0;
            maximum[0][r] = maximum[1][r] = is_fresh ? -INFINITY : random_gauss(&seed);
            sum[0][r] = sum[1][r] = is_fresh ? 0.0f : 3.0f;
        }
        const tkv_softmax_span span = {4, first, end, 0.3f, trial % 2 ? 5.0f : 0.0f};
        tkv_kernels_scalar.softmax(&span, a, maximum[0], sum[0], rescale[0]);
        kernels->softmax(&span, b, maximum[1], sum[1], rescale[1]);
        for (int r = 0; r < 4; r++) {
            assert_true(maximum[0][r] == maximum[1][r] ||
                        fabsf(maximum[0][r] - maximum[1][r]) < 1e-5f * fabsf(maximum[0][r]));
            assert_true(fabsf(sum[0][r] - sum[1][r]) <= 2e-5f * sum[0][r]);
            assert_true(fabsf(rescale[0][r] - rescale[1][r]) <= 1e-5f);
            for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
                const float weight = b[r * TKV_PAGE_TOKENS + t];
                assert_true(fabsf(weight - a[r * TKV_PAGE_TOKENS + t]) < 1e-5f);
                assert_true((t >= first[r] && t < end[r]) || weight == 0.0f);
            }
        }
    }
}

/* Runs a check on every table that this machine can run; the reference checks the checks. */
static void on_all_tables(void (*check)(const tkv_kernels *))
{
    const tkv_kernels *kernels;
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        print_message("kernels: %s\n", kernels->name);
        check(kernels);
    }
}

static void encoding(void **state)
{
    (void)state;
    on_all_tables(encoding_is_equal_to_the_bit);
}

static void rotation(void **state)
{
    (void)state;
    on_all_tables(rotation_is_equal_to_the_bit);
}

static void products(void **state)
{
    (void)state;
    on_all_tables(products_are_within_bounds);
}

static void softmax(void **state)
{
    (void)state;
    on_all_tables(softmax_is_within_bounds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encoding), cmocka_unit_test(rotation),
                                       cmocka_unit_test(products), cmocka_unit_test(softmax)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
