/* What kernels add to the error of the codes, and pages of any bits at all. */
#include "base/random.h"
#include "check/check.h"
#include "kernels/sums.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_ROWS = 16, DIM = 128, N_VALUES = TKV_PAGE_TOKENS * DIM, N_SCORES = 16 * TKV_PAGE_TOKENS };

/* What kernels add to the error of the codes is at most this share of it. */
static const double ADDED_SHARE = 0.03;

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

/* A page of Gaussian rows, and what they decode to in the domain of the codes. */
static void make_page(tkv_type type, tkv_page_order order, uint64_t *seed, void *page,
                      float *rotated, float *decoded)
{
    const tkv_page_span span = {type, order, DIM, 0, TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    for (int i = 0; i < N_VALUES; i++) {
        rotated[i] = tkv_random_gauss(seed);
    }
    tkv_kernels_scalar.encode(&span, rotated, DIM, page);
    tkv_kernels_scalar.decode(&span, page, decoded, DIM);
    tkv_kernels_scalar.rotate(DIM, TKV_PAGE_TOKENS, rotated);
    tkv_kernels_scalar.rotate(DIM, TKV_PAGE_TOKENS, decoded);
}

static added_error score_errors(const float *q, const float *x, const float *coded,
                                const float *scores)
{
    added_error error = {0.0, 0.0};
    for (int i = 0; i < N_SCORES; i++) {
        double sums[2] = {0.0, 0.0};
        for (int j = 0; j < DIM; j++) {
            const double factor = (double)q[i / TKV_PAGE_TOKENS * DIM + j];
            sums[0] += factor * (double)x[i % TKV_PAGE_TOKENS * DIM + j];
            sums[1] += factor * (double)coded[i % TKV_PAGE_TOKENS * DIM + j];
        }
        add_error(&error, sums[0], sums[1], (double)scores[i]);
    }
    return error;
}

static added_error sum_errors(const float *weights, const float *x, const float *coded,
                              const float *sums)
{
    added_error error = {0.0, 0.0};
    for (int i = 0; i < N_ROWS * DIM; i++) {
        double expected[2] = {0.0, 0.0};
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            const double weight = (double)weights[i / DIM * TKV_PAGE_TOKENS + t];
            expected[0] += weight * (double)x[t * DIM + i % DIM];
            expected[1] += weight * (double)coded[t * DIM + i % DIM];
        }
        add_error(&error, expected[0], expected[1], (double)sums[i]);
    }
    return error;
}

static void tell(tkv_check *check, const tkv_check_memory *memory, tkv_operation operation,
                 tkv_type type, added_error error)
{
    tkv_check_name(check, operation, type, DIM, "what it adds to the codes' error");
    tkv_check_tell(check, memory, error.kernel / error.codes, ADDED_SHARE, NULL);
}

static void check_scores(tkv_check *check, const tkv_kernels *kernels, tkv_type type)
{
    uint64_t seed = tkv_check_seed(check, 77);
    tkv_check_memory memory = {.check = check};
    float *x = tkv_check_take(&memory, N_VALUES * sizeof *x);
    float *coded = tkv_check_take(&memory, N_VALUES * sizeof *coded);
    float *q = tkv_check_take(&memory, N_ROWS * DIM * sizeof *q);
    float *scores = tkv_check_take(&memory, N_SCORES * sizeof *scores);
    void *page = tkv_check_take(&memory, tkv_page_bytes(type, DIM));
    void *prepared = tkv_check_take(&memory, kernels->query_bytes(type, DIM, N_ROWS));
    void *scratch = tkv_check_take(&memory, kernels->scratch_bytes(DIM, N_ROWS));
    if (tkv_check_is_on(check)) {
        make_page(type, TKV_ORDER_KEY, &seed, page, x, coded);
        for (int i = 0; i < N_ROWS * DIM; i++) {
            q[i] = tkv_random_gauss(&seed);
        }
        kernels->prepare_queries(type, DIM, N_ROWS, q, prepared);
        const tkv_page_read read = {type, DIM, TKV_PAGE_TOKENS, page, NULL};
        kernels->scores(&read, N_ROWS, prepared, scores, scratch);
        tell(check, &memory, TKV_OPERATION_SCORES, type, score_errors(q, x, coded, scores));
    }
    tkv_check_give_back(&memory);
}

/* With weights as a softmax gives: few large, most small. */
static void check_accumulate(tkv_check *check, const tkv_kernels *kernels, tkv_type type)
{
    uint64_t seed = tkv_check_seed(check, 78);
    tkv_check_memory memory = {.check = check};
    float *x = tkv_check_take(&memory, N_VALUES * sizeof *x);
    float *coded = tkv_check_take(&memory, N_VALUES * sizeof *coded);
    float *weights = tkv_check_take(&memory, N_SCORES * sizeof *weights);
    float *sums = tkv_check_take(&memory, 2 * N_ROWS * DIM * sizeof *sums);
    void *page = tkv_check_take(&memory, tkv_page_bytes(type, DIM));
    void *scratch = tkv_check_take(&memory, kernels->scratch_bytes(DIM, N_ROWS));
    if (tkv_check_is_on(check)) {
        const float rescale[N_ROWS] = {0.0f};
        make_page(type, TKV_ORDER_VALUE, &seed, page, x, coded);
        for (int i = 0; i < N_SCORES; i++) {
            weights[i] = expf(3.0f * tkv_random_gauss(&seed));
        }
        memset(sums, 0, 2 * N_ROWS * DIM * sizeof *sums);
        const tkv_page_read read = {type, DIM, TKV_PAGE_TOKENS, page, NULL};
        kernels->accumulate(&read, N_ROWS, weights, rescale, sums, scratch);
        tkv_join_sums(type, DIM, N_ROWS, sums);
        tell(check, &memory, TKV_OPERATION_ACCUMULATE, type, sum_errors(weights, x, coded, sums));
    }
    tkv_check_give_back(&memory);
}

void tkv_check_errors(tkv_check *check, const tkv_kernels *kernels)
{
    for (int type = TKV_TYPE_F16 + 1; type < TKV_TYPE_COUNT; type++) {
        if (tkv_check_wants(check, TKV_OPERATION_SCORES)) {
            check_scores(check, kernels, (tkv_type)type);
        }
        if (tkv_check_wants(check, TKV_OPERATION_ACCUMULATE)) {
            check_accumulate(check, kernels, (tkv_type)type);
        }
    }
}

/* Pages of any bits at all, as a damaged file may hold, and queries that a rotation made infinite:
 * whatever comes out, nothing else is touched and no integer overflows. */
enum { HOSTILE_DIM = 80, HOSTILE_ROWS = 3, RANDOM_FILL = 256 };

typedef struct hostile_page {
    void *page;
    void *prepared;
    void *scratch;
    float *scores;
    float *sums;
    float *decoded;
    float queries[HOSTILE_ROWS * HOSTILE_DIM];
} hostile_page;

static void use_page(const tkv_kernels *kernels, tkv_type type, uint64_t *seed, hostile_page *h)
{
    const float rescale[HOSTILE_ROWS] = {1.0f, 0.5f, 0.0f};
    const tkv_page_span span = {type, TKV_ORDER_KEY,   HOSTILE_DIM,
                                0,    TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    const tkv_page_read read = {type, HOSTILE_DIM, TKV_PAGE_TOKENS, h->page, h->page};
    kernels->decode(&span, h->page, h->decoded, HOSTILE_DIM);
    kernels->prepare_queries(type, HOSTILE_DIM, HOSTILE_ROWS, h->queries, h->prepared);
    kernels->scores(&read, HOSTILE_ROWS, h->prepared, h->scores, h->scratch);
    for (int i = 0; i < HOSTILE_ROWS * TKV_PAGE_TOKENS; i++) {
        h->scores[i] = (float)tkv_random_uniform(seed);
    }
    kernels->accumulate(&read, HOSTILE_ROWS, h->scores, rescale, h->sums, h->scratch);
}

static void check_hostile_page(tkv_check *check, const tkv_kernels *kernels, tkv_type type,
                               int fill, uint64_t seed)
{
    const float strange[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-45f, 0.0f};
    const size_t page_bytes = tkv_page_bytes(type, HOSTILE_DIM);
    const size_t sum_bytes = tkv_sum_floats(type, HOSTILE_DIM, HOSTILE_ROWS) * sizeof(float);
    tkv_check_memory m = {.check = check};
    hostile_page h = {
        .page = tkv_check_take(&m, page_bytes),
        .prepared = tkv_check_take(&m, kernels->query_bytes(type, HOSTILE_DIM, HOSTILE_ROWS)),
        .scratch = tkv_check_take(&m, kernels->scratch_bytes(HOSTILE_DIM, HOSTILE_ROWS)),
        .scores = tkv_check_take(&m, HOSTILE_ROWS * TKV_PAGE_TOKENS * sizeof(float)),
        .sums = tkv_check_take(&m, sum_bytes),
        .decoded = tkv_check_take(&m, TKV_PAGE_TOKENS * HOSTILE_DIM * sizeof(float))};
    if (tkv_check_is_on(check)) {
        for (size_t i = 0; i < page_bytes; i++) {
            ((uint8_t *)h.page)[i] =
                (uint8_t)(fill == RANDOM_FILL ? tkv_random_bits(&seed) : (uint64_t)fill);
        }
        for (int i = 0; i < HOSTILE_ROWS * HOSTILE_DIM; i++) {
            h.queries[i] =
                i % 3 ? tkv_random_near_gauss(&seed) : strange[tkv_random_below(&seed, 7)];
        }
        memset(h.sums, 0, sum_bytes);
        use_page(kernels, type, &seed, &h);
        tkv_check_name(check, TKV_OPERATION_DECODE, type, HOSTILE_DIM, "a page of any bits");
        tkv_check_tell(check, &m, 0.0, 0.0, NULL);
    }
    tkv_check_give_back(&m);
}

void tkv_check_hostile_pages(tkv_check *check, const tkv_kernels *kernels)
{
    const int fills[] = {0x00, 0xff, 0x7c, 0x80, RANDOM_FILL, RANDOM_FILL, RANDOM_FILL};
    const bool is_all = check->params->mode == TKV_CHECK_ALL;
    for (int i = 0; i < TKV_TYPE_COUNT * 7; i += is_all ? 1 : 4) {
        check_hostile_page(check, kernels, (tkv_type)(i % TKV_TYPE_COUNT),
                           fills[i / TKV_TYPE_COUNT], tkv_check_seed(check, 3000 + i));
    }
}
