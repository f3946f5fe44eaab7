/* Every kernel table of this build against the reference, in the manner of dav1d's checkasm: random
 * and adversarial input, outputs between guards. */
#include "backend/kernels.h"
#include "codec/codec.h"
#include "common/half.h"
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

/* One coordinate of a row: Gaussian, a spike, zero, tiny, huge, constant, on a grid, denormal, near
 * the largest float, not finite. */
enum { N_FINITE_KINDS = 9, N_KINDS = 10 };

static float row_value(int kind, float gauss, bool is_spike)
{
    switch (kind) {
    case 1: return is_spike ? 7.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return gauss * 1e-13f;
    case 4: return gauss * 1e30f;
    case 5: return 1.0f;
    case 6: return rintf(4.0f * gauss) / 4.0f;
    case 7: return gauss * 1e-42f;
    case 8: return gauss < 0.0f ? -3e38f : 3e38f;
    case 9: return is_spike ? NAN : gauss;
    default: return gauss;
    }
}

/* Row i is of kind i modulo n_kinds; 1 kind: all Gaussian. */
static void fill_rows(uint64_t *seed, int n_rows, int head_dim, size_t stride, int n_kinds,
                      float *x)
{
    for (int i = 0; i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            x[(size_t)i * stride + (size_t)j] =
                row_value(i % n_kinds, random_gauss(seed), j == i % head_dim);
        }
    }
}

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
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            for (int order = 0; order < 2; order++) {
                const tkv_page_span span = {
                    (tkv_type)type,    (tkv_page_order)order, all_head_dims[d], 5 * (d % 2), 54,
                    TKV_EFFORT_DEFAULT};
                const uint64_t seed = (uint64_t)(1000 * d + 10 * type + order);
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
        check_encoding(kernels, &span, N_KINDS, (uint64_t)i);
    }
}

/* Spans of all lengths, at all places of a page, with few odd rows among the Gaussian ones, so that
 * groups of rows are coded in every way that there is; and the smallest and largest heads. */
static void spans_of_all_lengths_are_equal(const tkv_kernels *kernels)
{
    const int head_dims[] = {32, 48, 128, 80, 1024};
    uint64_t seed = 7;
    for (int i = 0; i < 40 * TKV_TYPE_COUNT; i++) {
        tkv_page_span span = {(tkv_type)(i % TKV_TYPE_COUNT),
                              (tkv_page_order)(i / 9 % 2),
                              head_dims[i % 5],
                              0,
                              1 + random_below(&seed, 40),
                              TKV_EFFORT_FAST};
        span.first_slot = random_below(&seed, TKV_PAGE_TOKENS - span.n_rows + 1);
        check_encoding(kernels, &span, i % 4 ? 1 : N_KINDS, (uint64_t)i);
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

/* A call of `scores` or `accumulate`. */
typedef struct product_case {
    tkv_type type;
    int head_dim;
    int n_rows;
    int n_tokens;
    int n_kinds; /* of the rows in the page */
} product_case;

static void fail_case(const tkv_kernels *kernels, const product_case *c, const char *what, int row,
                      int at, double found, double expected)
{
    fail_msg("%s, %s of type %d, head_dim %d, %d rows, %d tokens, %d kinds: [%d][%d] is %g, "
             "expected %g",
             kernels->name, what, (int)c->type, c->head_dim, c->n_rows, c->n_tokens, c->n_kinds,
             row, at, found, expected);
}

static double norm_of(int n, const float *x)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

/* A page of which only the first n_tokens slots are in use: what the others hold must not matter,
 * so they hold NaN. `decoded` [n_tokens][head_dim] receives its rows in the domain of the codes. */
static guarded make_page(const product_case *c, tkv_page_order order, uint64_t *seed,
                         float *decoded)
{
    const size_t head_dim = (size_t)c->head_dim;
    guarded page = guard(tkv_page_bytes(c->type, c->head_dim));
    float *x = allocate((size_t)c->n_tokens * head_dim * sizeof *x);
    const tkv_page_span span = {c->type, order, c->head_dim, 0, c->n_tokens, TKV_EFFORT_FAST};
    memset(page.data, 0xff, page.bytes);
    fill_rows(seed, c->n_tokens, c->head_dim, head_dim, c->n_kinds, x);
    tkv_kernels_scalar.encode(&span, x, head_dim, page.data);
    tkv_kernels_scalar.decode(&span, page.data, decoded, head_dim);
    for (int t = 0; c->type != TKV_TYPE_F16 && t < c->n_tokens; t++) {
        tkv_row_codes row;
        tkv_unpack_slot(c->type, order, c->head_dim, t, page.data, &row);
        tkv_dequantise_row(c->type, c->head_dim, &row, decoded + (size_t)t * head_dim);
    }
    free(x);
    return page;
}

static double largest_of(int n, const float *x)
{
    double largest = 0.0;
    for (int i = 0; i < n; i++) {
        largest = fmax(largest, fabs((double)x[i]));
    }
    return largest;
}

/* Side fields of a token: the largest value that its codes can stand for, and the size of its
 * residual in every coordinate of the sketch. */
typedef struct token_size {
    double level;
    double residual;
} token_size;

static token_size size_of_token(const product_case *c, tkv_page_order order, int slot,
                                const void *page)
{
    tkv_row_codes row;
    const tkv_code_kind kind = tkv_type_get_layout(c->type)->kind;
    if (kind == TKV_CODE_HALF) {
        return (token_size){0.0, 0.0};
    }
    tkv_unpack_slot(c->type, order, c->head_dim, slot, page, &row);
    const uint16_t scale = kind == TKV_CODE_TRELLIS ? tkv_trellis_scale(row.side[0]) : row.side[0];
    return (token_size){127.0 / TKV_LEVEL_UNIT * (double)tkv_half_to_float(scale),
                        kind == TKV_CODE_SKETCH ? (double)tkv_half_to_float(row.side[1]) : 0.0};
}

/* Relative to the norms of query and key: what float arithmetic leaves. */
static const double score_bound = 2e-6;

/* What rounding the query may change: every coordinate by a share of the largest (Cauchy and
 * Schwarz); the sketch of a query is rounded by itself. */
static double score_rounding(const tkv_kernels *kernels, const product_case *c, const float *query,
                             double key_norm, double residual)
{
    float sketched[TKV_MAX_HEAD_DIM];
    const double root = sqrt((double)c->head_dim);
    const double codes = largest_of(c->head_dim, query) * root * (key_norm + root * residual);
    memcpy(sketched, query, (size_t)c->head_dim * sizeof *sketched);
    if (residual > 0.0) {
        tkv_sketch_row(c->head_dim, sketched);
    }
    const double signs = largest_of(c->head_dim, sketched) * root * root * residual;
    return (double)tkv_query_rounding(kernels, c->type) * (codes + signs);
}

static void check_scores(const tkv_kernels *kernels, const product_case *c, uint64_t seed)
{
    const int d = c->head_dim;
    float *keys = allocate((size_t)(c->n_tokens * d) * sizeof *keys);
    guarded page = make_page(c, TKV_ORDER_KEY, &seed, keys);
    guarded queries = guard((size_t)(c->n_rows * d + 1) * sizeof(float));
    guarded prepared = guard(kernels->query_bytes(c->type, d, c->n_rows));
    guarded scratch = guard(kernels->scratch_bytes(d, c->n_rows));
    guarded scores = guard((size_t)c->n_rows * TKV_PAGE_TOKENS * sizeof(float));
    float *q = (float *)queries.data + 1;
    fill_gauss(&seed, (size_t)(c->n_rows * d), q);
    kernels->prepare_queries(c->type, d, c->n_rows, q, prepared.data);
    const tkv_page_read read = {c->type, d, c->n_tokens, page.data, NULL};
    kernels->scores(&read, c->n_rows, prepared.data, (float *)scores.data, scratch.data);
    for (int r = 0; r < c->n_rows; r++) {
        for (int t = 0; t < c->n_tokens; t++) {
            double sum = 0.0;
            for (int j = 0; j < d; j++) {
                sum += (double)q[r * d + j] * (double)keys[t * d + j];
            }
            const double key_norm = norm_of(d, keys + t * d);
            const double residual = size_of_token(c, TKV_ORDER_KEY, t, page.data).residual;
            const double tolerance = score_bound * norm_of(d, q + r * d) * key_norm +
                                     score_rounding(kernels, c, q + r * d, key_norm, residual);
            const double found = (double)((float *)scores.data)[r * TKV_PAGE_TOKENS + t];
            if (!(fabs(found - sum) <= tolerance)) {
                fail_case(kernels, c, "score", r, t, found, sum);
            }
        }
    }
    release(&page);
    release(&queries);
    release(&prepared);
    release(&scratch);
    release(&scores);
    free(keys);
}

/* Relative to the sum of the magnitudes that were added: what float arithmetic leaves. */
static const double sum_bound = 4e-6;

/* What rounding the weights may change: each by a share of the largest, times the largest level. Of
 * the residual, which comes back from the sketch, at most the norm. */
static double sum_rounding(const tkv_kernels *kernels, const product_case *c, const float *weights,
                           const void *page)
{
    token_size largest = {0.0, 0.0};
    for (int t = 0; t < c->n_tokens; t++) {
        const token_size size = size_of_token(c, TKV_ORDER_VALUE, t, page);
        largest.level = fmax(largest.level, (double)weights[t] * size.level);
        largest.residual = fmax(largest.residual, (double)weights[t] * size.residual);
    }
    return (double)kernels->weight_rounding * c->n_tokens *
           (largest.level + sqrt((double)c->head_dim) * largest.residual);
}

static void check_accumulate(const tkv_kernels *kernels, const product_case *c, uint64_t seed)
{
    const int d = c->head_dim;
    float rescale[16];
    float *values = allocate((size_t)(c->n_tokens * d) * sizeof *values);
    float *before = allocate((size_t)(c->n_rows * d) * sizeof *before);
    guarded page = make_page(c, TKV_ORDER_VALUE, &seed, values);
    guarded weights = guard(((size_t)c->n_rows * TKV_PAGE_TOKENS + 1) * sizeof(float));
    guarded scratch = guard(kernels->scratch_bytes(d, c->n_rows));
    guarded sums = guard((size_t)(c->n_rows * d) * sizeof(float));
    float *w = (float *)weights.data + 1;
    fill_gauss(&seed, (size_t)(c->n_rows * d), before);
    memcpy(sums.data, before, sums.bytes);
    memset(w, 0, (size_t)c->n_rows * TKV_PAGE_TOKENS * sizeof *w);
    for (int r = 0; r < c->n_rows; r++) {
        rescale[r] = (float)random_uniform(&seed);
        for (int t = 0; t < c->n_tokens; t++) {
            w[r * TKV_PAGE_TOKENS + t] = expf(2.0f * random_gauss(&seed));
        }
    }
    const tkv_page_read read = {c->type, d, c->n_tokens, page.data, page.data};
    kernels->accumulate(&read, c->n_rows, w, rescale, (float *)sums.data, scratch.data);
    for (int r = 0; r < c->n_rows; r++) {
        const double rounding = sum_rounding(kernels, c, w + r * TKV_PAGE_TOKENS, page.data);
        for (int j = 0; j < d; j++) {
            double sum = (double)rescale[r] * (double)before[r * d + j];
            double size = fabs(sum);
            for (int t = 0; t < c->n_tokens; t++) {
                const double weight = (double)w[r * TKV_PAGE_TOKENS + t];
                sum += weight * (double)values[t * d + j];
                size += weight * fabs((double)values[t * d + j]);
            }
            const double found = (double)((float *)sums.data)[r * d + j];
            if (!(fabs(found - sum) <= sum_bound * size + rounding)) {
                fail_case(kernels, c, "sum", r, j, found, sum);
            }
        }
    }
    release(&page);
    release(&weights);
    release(&scratch);
    release(&sums);
    free(values);
    free(before);
}

static void products_are_within_bounds(const tkv_kernels *kernels)
{
    const int tokens[] = {1, 15, 16, 33, 64};
    for (int i = 0; i < 2 * TKV_TYPE_COUNT * N_HEAD_DIMS; i++) {
        const int type = i % TKV_TYPE_COUNT;
        const int d = i / TKV_TYPE_COUNT % N_HEAD_DIMS;
        const product_case c = {(tkv_type)type, all_head_dims[d], 1 + (3 * d + 5 * type) % 16,
                                tokens[(d + type) % 5],
                                i < TKV_TYPE_COUNT * N_HEAD_DIMS ? 1 : N_FINITE_KINDS};
        check_scores(kernels, &c, (uint64_t)i);
        check_accumulate(kernels, &c, (uint64_t)i + 1000);
    }
}

enum { N_ERROR_ROWS = 16, ERROR_DIM = 128 };

/* Squared errors of products with coded rows: what coding the rows and what the kernel adds. */
typedef struct added_error {
    double codes;
    double kernel;
} added_error;

static void add_error(added_error *error, double exact, double coded, double found)
{
    error->codes += (coded - exact) * (coded - exact);
    error->kernel += (found - coded) * (found - coded);
}

/* A page of Gaussian rows x, and what they decode to in the domain of the codes. */
static guarded make_gauss_page(tkv_type type, tkv_page_order order, uint64_t *seed, float *rotated,
                               float *decoded)
{
    const tkv_page_span span = {type, order, ERROR_DIM, 0, TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    guarded page = guard(tkv_page_bytes(type, ERROR_DIM));
    fill_gauss(seed, TKV_PAGE_TOKENS * ERROR_DIM, rotated);
    tkv_kernels_scalar.encode(&span, rotated, ERROR_DIM, page.data);
    tkv_kernels_scalar.decode(&span, page.data, decoded, ERROR_DIM);
    tkv_kernels_scalar.rotate(ERROR_DIM, TKV_PAGE_TOKENS, rotated);
    tkv_kernels_scalar.rotate(ERROR_DIM, TKV_PAGE_TOKENS, decoded);
    return page;
}

static added_error score_errors(const tkv_kernels *kernels, tkv_type type, float *x, float *coded)
{
    static float q[N_ERROR_ROWS * ERROR_DIM];
    static float scores[N_ERROR_ROWS * TKV_PAGE_TOKENS];
    uint64_t seed = 77;
    added_error error = {0.0, 0.0};
    guarded page = make_gauss_page(type, TKV_ORDER_KEY, &seed, x, coded);
    void *prepared = allocate(kernels->query_bytes(type, ERROR_DIM, N_ERROR_ROWS));
    void *scratch = allocate(kernels->scratch_bytes(ERROR_DIM, N_ERROR_ROWS));
    fill_gauss(&seed, N_ERROR_ROWS * ERROR_DIM, q);
    kernels->prepare_queries(type, ERROR_DIM, N_ERROR_ROWS, q, prepared);
    const tkv_page_read read = {type, ERROR_DIM, TKV_PAGE_TOKENS, page.data, NULL};
    kernels->scores(&read, N_ERROR_ROWS, prepared, scores, scratch);
    for (int i = 0; i < N_ERROR_ROWS * TKV_PAGE_TOKENS; i++) {
        double sums[2] = {0.0, 0.0};
        for (int j = 0; j < ERROR_DIM; j++) {
            const double factor = (double)q[i / TKV_PAGE_TOKENS * ERROR_DIM + j];
            sums[0] += factor * (double)x[i % TKV_PAGE_TOKENS * ERROR_DIM + j];
            sums[1] += factor * (double)coded[i % TKV_PAGE_TOKENS * ERROR_DIM + j];
        }
        add_error(&error, sums[0], sums[1], (double)scores[i]);
    }
    release(&page);
    free(prepared);
    free(scratch);
    return error;
}

/* With weights as a softmax gives: few large, most small. */
static added_error sum_errors(const tkv_kernels *kernels, tkv_type type, float *x, float *coded)
{
    static float weights[N_ERROR_ROWS * TKV_PAGE_TOKENS];
    static float sums[N_ERROR_ROWS * ERROR_DIM];
    float rescale[N_ERROR_ROWS] = {0.0f};
    uint64_t seed = 78;
    added_error error = {0.0, 0.0};
    guarded page = make_gauss_page(type, TKV_ORDER_VALUE, &seed, x, coded);
    void *scratch = allocate(kernels->scratch_bytes(ERROR_DIM, N_ERROR_ROWS));
    for (int i = 0; i < N_ERROR_ROWS * TKV_PAGE_TOKENS; i++) {
        weights[i] = expf(3.0f * random_gauss(&seed));
    }
    memset(sums, 0, sizeof sums);
    const tkv_page_read read = {type, ERROR_DIM, TKV_PAGE_TOKENS, page.data, NULL};
    kernels->accumulate(&read, N_ERROR_ROWS, weights, rescale, sums, scratch);
    for (int i = 0; i < N_ERROR_ROWS * ERROR_DIM; i++) {
        double expected[2] = {0.0, 0.0};
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            const double weight = (double)weights[i / ERROR_DIM * TKV_PAGE_TOKENS + t];
            expected[0] += weight * (double)x[t * ERROR_DIM + i % ERROR_DIM];
            expected[1] += weight * (double)coded[t * ERROR_DIM + i % ERROR_DIM];
        }
        add_error(&error, expected[0], expected[1], (double)sums[i]);
    }
    release(&page);
    free(scratch);
    return error;
}

/* What kernels add to the error of the codes is at most this share of it. */
static const double added_share = 0.03;

static void kernels_add_little_to_the_error(const tkv_kernels *kernels)
{
    float *x = allocate(TKV_PAGE_TOKENS * ERROR_DIM * sizeof *x);
    float *coded = allocate(TKV_PAGE_TOKENS * ERROR_DIM * sizeof *coded);
    for (int type = TKV_TYPE_F16 + 1; type < TKV_TYPE_COUNT; type++) {
        const added_error scores = score_errors(kernels, (tkv_type)type, x, coded);
        const added_error sums = sum_errors(kernels, (tkv_type)type, x, coded);
        print_message("%s, %s: adds %.2g of the codes' error to scores, %.2g to sums\n",
                      kernels->name, tkv_type_get_info((tkv_type)type)->name,
                      scores.kernel / scores.codes, sums.kernel / sums.codes);
        assert_true(scores.kernel <= added_share * scores.codes);
        assert_true(sums.kernel <= added_share * sums.codes);
    }
    free(x);
    free(coded);
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
    on_all_tables(spans_of_all_lengths_are_equal);
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
    on_all_tables(kernels_add_little_to_the_error);
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
                                       cmocka_unit_test(products), cmocka_unit_test(softmax)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
