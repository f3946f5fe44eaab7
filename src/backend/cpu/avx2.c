/* The kernels on AVX2. Encoding is the reference's but for the trellis
 * search; decoding is the reference's. */
#include "backend/cpu/vector_avx2.h"

#include "backend/cpu/encode.h"
#include "backend/cpu/vector_kernels.h"

static void rotate(int head_dim, int n_rows, float *x)
{
    tkv_kernels_scalar.rotate(head_dim, n_rows, x);
}

static void unrotate(int head_dim, int n_rows, float *x)
{
    tkv_kernels_scalar.unrotate(head_dim, n_rows, x);
}

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    tkv_encode_span(tkv_trellis_search_avx2, span, x, row_stride, page);
}

static void decode(const tkv_page_span *span, const void *page, float *x, size_t row_stride)
{
    tkv_kernels_scalar.decode(span, page, x, row_stride);
}

const tkv_kernels tkv_kernels_avx2 = {
    .name = "avx2",
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
