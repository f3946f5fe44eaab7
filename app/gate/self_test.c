#include "gate/self_test.h"

#include "base/error.h"
#include "format/codec.h"
#include "kernels/sums.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576, 16};

enum {
    N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims,
    MAX_DIM = 576,
    MAX_QUERIES = 9,
    N_ROW_KINDS = 6
};

/* Relative to the norms of query and key, and to the sum of the magnitudes that were added: far
 * below the error of the codes (as in tests/conformance). */
static const double SCORE_BOUND = 2e-6;
static const double SUM_BOUND = 4e-6;
static const double SOFTMAX_BOUND = 2e-5;

/* What the reference made of the test's rows when it agreed with the independent decoder and
 * encoder of tests/vectors. */
typedef struct known_digest {
    uint64_t pages;
    uint64_t rows;
} known_digest;

static const known_digest known_digests[TKV_TYPE_COUNT] = {
    [TKV_TYPE_F16] = {0xef44426c532249a8, 0xc371b350dc8a3fb9},
    [TKV_TYPE_TURBO8] = {0xc97bb6aaf123c09b, 0x383b1f9439611a71},
    [TKV_TYPE_TURBO4] = {0x82e2f5b29430cd39, 0x1a034b2b5b957420},
    [TKV_TYPE_TURBO3] = {0xa41322266a3ba3e9, 0x51fcf93c5e06a654},
    [TKV_TYPE_TURBO2] = {0xf91a437cd877cdeb, 0xda4281ad754b485b},
    [TKV_TYPE_TRELLIS3] = {0xaa4768fb3e9f9efc, 0x4d06f7f4eb5eac79},
    [TKV_TYPE_TRELLIS2] = {0x2c3ef94bbddecd2e, 0xa748788c7843bfc5},
    [TKV_TYPE_TURBO4Q] = {0x0e33f27148dd52d6, 0x253ae31d808fb822},
    [TKV_TYPE_TURBO3Q] = {0x1c1a05fcc13fad88, 0x54d9dc1fd820deee},
};

/* A test under way. The buffers hold a page of the largest size. */
typedef struct bench {
    const tkv_kernels *kernels;
    tkv_self_test *test;
    uint64_t seed;
    float *x;              /* [TKV_PAGE_TOKENS][MAX_DIM] */
    float *rows[2];        /* likewise, decoded: expected, found */
    uint32_t *pages[2];    /* expected, found */
    float *queries;        /* [MAX_QUERIES][MAX_DIM] */
    float *sums;           /* as tkv_sum_floats says */
    float *before;         /* likewise */
    known_digest *digests; /* [TKV_TYPE_COUNT] of what was found */
} bench;

static const char *const kind_names[TKV_KERNEL_KINDS] = {
    "rotate", "softmax", "encode", "decode", "scores", "accumulate", "attention"};

const char *tkv_kernel_kind_name(tkv_kernel_kind kind)
{
    return kind_names[kind];
}

bool tkv_kernel_kind_has_types(tkv_kernel_kind kind)
{
    return kind >= TKV_KERNEL_ENCODE;
}

/* SplitMix64. */
static uint64_t next_bits(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Nearly Gaussian, and the same float everywhere: sums of integers, scaled by a power of two. */
static float next_value(uint64_t *seed)
{
    const uint64_t bits = next_bits(seed);
    const int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) +
                    (int)(bits >> 48);
    return (float)(sum - 131070) * 0x1p-15f;
}

static void fill(uint64_t *seed, int n, float *x)
{
    for (int i = 0; i < n; i++) {
        x[i] = next_value(seed);
    }
}

/* Rows of several kinds: like Gaussian, a spike, zero, constant, tiny, large. */
static void fill_rows(uint64_t *seed, int head_dim, float *x)
{
    for (int i = 0; i < TKV_PAGE_TOKENS; i++) {
        for (int j = 0; j < head_dim; j++) {
            const float value = next_value(seed);
            const float by_kind[N_ROW_KINDS] = {
                value,           j == i % head_dim ? 8.0f : 0.0f, 0.0f, 1.0f, value * 0x1p-12f,
                value * 0x1p+10f};
            x[i * head_dim + j] = by_kind[i % N_ROW_KINDS];
        }
    }
}

/* FNV-1a. */
static uint64_t digest_bytes(uint64_t digest, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++) {
        digest = (digest ^ bytes[i]) * 0x100000001b3u;
    }
    return digest;
}

static void count(bench *b, tkv_kernel_kind kind, tkv_type type, int head_dim, bool has_passed,
                  const char *detail)
{
    tkv_kernel_result *result = &b->test->results[kind][type];
    result->n_cases++;
    if (!has_passed && result->n_failed++ == 0) {
        const bool has_type = tkv_kernel_kind_has_types(kind);
        snprintf(result->reason, sizeof result->reason, "%s%s%s, head_dim %d: %s", kind_names[kind],
                 has_type ? " of " : "", has_type ? tkv_type_get_info(type)->name : "", head_dim,
                 detail);
    }
}

static void test_rotation(bench *b, int head_dim)
{
    const int n_rows = 5;
    const size_t bytes = (size_t)(n_rows * head_dim) * sizeof *b->x;
    fill(&b->seed, n_rows * head_dim, b->x);
    memcpy(b->rows[0], b->x, bytes);
    memcpy(b->rows[1], b->x, bytes);
    for (int i = 0; i < n_rows; i++) {
        tkv_rotate_row(head_dim, b->rows[0] + i * head_dim);
    }
    b->kernels->rotate(head_dim, n_rows, b->rows[1]);
    count(b, TKV_KERNEL_ROTATE, 0, head_dim, memcmp(b->rows[0], b->rows[1], bytes) == 0,
          "other bits than the reference");
    b->kernels->unrotate(head_dim, n_rows, b->rows[1]);
    bool is_back = true;
    for (int i = 0; i < n_rows * head_dim; i++) {
        is_back = is_back && fabsf(b->rows[1][i] - b->x[i]) < 1e-5f;
    }
    count(b, TKV_KERNEL_ROTATE, 0, head_dim, is_back, "does not rotate back");
}

/* Encodes a page and decodes it; the rest of the test uses the reference's page. */
static void test_coding(bench *b, tkv_type type, tkv_page_order order, int head_dim)
{
    const size_t page_bytes = tkv_page_bytes(type, head_dim);
    const size_t row_bytes = (size_t)(TKV_PAGE_TOKENS * head_dim) * sizeof *b->x;
    const tkv_page_span span = {type, order, head_dim, 0, TKV_PAGE_TOKENS, TKV_EFFORT_DEFAULT};
    /* Of its own, so that the digest of a type does not depend on what else is tested. */
    uint64_t seed = (uint64_t)(type * 2 + (int)order) << 32 | (uint64_t)head_dim;
    fill_rows(&seed, head_dim, b->x);
    memset(b->pages[1], 0xa5, page_bytes);
    memset(b->rows[1], 0xa5, row_bytes);
    tkv_kernels_scalar.encode(&span, b->x, (size_t)head_dim, b->pages[0]);
    tkv_kernels_scalar.decode(&span, b->pages[0], b->rows[0], (size_t)head_dim);
    b->kernels->encode(&span, b->x, (size_t)head_dim, b->pages[1]);
    b->kernels->decode(&span, b->pages[0], b->rows[1], (size_t)head_dim);
    count(b, TKV_KERNEL_ENCODE, type, head_dim, memcmp(b->pages[0], b->pages[1], page_bytes) == 0,
          "other bits than the reference");
    count(b, TKV_KERNEL_DECODE, type, head_dim, memcmp(b->rows[0], b->rows[1], row_bytes) == 0,
          "other bits than the reference");
    b->digests[type].pages = digest_bytes(b->digests[type].pages, b->pages[1], page_bytes);
    b->digests[type].rows = digest_bytes(b->digests[type].rows, b->rows[1], row_bytes);
}

/* The rows of the reference's page in the domain of the codes, into rows[0]. */
static void dequantise_page(bench *b, tkv_type type, tkv_page_order order, int head_dim)
{
    for (int t = 0; type != TKV_TYPE_F16 && t < TKV_PAGE_TOKENS; t++) {
        tkv_row_codes row;
        tkv_unpack_slot(type, order, head_dim, t, b->pages[0], &row);
        tkv_dequantise_row(type, head_dim, &row, b->rows[0] + t * head_dim);
    }
}

static double norm_of(int n, const float *x)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

/* What float arithmetic leaves, and what rounding the query, and for some types its sketch, may
 * change (Cauchy and Schwarz). */
static double score_bound(const bench *b, tkv_type type, int head_dim, const float *query,
                          double key_norm)
{
    double largest = 0.0;
    for (int j = 0; j < head_dim; j++) {
        largest = fmax(largest, fabs((double)query[j]));
    }
    const double rounding =
        2.0 * (double)tkv_query_rounding(b->kernels, type) * largest * sqrt(head_dim);
    return (SCORE_BOUND * norm_of(head_dim, query) + rounding) * key_norm;
}

/* The largest error of scores, in units of the bound. */
static double score_error(const bench *b, tkv_type type, int head_dim, int n_queries, int n_tokens,
                          const float *scores)
{
    double worst = 0.0;
    for (int r = 0; r < n_queries; r++) {
        const float *q = b->queries + r * head_dim;
        for (int t = 0; t < n_tokens; t++) {
            const float *key = b->rows[0] + t * head_dim;
            double sum = 0.0;
            for (int j = 0; j < head_dim; j++) {
                sum += (double)q[j] * (double)key[j];
            }
            const double bound = score_bound(b, type, head_dim, q, norm_of(head_dim, key));
            const double error = fabs((double)scores[r * TKV_PAGE_TOKENS + t] - sum);
            if (!(error <= bound)) {
                worst = fmax(worst, bound > 0.0 ? error / bound : INFINITY);
                worst = isnan(error) ? INFINITY : worst;
            }
        }
    }
    return worst;
}

static void test_scores(bench *b, tkv_type type, int head_dim, int n_queries, int n_tokens)
{
    const tkv_kernels *k = b->kernels;
    float scores[MAX_QUERIES * TKV_PAGE_TOKENS];
    char detail[64];
    void *prepared = malloc(k->query_bytes(type, head_dim, n_queries));
    void *scratch = malloc(k->scratch_bytes(head_dim, n_queries));
    double worst = INFINITY;
    fill(&b->seed, n_queries * head_dim, b->queries);
    dequantise_page(b, type, TKV_ORDER_KEY, head_dim);
    if (prepared && scratch) {
        k->prepare_queries(type, head_dim, n_queries, b->queries, prepared);
        const tkv_page_read read = {type, head_dim, n_tokens, b->pages[0], NULL};
        k->scores(&read, n_queries, prepared, scores, scratch);
        worst = score_error(b, type, head_dim, n_queries, n_tokens, scores);
    }
    snprintf(detail, sizeof detail, "error %.3g times the bound", worst);
    count(b, TKV_KERNEL_SCORES, type, head_dim, worst <= 1.0, detail);
    free(prepared);
    free(scratch);
}

/* What rounding the weights may change: each by a share of the largest one times a level, and no
 * level is larger than four times the row's root mean square. */
static double sum_rounding(const bench *b, tkv_type type, int head_dim, const float *weights)
{
    double largest = 0.0;
    for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
        const double norm = norm_of(head_dim, b->rows[0] + t * head_dim);
        largest = fmax(largest, (double)weights[t] * norm);
    }
    return (double)tkv_weight_rounding(b->kernels, type) * TKV_PAGE_TOKENS * 4.0 * largest /
           sqrt(head_dim);
}

static double sum_error(const bench *b, tkv_type type, int head_dim, int n_queries,
                        const float *weights, const float *rescale)
{
    double worst = 0.0;
    for (int r = 0; r < n_queries; r++) {
        const double rounding = sum_rounding(b, type, head_dim, weights + r * TKV_PAGE_TOKENS);
        for (int j = 0; j < head_dim; j++) {
            double sum = (double)rescale[r] * (double)b->before[r * head_dim + j];
            double size = fabs(sum);
            for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
                const double term =
                    (double)weights[r * TKV_PAGE_TOKENS + t] * (double)b->rows[0][t * head_dim + j];
                sum += term;
                size += fabs(term);
            }
            const double error = fabs((double)b->sums[r * head_dim + j] - sum);
            const double bound = SUM_BOUND * size + rounding;
            if (!(error <= bound)) {
                worst = isnan(error) || bound <= 0.0 ? INFINITY : fmax(worst, error / bound);
            }
        }
    }
    return worst;
}

static void test_accumulate(bench *b, tkv_type type, int head_dim, int n_queries, int n_tokens)
{
    const tkv_kernels *k = b->kernels;
    float weights[MAX_QUERIES * TKV_PAGE_TOKENS] = {0};
    float rescale[MAX_QUERIES];
    char detail[64];
    void *scratch = malloc(k->scratch_bytes(head_dim, n_queries));
    double worst = INFINITY;
    fill(&b->seed, n_queries * head_dim, b->before);
    memset(b->sums, 0, tkv_sum_floats(type, head_dim, n_queries) * sizeof *b->sums);
    memcpy(b->sums, b->before, (size_t)(n_queries * head_dim) * sizeof *b->sums);
    for (int r = 0; r < n_queries; r++) {
        rescale[r] = fabsf(next_value(&b->seed)) * 0.25f;
        for (int t = 0; t < n_tokens; t++) {
            weights[r * TKV_PAGE_TOKENS + t] = fabsf(next_value(&b->seed));
        }
    }
    dequantise_page(b, type, TKV_ORDER_VALUE, head_dim);
    if (scratch) {
        const tkv_page_read read = {type, head_dim, n_tokens, b->pages[0], NULL};
        k->accumulate(&read, n_queries, weights, rescale, b->sums, scratch);
        tkv_join_sums(type, head_dim, n_queries, b->sums);
        worst = sum_error(b, type, head_dim, n_queries, weights, rescale);
    }
    snprintf(detail, sizeof detail, "error %.3g times the bound", worst);
    count(b, TKV_KERNEL_ACCUMULATE, type, head_dim, worst <= 1.0, detail);
    free(scratch);
}

static bool is_near(float a, float b)
{
    return fabs((double)a - (double)b) <= SOFTMAX_BOUND * (1.0 + fabs((double)b));
}

static void test_softmax(bench *b, float scale, float softcap)
{
    float scores[2][MAX_QUERIES * TKV_PAGE_TOKENS];
    float maximum[2][MAX_QUERIES];
    float sum[2][MAX_QUERIES];
    float rescale[2][MAX_QUERIES];
    int first[MAX_QUERIES];
    int end[MAX_QUERIES];
    bool has_passed = true;
    fill(&b->seed, MAX_QUERIES * TKV_PAGE_TOKENS, scores[0]);
    memcpy(scores[1], scores[0], sizeof scores[0]);
    for (int r = 0; r < MAX_QUERIES; r++) {
        first[r] = r;
        end[r] = r == 3 ? 0 : TKV_PAGE_TOKENS - 5 * r;
        maximum[0][r] = maximum[1][r] = r % 2 ? -INFINITY : next_value(&b->seed);
        sum[0][r] = sum[1][r] = r % 2 ? 0.0f : 2.0f;
    }
    const tkv_softmax_span span = {MAX_QUERIES, first, end, scale, softcap};
    tkv_kernels_scalar.softmax(&span, scores[0], maximum[0], sum[0], rescale[0]);
    b->kernels->softmax(&span, scores[1], maximum[1], sum[1], rescale[1]);
    for (int r = 0; r < MAX_QUERIES; r++) {
        has_passed = has_passed &&
                     (maximum[1][r] == maximum[0][r] || is_near(maximum[1][r], maximum[0][r])) &&
                     is_near(sum[1][r], sum[0][r]) && is_near(rescale[1][r], rescale[0][r]);
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            const float weight = scores[1][r * TKV_PAGE_TOKENS + t];
            const bool is_seen = t >= first[r] && t < end[r];
            has_passed = has_passed && is_near(weight, scores[0][r * TKV_PAGE_TOKENS + t]) &&
                         (is_seen || weight == 0.0f);
        }
    }
    count(b, TKV_KERNEL_SOFTMAX, 0, 0, has_passed, "differs from the reference");
}

/* Every back end codes bit for bit alike, so that the digests are everybody's. */
static void check_digests(bench *b)
{
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        count(b, TKV_KERNEL_ENCODE, (tkv_type)type, MAX_DIM,
              b->digests[type].pages == known_digests[type].pages, "not the known answer");
        count(b, TKV_KERNEL_DECODE, (tkv_type)type, MAX_DIM,
              b->digests[type].rows == known_digests[type].rows, "not the known answer");
    }
}

static void run_all(bench *b)
{
    const int tokens[] = {64, 33, 16, 1};
    int n = 0;
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        test_rotation(b, head_dims[d]);
        for (int type = 0; type < TKV_TYPE_COUNT; type++, n++) {
            const int n_queries = 1 + n % MAX_QUERIES;
            test_coding(b, (tkv_type)type, TKV_ORDER_KEY, head_dims[d]);
            test_scores(b, (tkv_type)type, head_dims[d], n_queries, tokens[n % 4]);
            test_coding(b, (tkv_type)type, TKV_ORDER_VALUE, head_dims[d]);
            test_accumulate(b, (tkv_type)type, head_dims[d], n_queries, tokens[n % 4]);
        }
    }
    for (int i = 0; i < 16; i++) {
        test_softmax(b, i % 4 ? 0.25f * (float)i : 20.0f, i % 2 ? 5.0f : 0.0f);
    }
    check_digests(b);
}

static bool is_complete(const tkv_kernels *k)
{
    return k->rotate && k->unrotate && k->encode && k->decode && k->query_bytes &&
           k->prepare_queries && k->scratch_bytes && k->scores && k->softmax && k->accumulate;
}

tkv_status tkv_self_test_run(const tkv_kernels *kernels, tkv_self_test *test, tkv_error *error)
{
    memset(test, 0, sizeof *test);
    test->kinds = TKV_KERNELS_OF_CPU;
    if (!is_complete(kernels)) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "kernels '%s' are not complete", kernels->name);
    }
    const size_t row = MAX_DIM * sizeof(float);
    const size_t page = TKV_PAGE_TOKENS * row;
    known_digest digests[TKV_TYPE_COUNT];
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        digests[i] = (known_digest){0xcbf29ce484222325u, 0xcbf29ce484222325u};
    }
    bench b = {.kernels = kernels,
               .test = test,
               .seed = 1,
               .x = malloc(page),
               .rows = {malloc(page), malloc(page)},
               .pages = {aligned_alloc(64, page), aligned_alloc(64, page)},
               .queries = malloc(MAX_QUERIES * row),
               .sums = malloc(2 * MAX_QUERIES * row),
               .before = malloc(MAX_QUERIES * row),
               .digests = digests};
    void *const buffers[] = {b.x,        b.rows[0], b.rows[1], b.pages[0],
                             b.pages[1], b.queries, b.sums,    b.before};
    tkv_status status = TKV_OK;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers && status == TKV_OK; i++) {
        status = buffers[i] ? TKV_OK
                            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the self-test");
    }
    if (status == TKV_OK) {
        run_all(&b);
    }
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        free(buffers[i]);
    }
    return status;
}

bool tkv_self_test_passed(const tkv_self_test *test, tkv_type type)
{
    for (int kind = 0; kind < TKV_KERNEL_KINDS; kind++) {
        for (int i = 0; i < TKV_TYPE_COUNT; i++) {
            const tkv_kernel_result *result = &test->results[kind][i];
            const bool has_types = tkv_kernel_kind_has_types((tkv_kernel_kind)kind);
            const bool matters = has_types ? type == TKV_TYPE_COUNT || i == (int)type : i == 0;
            if ((test->kinds >> kind & 1u) && matters &&
                (result->n_cases == 0 || result->n_failed > 0)) {
                return false;
            }
        }
    }
    return true;
}
