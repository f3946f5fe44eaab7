/* Encoding, decoding, rotation and softmax of every table of kernels against the reference. */
#include "conformance/conformance.h"
#include "format/codec.h"

/* The format says that a row decodes to NaN, not to which. */
static void unify_nan(size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = isnan(x[i]) ? NAN : x[i];
    }
}

/* Rows lie apart, and not on a vector's boundary. */
static void check_encoding(const tkv_kernels *kernels, const tkv_page_span *span, int n_kinds,
                           uint64_t seed)
{
    const size_t stride = (size_t)span->head_dim + 3;
    const size_t n = (size_t)span->n_rows * stride;
    const size_t bytes = tkv_page_bytes(span->type, span->head_dim);
    guarded x = guard((n + 1) * sizeof(float));
    guarded expected = guard(bytes);
    guarded actual = guard(bytes);
    guarded a = guard((n + 1) * sizeof(float));
    guarded b = guard((n + 1) * sizeof(float));
    fill_rows(&seed, span->n_rows, span->head_dim, stride, n_kinds, (float *)x.data + 1);
    tkv_kernels_scalar.encode(span, (float *)x.data + 1, stride, expected.data);
    kernels->encode(span, (float *)x.data + 1, stride, actual.data);
    assert_memory_equal(actual.data, expected.data, bytes);
    tkv_kernels_scalar.decode(span, expected.data, (float *)a.data + 1, stride);
    kernels->decode(span, expected.data, (float *)b.data + 1, stride);
    unify_nan(n, (float *)a.data + 1);
    unify_nan(n, (float *)b.data + 1);
    assert_memory_equal(a.data, b.data, a.bytes);
    release(&x);
    release(&expected);
    release(&actual);
    release(&a);
    release(&b);
}

static void encoding_is_equal_to_the_bit(const tkv_kernels *kernels)
{
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            for (int order = 0; order < 2; order++) {
                const tkv_page_span span = {
                    (tkv_type)type,    (tkv_page_order)order, page_head_dims[d], 5 * (d % 2), 54,
                    TKV_EFFORT_DEFAULT};
                const uint64_t seed = seed_of((uint64_t)(1000 * d + 10 * type + order));
                check_encoding(kernels, &span, N_KINDS, seed);
                check_encoding(kernels, &span, 1, seed);
            }
        }
    }
    for (int i = 0; i < 2 * TKV_EFFORT_COUNT; i++) {
        const tkv_page_span span = {i % 2 ? TKV_TYPE_TRELLIS3 : TKV_TYPE_TRELLIS2,
                                    TKV_ORDER_KEY,
                                    80,
                                    17,
                                    20,
                                    (tkv_effort)(i / 2)};
        check_encoding(kernels, &span, N_KINDS, seed_of((uint64_t)i));
    }
}

/* Spans of all lengths, at all places of a page, with few odd rows among the Gaussian ones, so that
 * groups of rows are coded in every way that there is; and the smallest and largest heads. */
static void spans_of_all_lengths_are_equal(const tkv_kernels *kernels)
{
    const int head_dims[] = {16, 32, 48, 128, 80, 1008, 1024};
    uint64_t seed = seed_of(7);
    for (int i = 0; i < 40 * TKV_TYPE_COUNT; i++) {
        tkv_page_span span = {(tkv_type)(i % TKV_TYPE_COUNT),
                              (tkv_page_order)(i / 9 % 2),
                              head_dims[i % 7],
                              0,
                              1 + random_below(&seed, 40),
                              TKV_EFFORT_FAST};
        span.first_slot = random_below(&seed, TKV_PAGE_TOKENS - span.n_rows + 1);
        check_encoding(kernels, &span, i % 4 ? 1 : N_KINDS, seed_of((uint64_t)i));
    }
}

static void rotation_is_equal_to_the_bit(const tkv_kernels *kernels)
{
    for (int head_dim = 16; head_dim <= 1024; head_dim += 16) {
        uint64_t seed = seed_of((uint64_t)head_dim);
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

static void softmax_is_within_bounds(const tkv_kernels *kernels)
{
    uint64_t seed = seed_of(31);
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

/* Scores that overflowed: whatever comes out is finite and the same. */
static void softmax_stays_finite(const tkv_kernels *kernels)
{
    const float hostile[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0.0f, 1e-45f};
    const float caps[] = {0.0f, 30.0f, 1e-38f};
    for (int i = 0; i < 7 * 7 * 3; i++) {
        float a[TKV_PAGE_TOKENS];
        float b[TKV_PAGE_TOKENS];
        float maximum[2] = {-INFINITY, -INFINITY};
        float sum[2] = {0.0f, 0.0f};
        float rescale[2];
        const int first = 0;
        const int end = TKV_PAGE_TOKENS - i % 5;
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            a[t] = b[t] = hostile[t % 2 ? i % 7 : i / 7 % 7];
        }
        const tkv_softmax_span span = {1, &first, &end, 0.1f, caps[i / 49]};
        tkv_kernels_scalar.softmax(&span, a, &maximum[0], &sum[0], &rescale[0]);
        kernels->softmax(&span, b, &maximum[1], &sum[1], &rescale[1]);
        assert_true(isfinite(maximum[1]) && isfinite(sum[1]) && sum[1] >= 1.0f);
        assert_true(fabsf(maximum[0] - maximum[1]) <= 1e-5f * fabsf(maximum[0]));
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            assert_true(fabsf(a[t] - b[t]) < 1e-5f);
        }
    }
}

static void encoding(void **state)
{
    (void)state;
    on_all_tables(encoding_is_equal_to_the_bit);
    on_all_tables(spans_of_all_lengths_are_equal);
}

static void rotation(void **state)
{
    (void)state;
    on_all_tables(rotation_is_equal_to_the_bit);
}

static void softmax(void **state)
{
    (void)state;
    on_all_tables(softmax_is_within_bounds);
    on_all_tables(softmax_stays_finite);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encoding), cmocka_unit_test(rotation),
                                       cmocka_unit_test(softmax)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
