/* The table of kernels that a back end provides. Every table computes the same functions: encode
 * and decode bit for bit as the scalar reference, scores and sums within the bounds that
 * tests/conformance states. Kernels allocate nothing and report nothing; callers have checked the
 * arguments. */
#ifndef TKV_KERNELS_KERNELS_H
#define TKV_KERNELS_KERNELS_H

#include "base/threads.h"
#include "format/type_table.h"
#include "turbokv.h"

/* A run of slots of one page. */
typedef struct tkv_page_span {
    tkv_type type;
    tkv_page_order order;
    int head_dim;
    int first_slot;
    int n_rows;
    tkv_effort effort; /* of encoding */
} tkv_page_span;

/* A page to be read. An f16 page may end after any multiple of 16 rows that covers n_tokens. */
typedef struct tkv_page_read {
    tkv_type type;
    int head_dim;
    int n_tokens; /* only the first ones count */
    const void *page;
    const void *next; /* the page to be read after this one, to be asked for in time, or NULL */
} tkv_page_read;

/* What the softmax of one page needs to know about its rows. */
typedef struct tkv_softmax_span {
    int n_rows;
    const int *first; /* [n_rows] first token of the page that the row sees */
    const int *end;   /* [n_rows] one past the last; first >= end: none */
    float scale;      /* of the logits */
    float softcap;    /* 0: none */
} tkv_softmax_span;

typedef struct tkv_kernels {
    const char *name;

    /* On coded pages `accumulate` rounds weights times the scales of their tokens to within this
     * share of the largest of the row, `scores` rounds queries likewise; 0: not at all. */
    float weight_rounding;      /* where the codes have an error that hides it (tkv_rounding) */
    float weight_rounding_fine; /* where they have not */
    float query_rounding;
    float query_rounding_fine;

    /* Rotate n_rows vectors [n_rows][head_dim] in place, or back. */
    void (*rotate)(int head_dim, int n_rows, float *x);
    void (*unrotate)(int head_dim, int n_rows, float *x);

    /* Rotates, quantises and packs rows into a page. Row i is x + i * row_stride. */
    void (*encode)(const tkv_page_span *span, const float *x, size_t row_stride, void *page);

    /* Unpacks rows into the original domain. Row i is x + i * row_stride. */
    void (*decode)(const tkv_page_span *span, const void *page, float *x, size_t row_stride);

    /* Bytes of the form in which `scores` takes n_rows queries. */
    size_t (*query_bytes)(tkv_type type, int head_dim, int n_rows);

    /* Brings n_rows queries [n_rows][head_dim], rotated if the type is, into that form. */
    void (*prepare_queries)(tkv_type type, int head_dim, int n_rows, const float *queries,
                            void *prepared);

    /* Bytes of scratch that one call of `scores` or `accumulate` needs. */
    size_t (*scratch_bytes)(int head_dim, int n_rows);

    /* Inner products of all queries with the first n_tokens rows of a key page:
     * scores[n_rows][TKV_PAGE_TOKENS]. The page is unpacked once for all queries. */
    void (*scores)(const tkv_page_read *read, int n_rows, const void *prepared, float *scores,
                   void *scratch);

    /* One step of the online softmax (Milakov and Gimelshein, arXiv 1805.02867): scores
     * [n_rows][TKV_PAGE_TOKENS] become the weights exp(logit - maximum), 0 where the row does not
     * see the token; maximum and sum [n_rows] are brought up to date, rescale [n_rows] is the
     * factor for what was summed before. A row starts with maximum -infinity and sum 0. */
    void (*softmax)(const tkv_softmax_span *span, float *scores, float *maximum, float *sum,
                    float *rescale);

    /* sums[r][j] = rescale[r] * sums[r][j] + sum over tokens of weights[r][t] * value[t][j], in the
     * domain of the codes; of a sketch type what tkv_join_sums makes of it (kernels/sums.h).
     * weights [n_rows][TKV_PAGE_TOKENS] are >= 0 and 0 from n_tokens on. */
    void (*accumulate)(const tkv_page_read *read, int n_rows, const float *weights,
                       const float *rescale, float *sums, void *scratch);
} tkv_kernels;

/* How far a table rounds the weights for a type. */
static inline float tkv_weight_rounding(const tkv_kernels *kernels, tkv_type type)
{
    switch (tkv_type_rounding(type)) {
    case TKV_ROUNDING_NONE: break;
    case TKV_ROUNDING_COARSE: return kernels->weight_rounding;
    case TKV_ROUNDING_FINE:
    case TKV_ROUNDING_FINEST: return kernels->weight_rounding_fine;
    }
    return 0.0f;
}

/* How far a table rounds the queries for a type. */
static inline float tkv_query_rounding(const tkv_kernels *kernels, tkv_type type)
{
    switch (tkv_type_rounding(type)) {
    case TKV_ROUNDING_NONE: break;
    case TKV_ROUNDING_COARSE:
    case TKV_ROUNDING_FINE: return kernels->query_rounding;
    case TKV_ROUNDING_FINEST: return kernels->query_rounding_fine;
    }
    return 0.0f;
}

/* The reference: portable C, the specification in code. */
extern const tkv_kernels tkv_kernels_scalar;

#if defined(TKV_HAVE_X86_KERNELS)
extern const tkv_kernels tkv_kernels_avx2;
extern const tkv_kernels tkv_kernels_avx512;
#endif

#if defined(TKV_HAVE_ARM64_KERNELS)
extern const tkv_kernels tkv_kernels_neon;
extern const tkv_kernels tkv_kernels_dotprod;
extern const tkv_kernels tkv_kernels_i8mm;
#endif

/* Tables of this build, by index from 0, the reference first and the best last; NULL beyond the
 * last. *is_supported: this machine can run it. */
const tkv_kernels *tkv_kernels_built(int index, bool *is_supported);

/* Tables that this machine can run, by index from 0, the reference first; NULL beyond the last. */
const tkv_kernels *tkv_kernels_available(int index);

/* The table of that name, or the best one if name is NULL. */
tkv_status tkv_kernels_select(const char *name, const tkv_kernels **kernels, tkv_error *error);

#endif
