/* Scores and sums of every table of kernels against double precision on what the codes stand for.
 */
#include "base/half.h"
#include "conformance/conformance.h"
#include "format/codec.h"
#include "kernels/sums.h"

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
    const tkv_code_kind kind = tkv_type_kind(c->type);
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
    return (double)tkv_weight_rounding(kernels, c->type) * c->n_tokens *
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
    guarded sums = guard(tkv_sum_floats(c->type, d, c->n_rows) * sizeof(float));
    float *w = (float *)weights.data + 1;
    fill_gauss(&seed, (size_t)(c->n_rows * d), before);
    memset(sums.data, 0, sums.bytes);
    memcpy(sums.data, before, (size_t)(c->n_rows * d) * sizeof *before);
    memset(w, 0, (size_t)c->n_rows * TKV_PAGE_TOKENS * sizeof *w);
    for (int r = 0; r < c->n_rows; r++) {
        rescale[r] = (float)random_uniform(&seed);
        for (int t = 0; t < c->n_tokens; t++) {
            w[r * TKV_PAGE_TOKENS + t] = expf(2.0f * random_gauss(&seed));
        }
    }
    const tkv_page_read read = {c->type, d, c->n_tokens, page.data, page.data};
    kernels->accumulate(&read, c->n_rows, w, rescale, (float *)sums.data, scratch.data);
    tkv_join_sums(c->type, d, c->n_rows, (float *)sums.data);
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

static void check_products(const tkv_kernels *kernels, const product_case *c, int index)
{
    check_scores(kernels, c, seed_of((uint64_t)index));
    check_accumulate(kernels, c, seed_of((uint64_t)index + 10000));
}

static void products_are_within_bounds(const tkv_kernels *kernels)
{
    const int tokens[] = {1, 15, 16, 33, 64};
    for (int i = 0; i < 2 * TKV_TYPE_COUNT * N_PAGE_HEAD_DIMS; i++) {
        const int type = i % TKV_TYPE_COUNT;
        const int d = i / TKV_TYPE_COUNT % N_PAGE_HEAD_DIMS;
        const product_case c = {(tkv_type)type, page_head_dims[d], 1 + (3 * d + 5 * type) % 16,
                                tokens[(d + type) % 5],
                                i < TKV_TYPE_COUNT * N_PAGE_HEAD_DIMS ? 1 : N_FINITE_KINDS};
        check_products(kernels, &c, i);
    }
}

/* Every number of query heads a group, every filling of a page, the smallest and largest heads. */
static void products_of_all_shapes_are_within_bounds(const tkv_kernels *kernels)
{
    const int head_dims[] = {16, 32, 48, 144, 1008, 1024};
    for (int i = 0; i < TKV_TYPE_COUNT * TKV_PAGE_TOKENS; i++) {
        const product_case c = {(tkv_type)(i % TKV_TYPE_COUNT), 64, 1 + i / TKV_TYPE_COUNT % 16,
                                1 + i / TKV_TYPE_COUNT, 1};
        check_products(kernels, &c, i + 1000);
    }
    for (int i = 0; i < TKV_TYPE_COUNT * 6; i++) {
        const product_case c = {(tkv_type)(i % TKV_TYPE_COUNT), head_dims[i / TKV_TYPE_COUNT],
                                i % 2 ? 3 : 16, 64 - i % 3, i % 2 ? 1 : N_FINITE_KINDS};
        check_products(kernels, &c, i + 2000);
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
    uint64_t seed = seed_of(77);
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
    static float sums[2 * N_ERROR_ROWS * ERROR_DIM];
    float rescale[N_ERROR_ROWS] = {0.0f};
    uint64_t seed = seed_of(78);
    added_error error = {0.0, 0.0};
    guarded page = make_gauss_page(type, TKV_ORDER_VALUE, &seed, x, coded);
    void *scratch = allocate(kernels->scratch_bytes(ERROR_DIM, N_ERROR_ROWS));
    for (int i = 0; i < N_ERROR_ROWS * TKV_PAGE_TOKENS; i++) {
        weights[i] = expf(3.0f * random_gauss(&seed));
    }
    memset(sums, 0, sizeof sums);
    const tkv_page_read read = {type, ERROR_DIM, TKV_PAGE_TOKENS, page.data, NULL};
    kernels->accumulate(&read, N_ERROR_ROWS, weights, rescale, sums, scratch);
    tkv_join_sums(type, ERROR_DIM, N_ERROR_ROWS, sums);
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

/* Pages of any bits at all, as a damaged file may hold, and queries that a rotation made infinite:
 * whatever comes out, nothing else is touched and no integer overflows. */
static void check_hostile_page(const tkv_kernels *kernels, tkv_type type, int fill, uint64_t seed)
{
    enum { DIM = 80, ROWS = 3 };
    const float strange[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-45f, 0.0f};
    guarded page = guard(tkv_page_bytes(type, DIM));
    guarded prepared = guard(kernels->query_bytes(type, DIM, ROWS));
    guarded scratch = guard(kernels->scratch_bytes(DIM, ROWS));
    guarded scores = guard(ROWS * TKV_PAGE_TOKENS * sizeof(float));
    guarded sums = guard(tkv_sum_floats(type, DIM, ROWS) * sizeof(float));
    guarded decoded = guard(TKV_PAGE_TOKENS * DIM * sizeof(float));
    float queries[ROWS * DIM];
    const float rescale[ROWS] = {1.0f, 0.5f, 0.0f};
    const tkv_page_span span = {type, TKV_ORDER_KEY, DIM, 0, TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    const tkv_page_read read = {type, DIM, TKV_PAGE_TOKENS, page.data, page.data};
    for (size_t i = 0; i < page.bytes; i++) {
        page.data[i] = (uint8_t)(fill < 256 ? (uint64_t)fill : random_bits(&seed));
    }
    for (int i = 0; i < ROWS * DIM; i++) {
        queries[i] = i % 3 ? random_gauss(&seed) : strange[random_below(&seed, 7)];
    }
    memset(sums.data, 0, sums.bytes);
    kernels->decode(&span, page.data, (float *)decoded.data, DIM);
    kernels->prepare_queries(type, DIM, ROWS, queries, prepared.data);
    kernels->scores(&read, ROWS, prepared.data, (float *)scores.data, scratch.data);
    for (int i = 0; i < ROWS * TKV_PAGE_TOKENS; i++) {
        ((float *)scores.data)[i] = (float)random_uniform(&seed);
    }
    kernels->accumulate(&read, ROWS, (float *)scores.data, rescale, (float *)sums.data,
                        scratch.data);
    release(&page);
    release(&prepared);
    release(&scratch);
    release(&scores);
    release(&sums);
    release(&decoded);
}

static void hostile_pages_do_no_harm(const tkv_kernels *kernels)
{
    const int fills[] = {0x00, 0xff, 0x7c, 0x80, 256, 256, 256};
    for (int i = 0; i < TKV_TYPE_COUNT * 7; i++) {
        check_hostile_page(kernels, (tkv_type)(i % TKV_TYPE_COUNT), fills[i / TKV_TYPE_COUNT],
                           seed_of((uint64_t)i + 3000));
    }
}

static void products(void **state)
{
    (void)state;
    on_all_tables(products_are_within_bounds);
    on_all_tables(products_of_all_shapes_are_within_bounds);
}

static void error_shares(void **state)
{
    (void)state;
    on_all_tables(kernels_add_little_to_the_error);
}

static void hostile_pages(void **state)
{
    (void)state;
    on_all_tables(hostile_pages_do_no_harm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products), cmocka_unit_test(error_shares),
                                       cmocka_unit_test(hostile_pages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
