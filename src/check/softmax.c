/* The softmax of one page against the reference's. */
#include "base/random.h"
#include "check/check.h"

#include <math.h>
#include <string.h>

enum { N_ROWS = 4, N_SCORES = N_ROWS * TKV_PAGE_TOKENS };

/* Of weights and factors; of sums, relative to them. */
static const double WEIGHT_BOUND = 1e-5;
static const double SUM_BOUND = 2e-5;

/* What a softmax starts from and ends with. */
typedef struct softmax_state {
    float scores[N_SCORES];
    float maximum[N_ROWS];
    float sum[N_ROWS];
    float rescale[N_ROWS];
} softmax_state;

static double relative(float found, float expected)
{
    return found == expected ? 0.0
                             : fabs((double)found - (double)expected) / fabs((double)expected);
}

/* The largest error in units of its bound. Weights of what a row does not see are 0. */
static double error_of(const tkv_softmax_span *span, const softmax_state *found,
                       const softmax_state *expected)
{
    double worst = 0.0;
    for (int r = 0; r < span->n_rows; r++) {
        const double rescale = (double)found->rescale[r] - (double)expected->rescale[r];
        worst = tkv_check_worse(worst, relative(found->maximum[r], expected->maximum[r]) / 1e-5);
        worst = tkv_check_worse(worst, relative(found->sum[r], expected->sum[r]) / SUM_BOUND);
        worst = tkv_check_worse(worst, fabs(rescale) / WEIGHT_BOUND);
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            const float weight = found->scores[r * TKV_PAGE_TOKENS + t];
            const float right = expected->scores[r * TKV_PAGE_TOKENS + t];
            const bool is_seen = t >= span->first[r] && t < span->end[r];
            worst = tkv_check_worse(worst, fabs((double)weight - (double)right) / WEIGHT_BOUND);
            worst = is_seen || weight == 0.0f ? worst : INFINITY;
        }
    }
    return worst;
}

/* Of what sees tokens, whatever their scores are, maximum and sum are numbers. */
static bool is_finite(const tkv_softmax_span *span, const softmax_state *found)
{
    bool is_finite = true;
    for (int r = 0; r < span->n_rows; r++) {
        is_finite = is_finite && (span->first[r] >= span->end[r] ||
                                  (isfinite(found->maximum[r]) && isfinite(found->sum[r])));
    }
    return is_finite;
}

static void compare(tkv_check *check, const tkv_kernels *kernels, const tkv_softmax_span *span,
                    const softmax_state *start, const char *what, int index)
{
    tkv_check_memory memory = {.check = check};
    softmax_state *found = tkv_check_take(&memory, sizeof *found);
    softmax_state expected = *start;
    if (found) {
        *found = *start;
        tkv_kernels_scalar.softmax(span, expected.scores, expected.maximum, expected.sum,
                                   expected.rescale);
        kernels->softmax(span, found->scores, found->maximum, found->sum, found->rescale);
        tkv_check_name(check, TKV_OPERATION_SOFTMAX, TKV_TYPE_COUNT, 0, "%s %d", what, index);
        const double error = error_of(span, found, &expected);
        tkv_check_tell(check, &memory, is_finite(span, found) ? error : INFINITY, 1.0, NULL);
    }
    tkv_check_give_back(&memory);
}

static void check_random_scores(tkv_check *check, const tkv_kernels *kernels, int index)
{
    uint64_t seed = tkv_check_seed(check, 9000 + index);
    softmax_state start = {.rescale = {0}};
    int first[N_ROWS];
    int end[N_ROWS];
    tkv_random_fill(&seed, N_SCORES, start.scores);
    for (int i = 0; i < N_SCORES; i++) {
        start.scores[i] *= index % 7 == 0 ? 1e30f : 20.0f;
    }
    for (int r = 0; r < N_ROWS; r++) {
        const bool is_fresh = tkv_random_below(&seed, 2) != 0;
        first[r] = tkv_random_below(&seed, TKV_PAGE_TOKENS);
        end[r] = tkv_random_below(&seed, TKV_PAGE_TOKENS + 1);
        start.maximum[r] = is_fresh ? -INFINITY : tkv_random_near_gauss(&seed);
        start.sum[r] = is_fresh ? 0.0f : 3.0f;
    }
    const tkv_softmax_span span = {N_ROWS, first, end, 0.3f, index % 2 ? 5.0f : 0.0f};
    compare(check, kernels, &span, &start, "random scores", index);
}

/* Scores that overflowed: whatever comes out is finite and the same. */
enum { N_HOSTILE = 7, N_CAPS = 3 };

static void check_hostile_scores(tkv_check *check, const tkv_kernels *kernels, int index)
{
    const float hostile[N_HOSTILE] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0.0f, 1e-45f};
    const float caps[N_CAPS] = {0.0f, 30.0f, 1e-38f};
    softmax_state start = {.maximum = {-INFINITY}};
    const int first = 0;
    const int end = TKV_PAGE_TOKENS - index % 5;
    for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
        start.scores[t] = hostile[t % 2 ? index % N_HOSTILE : index / N_HOSTILE % N_HOSTILE];
    }
    const tkv_softmax_span span = {1, &first, &end, 0.1f, caps[index / (N_HOSTILE * N_HOSTILE)]};
    compare(check, kernels, &span, &start, "hostile scores", index);
}

void tkv_check_softmax(tkv_check *check, const tkv_kernels *kernels)
{
    const bool is_all = check->params->mode == TKV_CHECK_ALL;
    if (!tkv_check_wants(check, TKV_OPERATION_SOFTMAX)) {
        return;
    }
    for (int i = 0; i < (is_all ? 300 : 16); i++) {
        check_random_scores(check, kernels, i);
    }
    for (int i = 0; i < N_HOSTILE * N_HOSTILE * N_CAPS; i += is_all ? 1 : 10) {
        check_hostile_scores(check, kernels, i);
    }
}

void tkv_check_softmax_shape(tkv_check *check, const tkv_kernels *kernels)
{
    check_random_scores(check, kernels, 1);
}
