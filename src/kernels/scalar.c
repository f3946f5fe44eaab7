/* The reference kernels: portable C over the functions of the codec. */
#include "base/half.h"
#include "format/codec.h"
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

static void rotate(int head_dim, int n_rows, float *x)
{
    for (int i = 0; i < n_rows; i++) {
        tkv_rotate_row(head_dim, x + (size_t)i * (size_t)head_dim);
    }
}

static void unrotate(int head_dim, int n_rows, float *x)
{
    for (int i = 0; i < n_rows; i++) {
        tkv_unrotate_row(head_dim, x + (size_t)i * (size_t)head_dim);
    }
}

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    const int head_dim = span->head_dim;
    for (int i = 0; i < span->n_rows; i++, x += row_stride) {
        const int slot = span->first_slot + i;
        if (span->type == TKV_TYPE_F16) {
            uint16_t *row = (uint16_t *)page + (size_t)slot * (size_t)head_dim;
            for (int j = 0; j < head_dim; j++) {
                row[j] = tkv_float_to_finite_half(x[j]);
            }
            continue;
        }
        tkv_row_codes row;
        tkv_encode_row(span->type, span->effort, head_dim, x, &row);
        tkv_pack_slot(span->type, span->order, head_dim, slot, &row, page);
    }
}

/* Values of slot `slot` in the domain of the codes. */
static void unpack(tkv_type type, tkv_page_order order, int head_dim, int slot, const void *page,
                   float *y)
{
    if (type == TKV_TYPE_F16) {
        const uint16_t *row = (const uint16_t *)page + (size_t)slot * (size_t)head_dim;
        for (int j = 0; j < head_dim; j++) {
            y[j] = tkv_half_to_float(row[j]);
        }
        return;
    }
    tkv_row_codes row;
    tkv_unpack_slot(type, order, head_dim, slot, page, &row);
    tkv_dequantise_row(type, head_dim, &row, y);
}

static void decode(const tkv_page_span *span, const void *page, float *x, size_t row_stride)
{
    for (int i = 0; i < span->n_rows; i++, x += row_stride) {
        unpack(span->type, span->order, span->head_dim, span->first_slot + i, page, x);
        if (span->type != TKV_TYPE_F16) {
            tkv_unrotate_row(span->head_dim, x);
        }
    }
}

static size_t query_bytes(tkv_type type, int head_dim, int n_rows)
{
    (void)type;
    return (size_t)n_rows * (size_t)head_dim * sizeof(float);
}

static void prepare_queries(tkv_type type, int head_dim, int n_rows, const float *queries,
                            void *prepared)
{
    memcpy(prepared, queries, query_bytes(type, head_dim, n_rows));
}

static size_t scratch_bytes(int head_dim, int n_rows)
{
    (void)n_rows;
    return (size_t)TKV_PAGE_TOKENS * (size_t)head_dim * sizeof(float);
}

/* Sixteen partial sums keep the additions independent, so that compilers vectorise the loop. */
static float dot(int n, const float *a, const float *b)
{
    float lanes[16] = {0};
    for (int i = 0; i < n; i += 16) {
        for (int lane = 0; lane < 16; lane++) {
            lanes[lane] += a[i + lane] * b[i + lane];
        }
    }
    return tkv_sum16(16, lanes);
}

static void scores(const tkv_page_read *read, int n_rows, const void *prepared, float *result,
                   void *scratch)
{
    const int head_dim = read->head_dim;
    const int n_tokens = read->n_tokens;
    const float *queries = prepared;
    float *keys = scratch;
    for (int t = 0; t < n_tokens; t++) {
        unpack(read->type, TKV_ORDER_KEY, head_dim, t, read->page,
               keys + (size_t)t * (size_t)head_dim);
    }
    for (int r = 0; r < n_rows; r++) {
        const float *query = queries + (size_t)r * (size_t)head_dim;
        for (int t = 0; t < n_tokens; t++) {
            result[r * TKV_PAGE_TOKENS + t] =
                dot(head_dim, query, keys + (size_t)t * (size_t)head_dim);
        }
    }
}

/* Logits beyond this are clamped, so that their differences stay finite; NaN, from a score that
 * overflowed both ways, becomes the limit. */
#define LOGIT_LIMIT 0x1p100f

static float to_logit(const tkv_softmax_span *span, float score)
{
    const float logit = fmaxf(-LOGIT_LIMIT, fminf(score * span->scale, LOGIT_LIMIT));
    return span->softcap > 0.0f ? span->softcap * tanhf(logit / span->softcap) : logit;
}

static void softmax(const tkv_softmax_span *span, float *scores, float *maximum, float *sum,
                    float *rescale)
{
    for (int r = 0; r < span->n_rows; r++) {
        float *row = scores + r * TKV_PAGE_TOKENS;
        float new_maximum = maximum[r];
        for (int t = span->first[r]; t < span->end[r]; t++) {
            row[t] = to_logit(span, row[t]);
            new_maximum = fmaxf(new_maximum, row[t]);
        }
        rescale[r] = sum[r] > 0.0f ? expf(maximum[r] - new_maximum) : 0.0f;
        float page_sum = 0.0f;
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            const bool is_seen = t >= span->first[r] && t < span->end[r];
            row[t] = is_seen ? expf(row[t] - new_maximum) : 0.0f;
            page_sum += row[t];
        }
        maximum[r] = new_maximum;
        sum[r] = sum[r] * rescale[r] + page_sum;
    }
}

static void accumulate(const tkv_page_read *read, int n_rows, const float *weights,
                       const float *rescale, float *sums, void *scratch)
{
    const int head_dim = read->head_dim;
    const int n_tokens = read->n_tokens;
    float *values = scratch;
    /* The second sums of a sketch type stay as they were, zero, since values come back whole. */
    for (int t = 0; t < n_tokens; t++) {
        unpack(read->type, TKV_ORDER_VALUE, head_dim, t, read->page,
               values + (size_t)t * (size_t)head_dim);
    }
    for (int r = 0; r < n_rows; r++) {
        float *sum = sums + (size_t)r * (size_t)head_dim;
        for (int j = 0; j < head_dim; j++) {
            sum[j] *= rescale[r];
        }
        for (int t = 0; t < n_tokens; t++) {
            const float weight = weights[r * TKV_PAGE_TOKENS + t];
            const float *value = values + (size_t)t * (size_t)head_dim;
            for (int j = 0; j < head_dim; j++) {
                sum[j] += weight * value[j];
            }
        }
    }
}

const tkv_kernels tkv_kernels_scalar = {
    .name = "scalar",
    .rotate = rotate,
    .unrotate = unrotate,
    .encode = encode,
    .decode = decode,
    .query_bytes = query_bytes,
    .prepare_queries = prepare_queries,
    .scratch_bytes = scratch_bytes,
    .scores = scores,
    .softmax = softmax,
    .accumulate = accumulate,
};
