/* What a KV type does to vectors: errors beside their theoretical values, and speed. */
#ifndef TKV_EVAL_CODEC_QUALITY_H
#define TKV_EVAL_CODEC_QUALITY_H

#include "turbokv.h"

typedef struct tkv_codec_quality_params {
    tkv_type type;
    int head_dim;
    const float *rows; /* [n_heads][n_rows][head_dim] */
    int n_heads;
    int n_rows;      /* of a head */
    int centre_rows; /* 0: none; n: code relative to the mean of the first n rows of a head */
    int n_queries;   /* random directions; 0: only the error */
    uint64_t seed;   /* of the queries */
    void (*progress)(void *user, double share); /* NULL: none; hears which share is done */
    void *progress_user;
} tkv_codec_quality_params;

typedef struct tkv_codec_quality {
    double nmse;         /* sum of |x - x'|^2 over sum of |x|^2 */
    double spread_error; /* the same over sum of |x - mean of the head|^2 */
    double slope;        /* regression of <q, x'> on <q, x>: 1 if unbiased */
    double logit_error;  /* variance over the rows of <q, x' - x>, relative to that of <q, x>: what
                            softmax, blind to a constant, sees */
    double recall;       /* queries whose best row of the head stays the best */
} tkv_codec_quality;

/* Codes all rows as key pages with the context's kernels and measures what comes back. Errors:
 * wrong sizes, rows that are not finite, no memory. */
tkv_status tkv_codec_quality_measure(const tkv_context *context,
                                     const tkv_codec_quality_params *params,
                                     tkv_codec_quality *quality, tkv_error *error);

typedef struct tkv_codec_speed {
    double encode_seconds; /* a row, rotation and packing included; the best of several runs */
    double decode_seconds;
} tkv_codec_speed;

/* Times whole key pages (order TKV_ORDER_KEY) or value pages on one thread. n_pages fit the caches
 * or do not, as the caller wants. */
tkv_status tkv_codec_speed_measure(const tkv_context *context, tkv_type type, tkv_page_order order,
                                   int head_dim, int n_pages, tkv_codec_speed *speed,
                                   tkv_error *error);

/* Expected relative error of Gaussian rows in high dimension with the type's scale: D / (1 - D) for
 * a codebook of distortion D (unbiased scale), D (pi/2 - 1) for a sketch of its residual; of
 * uniform levels, step^2 / 12 at this head_dim. NAN for types without a closed form. */
double tkv_codec_expected_error(tkv_type type, int head_dim);

/* The least relative error of Gaussian values at the type's code bits: 2^(-2 bits). */
double tkv_codec_shannon_bound(tkv_type type);

#endif
