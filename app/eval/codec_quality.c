#include "eval/codec_quality.h"

#include "common/random.h"
#include "common/try.h"
#include "eval/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846
/* Runs are shorter than the time that the system gives to one process at a stretch. */
#define RUN_SECONDS 0.001
#define MIN_RUNS 3
#define TIMED_SECONDS 0.1

/* ---- Theory -------------------------------------------------------------------------------- */

/* Mean squared error on N(0,1) of a quantiser that puts each value at its cell's centre of mass:
 * 1 - sum of p c^2 (Max 1960). */
static double distortion(const tkv_codebook *codebook)
{
    double kept = 0.0;
    double low_density = 0.0;
    double low_share = 0.0;
    for (int i = 0; i < codebook->n_levels; i++) {
        const bool is_last = i == codebook->n_levels - 1;
        const double t = is_last ? 0.0 : (double)codebook->thresholds[i];
        const double density = is_last ? 0.0 : exp(-0.5 * t * t) / sqrt(2.0 * PI);
        const double share = is_last ? 1.0 : 0.5 * erfc(-t / sqrt(2.0));
        const double mass = low_density - density;
        kept += mass * mass / (share - low_share);
        low_density = density;
        low_share = share;
    }
    return 1.0 - kept;
}

/* Mean square of the largest of n magnitudes of N(0,1): the integral of 2 t P(largest > t). */
static double largest_square(int n)
{
    const double step = 1e-3;
    double sum = 0.0;
    for (double t = 0.5 * step; t < 9.0; t += step) {
        sum += 2.0 * t * (1.0 - pow(erf(t / sqrt(2.0)), n)) * step;
    }
    return sum;
}

double tkv_codec_expected_error(tkv_type type, int head_dim)
{
    const double levels = 127.0; /* uniform ones, from zero to the row's largest magnitude */
    double d;
    switch (tkv_type_get_info(type)->coding) {
    case TKV_CODING_UNIFORM: return largest_square(head_dim) / (12.0 * levels * levels);
    case TKV_CODING_CODEBOOK: d = distortion(tkv_type_codebook(type)); return d / (1.0 - d);
    case TKV_CODING_SKETCH: return distortion(tkv_type_codebook(type)) * (PI / 2.0 - 1.0);
    case TKV_CODING_HALF:
    case TKV_CODING_TRELLIS: break;
    }
    return (double)NAN;
}

double tkv_codec_shannon_bound(tkv_type type)
{
    return pow(2.0, -2.0 * tkv_type_get_info(type)->code_bits);
}

/* ---- Quality ------------------------------------------------------------------------------- */

/* One head on its way through the codec. */
typedef struct head_work {
    float *mean;    /* [head_dim] what is taken off before coding */
    float *decoded; /* [n_rows][head_dim] */
    float *page_rows;
    void *page;
    float *query;     /* [head_dim] */
    double *products; /* [n_rows] <q, x> */
    double *changes;  /* [n_rows] <q, x' - x> */
} head_work;

/* Sums over all heads and queries. */
typedef struct quality_sums {
    double error;
    double energy;
    double spread;
    double cross;       /* <q, x'> <q, x> */
    double product;     /* <q, x>^2 */
    double logit_error; /* variances over rows, summed */
    double logit_spread;
    int n_kept;
    int n_asked;
} quality_sums;

static bool allocate_work(const tkv_codec_quality_params *p, head_work *w)
{
    const size_t head_dim = (size_t)p->head_dim;
    const size_t n_rows = (size_t)p->n_rows;
    w->mean = malloc(head_dim * sizeof *w->mean);
    w->decoded = malloc(n_rows * head_dim * sizeof *w->decoded);
    w->page_rows = malloc(TKV_PAGE_TOKENS * head_dim * sizeof *w->page_rows);
    w->page = malloc(tkv_page_bytes(p->type, p->head_dim));
    w->query = malloc(head_dim * sizeof *w->query);
    w->products = malloc(n_rows * sizeof *w->products);
    w->changes = malloc(n_rows * sizeof *w->changes);
    return w->mean && w->decoded && w->page_rows && w->page && w->query && w->products &&
           w->changes;
}

static void free_work(head_work *w)
{
    free(w->mean);
    free(w->decoded);
    free(w->page_rows);
    free(w->page);
    free(w->query);
    free(w->products);
    free(w->changes);
}

static void mean_of(const float *rows, int n_rows, int head_dim, float *mean)
{
    for (int j = 0; j < head_dim; j++) {
        double sum = 0.0;
        for (int i = 0; i < n_rows; i++) {
            sum += (double)rows[(size_t)i * (size_t)head_dim + (size_t)j];
        }
        mean[j] = n_rows ? (float)(sum / n_rows) : 0.0f;
    }
}

/* Of a head: pages are coded, then queries asked. */
static void report(const tkv_codec_quality_params *p, int head, int n_parts)
{
    const double n_pages = ceil((double)p->n_rows / TKV_PAGE_TOKENS);
    if (p->progress) {
        p->progress(p->progress_user, (head + n_parts / (n_pages + p->n_queries)) / p->n_heads);
    }
}

/* Rows to pages and back. */
static tkv_status code_head(const tkv_context *context, const tkv_codec_quality_params *p, int head,
                            const float *rows, head_work *w, tkv_error *error)
{
    const size_t head_dim = (size_t)p->head_dim;
    mean_of(rows, p->centre_rows, p->head_dim, w->mean);
    for (int first = 0; first < p->n_rows; first += TKV_PAGE_TOKENS) {
        const int left = p->n_rows - first;
        const int n_rows = left < TKV_PAGE_TOKENS ? left : TKV_PAGE_TOKENS;
        float *decoded = w->decoded + (size_t)first * head_dim;
        const size_t n = (size_t)n_rows * head_dim;
        for (size_t i = 0; i < n; i++) {
            w->page_rows[i] = rows[(size_t)first * head_dim + i] - w->mean[i % head_dim];
        }
        memset(w->page, 0, tkv_page_bytes(p->type, p->head_dim));
        TKV_TRY(tkv_encode_page(context, p->type, TKV_ORDER_KEY, p->head_dim, 0, n_rows,
                                w->page_rows, w->page, error));
        TKV_TRY(tkv_decode_page(context, p->type, TKV_ORDER_KEY, p->head_dim, 0, n_rows, w->page,
                                decoded, error));
        for (size_t i = 0; i < n; i++) {
            decoded[i] += w->mean[i % head_dim];
        }
        report(p, head, first / TKV_PAGE_TOKENS + 1);
    }
    return TKV_OK;
}

static void add_errors(const tkv_codec_quality_params *p, const float *rows, head_work *w,
                       quality_sums *sums)
{
    mean_of(rows, p->n_rows, p->head_dim, w->mean);
    for (size_t i = 0; i < (size_t)p->n_rows * (size_t)p->head_dim; i++) {
        const double x = (double)rows[i];
        const double e = (double)w->decoded[i] - x;
        const double s = x - (double)w->mean[i % (size_t)p->head_dim];
        sums->error += e * e;
        sums->energy += x * x;
        sums->spread += s * s;
    }
}

static double variance(const double *values, int n)
{
    double mean = 0.0;
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        mean += values[i] / n;
    }
    for (int i = 0; i < n; i++) {
        sum += (values[i] - mean) * (values[i] - mean);
    }
    return sum;
}

static void add_query(const tkv_codec_quality_params *p, const float *rows, head_work *w,
                      quality_sums *sums)
{
    int best = 0;
    int best_decoded = 0;
    for (int i = 0; i < p->n_rows; i++) {
        const size_t at = (size_t)i * (size_t)p->head_dim;
        double exact = 0.0;
        double coded = 0.0;
        for (int j = 0; j < p->head_dim; j++) {
            exact += (double)w->query[j] * (double)rows[at + (size_t)j];
            coded += (double)w->query[j] * (double)w->decoded[at + (size_t)j];
        }
        w->products[i] = exact;
        w->changes[i] = coded - exact;
        sums->cross += exact * coded;
        sums->product += exact * exact;
        best = exact > w->products[best] ? i : best;
        const double best_coded = w->products[best_decoded] + w->changes[best_decoded];
        best_decoded = coded > best_coded ? i : best_decoded;
    }
    sums->logit_error += variance(w->changes, p->n_rows);
    sums->logit_spread += variance(w->products, p->n_rows);
    sums->n_kept += best == best_decoded;
    sums->n_asked++;
}

static tkv_status check_params(const tkv_context *context, const tkv_codec_quality_params *p,
                               tkv_error *error)
{
    if (!context || !p->rows || p->n_heads < 1 || p->n_rows < 1 || p->n_queries < 0 ||
        p->centre_rows < 0 || p->centre_rows > p->n_rows) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d heads of %d rows, the first %d for the mean: expected at least one of "
                        "both and a mean of no more rows than there are",
                        p->n_heads, p->n_rows, p->centre_rows);
    }
    return tkv_check_head_dim(p->type, p->head_dim, error);
}

static tkv_status measure_heads(const tkv_context *context, const tkv_codec_quality_params *p,
                                head_work *work, quality_sums *sums, tkv_error *error)
{
    uint64_t state = p->seed;
    for (int head = 0; head < p->n_heads; head++) {
        const float *rows = p->rows + (size_t)head * (size_t)p->n_rows * (size_t)p->head_dim;
        TKV_TRY(code_head(context, p, head, rows, work, error));
        add_errors(p, rows, work, sums);
        for (int i = 0; i < p->n_queries; i++) {
            for (int j = 0; j < p->head_dim; j++) {
                work->query[j] = tkv_draw_gauss(&state);
            }
            add_query(p, rows, work, sums);
            report(p, head, (p->n_rows + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS + i + 1);
        }
    }
    return TKV_OK;
}

tkv_status tkv_codec_quality_measure(const tkv_context *context,
                                     const tkv_codec_quality_params *params,
                                     tkv_codec_quality *quality, tkv_error *error)
{
    TKV_TRY(check_params(context, params, error));
    head_work work = {0};
    quality_sums sums = {0};
    const tkv_status status =
        allocate_work(params, &work)
            ? measure_heads(context, params, &work, &sums, error)
            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d rows", params->n_rows);
    free_work(&work);
    TKV_TRY(status);
    *quality = (tkv_codec_quality){.nmse = sums.error / sums.energy,
                                   .spread_error = sums.error / sums.spread,
                                   .slope = sums.cross / sums.product,
                                   .logit_error = sums.logit_error / sums.logit_spread,
                                   .recall = (double)sums.n_kept / sums.n_asked};
    return TKV_OK;
}

/* ---- Speed --------------------------------------------------------------------------------- */

typedef struct speed_work {
    const tkv_context *context;
    tkv_type type;
    tkv_page_order order;
    int head_dim;
    float *rows; /* [n_pages][TKV_PAGE_TOKENS][head_dim] */
    uint8_t *pages;
    size_t page_bytes;
    int n_pages;
} speed_work;

static tkv_status run_page(const speed_work *w, int index, bool is_encoding, tkv_error *error)
{
    float *rows = w->rows + (size_t)index * TKV_PAGE_TOKENS * (size_t)w->head_dim;
    uint8_t *page = w->pages + (size_t)index * w->page_bytes;
    return is_encoding ? tkv_encode_page(w->context, w->type, w->order, w->head_dim, 0,
                                         TKV_PAGE_TOKENS, rows, page, error)
                       : tkv_decode_page(w->context, w->type, w->order, w->head_dim, 0,
                                         TKV_PAGE_TOKENS, page, rows, error);
}

/* Seconds a row: the best of runs of at least RUN_SECONDS; MIN_RUNS of them, twice through all
 * pages and TIMED_SECONDS at least. */
static tkv_status time_pages(const speed_work *w, bool is_encoding, double *best, tkv_error *error)
{
    int index = 0;
    const double begin = tkv_clock();
    *best = INFINITY;
    for (int run = 0;
         run < MIN_RUNS || index < 2 * w->n_pages || tkv_clock() - begin < TIMED_SECONDS; run++) {
        const double start = tkv_clock();
        double seconds;
        int n = 0;
        do {
            TKV_TRY(run_page(w, index++ % w->n_pages, is_encoding, error));
            n++;
            seconds = tkv_clock() - start;
        } while (seconds < RUN_SECONDS);
        *best = fmin(*best, seconds / ((double)n * TKV_PAGE_TOKENS));
    }
    return TKV_OK;
}

static tkv_status fill_and_time(speed_work *w, tkv_codec_speed *speed, tkv_error *error)
{
    const size_t n = (size_t)w->n_pages * TKV_PAGE_TOKENS * (size_t)w->head_dim;
    uint64_t state = 1;
    w->rows = malloc(n * sizeof *w->rows);
    w->pages = calloc((size_t)w->n_pages, w->page_bytes);
    if (!w->rows || !w->pages) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d pages", w->n_pages);
    }
    for (size_t i = 0; i < n; i++) {
        w->rows[i] = tkv_draw_gauss(&state);
    }
    TKV_TRY(time_pages(w, true, &speed->encode_seconds, error));
    return time_pages(w, false, &speed->decode_seconds, error);
}

tkv_status tkv_codec_speed_measure(const tkv_context *context, tkv_type type, tkv_page_order order,
                                   int head_dim, int n_pages, tkv_codec_speed *speed,
                                   tkv_error *error)
{
    TKV_TRY(tkv_check_head_dim(type, head_dim, error));
    if (n_pages < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "%d pages: expected at least 1", n_pages);
    }
    speed_work w = {.context = context,
                    .type = type,
                    .order = order,
                    .head_dim = head_dim,
                    .page_bytes = tkv_page_bytes(type, head_dim),
                    .n_pages = n_pages};
    const tkv_status status = fill_and_time(&w, speed, error);
    free(w.rows);
    free(w.pages);
    return status;
}
