/* Scores and sums against double precision on what the codes stand for. */
#include "base/half.h"
#include "base/random.h"
#include "check/check.h"
#include "format/codec.h"
#include "kernels/sums.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* What float arithmetic leaves: of a score relative to the norms of query and key, of a sum to the
 * magnitudes that were added. */
static const double SCORE_BOUND = 2e-6;
static const double SUM_BOUND = 4e-6;

/* A call of `scores` or `accumulate`. */
typedef struct product_case {
    tkv_type type;
    int head_dim;
    int n_rows;   /* queries */
    int n_tokens; /* in the page */
    int n_kinds;  /* of the rows in it */
    uint64_t seed;
} product_case;

static void name_products(tkv_check *check, tkv_operation operation, const product_case *c)
{
    tkv_check_name(check, operation, c->type, c->head_dim,
                   "%d queries, %d tokens, %d kinds of rows, seed %" PRIu64, c->n_rows, c->n_tokens,
                   c->n_kinds, c->seed);
}

/* A page of which only the first n_tokens slots are in use: what the others hold must not matter,
 * so they hold NaN. `decoded` [n_tokens][head_dim] receives its rows in the domain of the codes. */
static void make_page(const product_case *c, tkv_page_order order, uint64_t *seed, void *page,
                      float *decoded)
{
    const size_t head_dim = (size_t)c->head_dim;
    const tkv_page_span span = {c->type, order, c->head_dim, 0, c->n_tokens, TKV_EFFORT_FAST};
    memset(page, 0xff, tkv_page_bytes(c->type, c->head_dim));
    tkv_check_rows(seed, c->n_tokens, c->head_dim, head_dim, c->n_kinds, decoded);
    tkv_kernels_scalar.encode(&span, decoded, head_dim, page);
    tkv_kernels_scalar.decode(&span, page, decoded, head_dim);
    for (int t = 0; c->type != TKV_TYPE_F16 && t < c->n_tokens; t++) {
        tkv_row_codes row;
        tkv_unpack_slot(c->type, order, c->head_dim, t, page, &row);
        tkv_dequantise_row(c->type, c->head_dim, &row, decoded + (size_t)t * head_dim);
    }
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

/* An error in units of its bound. */
static double share_of(double error, double bound)
{
    return error == 0.0 ? 0.0 : error / bound;
}

/* The largest error of the scores of one query. */
static double score_error(const tkv_kernels *kernels, const product_case *c, const void *page,
                          const float *keys, const float *query, const float *scores)
{
    double worst = 0.0;
    const double norm = tkv_check_norm(c->head_dim, query);
    for (int t = 0; t < c->n_tokens; t++) {
        const float *key = keys + t * c->head_dim;
        double sum = 0.0;
        for (int j = 0; j < c->head_dim; j++) {
            sum += (double)query[j] * (double)key[j];
        }
        const double key_norm = tkv_check_norm(c->head_dim, key);
        const double residual = size_of_token(c, TKV_ORDER_KEY, t, page).residual;
        const double bound =
            SCORE_BOUND * norm * key_norm + score_rounding(kernels, c, query, key_norm, residual);
        worst = tkv_check_worse(worst, share_of(fabs((double)scores[t] - sum), bound));
    }
    return worst;
}

static void check_scores(tkv_check *check, const tkv_kernels *kernels, const product_case *c)
{
    const int d = c->head_dim;
    tkv_check_memory memory = {.check = check};
    float *keys = tkv_check_take(&memory, (size_t)(c->n_tokens * d) * sizeof *keys);
    void *page = tkv_check_take(&memory, tkv_page_bytes(c->type, d));
    float *queries = tkv_check_take_floats(&memory, (size_t)(c->n_rows * d));
    void *prepared = tkv_check_take(&memory, kernels->query_bytes(c->type, d, c->n_rows));
    void *scratch = tkv_check_take(&memory, kernels->scratch_bytes(d, c->n_rows));
    float *scores = tkv_check_take(&memory, (size_t)c->n_rows * TKV_PAGE_TOKENS * sizeof *scores);
    if (tkv_check_is_on(check)) {
        uint64_t seed = c->seed;
        double worst = 0.0;
        make_page(c, TKV_ORDER_KEY, &seed, page, keys);
        tkv_random_fill(&seed, (size_t)(c->n_rows * d), queries);
        kernels->prepare_queries(c->type, d, c->n_rows, queries, prepared);
        const tkv_page_read read = {c->type, d, c->n_tokens, page, NULL};
        kernels->scores(&read, c->n_rows, prepared, scores, scratch);
        for (int r = 0; r < c->n_rows; r++) {
            const double error =
                score_error(kernels, c, page, keys, queries + r * d, scores + r * TKV_PAGE_TOKENS);
            worst = tkv_check_worse(worst, error);
        }
        name_products(check, TKV_OPERATION_SCORES, c);
        tkv_check_tell(check, &memory, worst, 1.0, NULL);
    }
    tkv_check_give_back(&memory);
}

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

/* The largest error of one row of sums; `before` is what it was already times its factor. */
static double sum_error(const product_case *c, const float *values, const float *weights,
                        float rescale, const float *before, const float *sums, double rounding)
{
    double worst = 0.0;
    for (int j = 0; j < c->head_dim; j++) {
        double sum = (double)rescale * (double)before[j];
        double size = fabs(sum);
        for (int t = 0; t < c->n_tokens; t++) {
            const double term = (double)weights[t] * (double)values[t * c->head_dim + j];
            sum += term;
            size += fabs(term);
        }
        const double error = fabs((double)sums[j] - sum);
        worst = tkv_check_worse(worst, share_of(error, SUM_BOUND * size + rounding));
    }
    return worst;
}

/* Weights as a softmax gives, few large and most small, for the tokens of a page. */
static void fill_weights(uint64_t *seed, const product_case *c, float spread, float *weights)
{
    memset(weights, 0, (size_t)c->n_rows * TKV_PAGE_TOKENS * sizeof *weights);
    for (int i = 0; i < c->n_rows * c->n_tokens; i++) {
        weights[i / c->n_tokens * TKV_PAGE_TOKENS + i % c->n_tokens] =
            expf(spread * tkv_random_near_gauss(seed));
    }
}

static void check_accumulate(tkv_check *check, const tkv_kernels *kernels, const product_case *c)
{
    enum { MAX_ROWS = 16 };
    const int d = c->head_dim;
    const size_t n = (size_t)(c->n_rows * d);
    const size_t n_sums = tkv_sum_floats(c->type, d, c->n_rows);
    tkv_check_memory memory = {.check = check};
    float *values = tkv_check_take(&memory, (size_t)(c->n_tokens * d) * sizeof *values);
    float *before = tkv_check_take(&memory, n * sizeof *before);
    void *page = tkv_check_take(&memory, tkv_page_bytes(c->type, d));
    float *weights = tkv_check_take_floats(&memory, (size_t)c->n_rows * TKV_PAGE_TOKENS);
    void *scratch = tkv_check_take(&memory, kernels->scratch_bytes(d, c->n_rows));
    float *sums = tkv_check_take(&memory, n_sums * sizeof *sums);
    if (tkv_check_is_on(check)) {
        uint64_t seed = c->seed + 10000;
        float rescale[MAX_ROWS];
        double worst = 0.0;
        make_page(c, TKV_ORDER_VALUE, &seed, page, values);
        tkv_random_fill(&seed, n, before);
        fill_weights(&seed, c, 2.0f, weights);
        memset(sums, 0, n_sums * sizeof *sums);
        memcpy(sums, before, n * sizeof *sums);
        for (int r = 0; r < c->n_rows; r++) {
            rescale[r] = (float)tkv_random_uniform(&seed);
        }
        const tkv_page_read read = {c->type, d, c->n_tokens, page, page};
        kernels->accumulate(&read, c->n_rows, weights, rescale, sums, scratch);
        tkv_join_sums(c->type, d, c->n_rows, sums);
        for (int r = 0; r < c->n_rows; r++) {
            const float *of_row = weights + r * TKV_PAGE_TOKENS;
            const double error = sum_error(c, values, of_row, rescale[r], before + r * d,
                                           sums + r * d, sum_rounding(kernels, c, of_row, page));
            worst = tkv_check_worse(worst, error);
        }
        name_products(check, TKV_OPERATION_ACCUMULATE, c);
        tkv_check_tell(check, &memory, worst, 1.0, NULL);
    }
    tkv_check_give_back(&memory);
}

static void check_both(tkv_check *check, const tkv_kernels *kernels, const product_case *c)
{
    if (tkv_check_takes_dim(check, c->head_dim) && tkv_check_wants(check, TKV_OPERATION_SCORES)) {
        check_scores(check, kernels, c);
    }
    if (tkv_check_takes_dim(check, c->head_dim) &&
        tkv_check_wants(check, TKV_OPERATION_ACCUMULATE)) {
        check_accumulate(check, kernels, c);
    }
}

/* Every type on every size. */
static void check_answers(tkv_check *check, const tkv_kernels *kernels)
{
    const int tokens[] = {64, 33, 16, 1};
    for (int i = 0; i < TKV_TYPE_COUNT * TKV_CHECK_DIMS; i++) {
        const product_case c = {.type = (tkv_type)(i % TKV_TYPE_COUNT),
                                .head_dim = tkv_check_dims[i / TKV_TYPE_COUNT],
                                .n_rows = 1 + i % 9,
                                .n_tokens = tokens[i % 4],
                                .n_kinds = 1 + i % TKV_CHECK_FINITE_KINDS,
                                .seed = tkv_check_seed(check, i)};
        check_both(check, kernels, &c);
    }
}

static void check_sizes(tkv_check *check, const tkv_kernels *kernels)
{
    const int head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576, 16, 48, 240};
    const int tokens[] = {1, 15, 16, 33, 64};
    for (int i = 0; i < 2 * TKV_TYPE_COUNT * 11; i++) {
        const int type = i % TKV_TYPE_COUNT;
        const int d = i / TKV_TYPE_COUNT % 11;
        const product_case c = {.type = (tkv_type)type,
                                .head_dim = head_dims[d],
                                .n_rows = 1 + (3 * d + 5 * type) % 16,
                                .n_tokens = tokens[(d + type) % 5],
                                .n_kinds = i < TKV_TYPE_COUNT * 11 ? 1 : TKV_CHECK_FINITE_KINDS,
                                .seed = tkv_check_seed(check, 100 + i)};
        check_both(check, kernels, &c);
    }
}

/* Every number of query heads a group, every filling of a page, the smallest and largest heads. */
static void check_shapes(tkv_check *check, const tkv_kernels *kernels)
{
    const int head_dims[] = {16, 32, 48, 144, 1008, 1024};
    for (int i = 0; i < TKV_TYPE_COUNT * TKV_PAGE_TOKENS; i++) {
        const product_case c = {.type = (tkv_type)(i % TKV_TYPE_COUNT),
                                .head_dim = 64,
                                .n_rows = 1 + i / TKV_TYPE_COUNT % 16,
                                .n_tokens = 1 + i / TKV_TYPE_COUNT,
                                .n_kinds = 1,
                                .seed = tkv_check_seed(check, 1000 + i)};
        check_both(check, kernels, &c);
    }
    for (int i = 0; i < TKV_TYPE_COUNT * 6; i++) {
        const product_case c = {.type = (tkv_type)(i % TKV_TYPE_COUNT),
                                .head_dim = head_dims[i / TKV_TYPE_COUNT],
                                .n_rows = i % 2 ? 3 : 16,
                                .n_tokens = 64 - i % 3,
                                .n_kinds = i % 2 ? 1 : TKV_CHECK_FINITE_KINDS,
                                .seed = tkv_check_seed(check, 2000 + i)};
        check_both(check, kernels, &c);
    }
}

void tkv_check_products(tkv_check *check, const tkv_kernels *kernels)
{
    check_answers(check, kernels);
    if (check->params->mode == TKV_CHECK_ALL) {
        check_sizes(check, kernels);
        check_shapes(check, kernels);
    }
}

void tkv_check_products_shape(tkv_check *check, const tkv_kernels *kernels, tkv_type type,
                              int head_dim)
{
    const product_case c = {type,
                            head_dim,
                            TKV_CHECK_GROUP,
                            TKV_PAGE_TOKENS,
                            TKV_CHECK_FINITE_KINDS,
                            tkv_check_seed(check, head_dim)};
    check_both(check, kernels, &c);
}
