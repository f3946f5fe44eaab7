/* The kernels on AVX2 (with FMA and F16C). */
#include "kernels/vector_avx2.h"

#include "kernels/vector_kernels.h"

#include "kernels/vector_decode.h"
#include "kernels/vector_encode.h"

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    encode_span(tkv_trellis_search_avx2, span, x, row_stride, page);
}

const tkv_kernels tkv_kernels_avx2 = {
    .name = "avx2",
    .weight_rounding = WEIGHT_ROUNDING,
    .weight_rounding_fine = TWO_PART_ROUNDING,
    .query_rounding = QUERY_ROUNDING,
    .query_rounding_turbo8 = TWO_PART_ROUNDING,
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
