/* The kernels on ARM64 with FEAT_DotProd (Apple M1, Cortex-A76 and later). */
#include "kernels/vector_neon.h"

#include "kernels/vector_kernels.h"

#include "kernels/vector_decode.h"
#include "kernels/vector_encode.h"

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    encode_span(tkv_trellis_search_neon, span, x, row_stride, page);
}

const tkv_kernels tkv_kernels_dotprod = {
    .name = "dotprod",
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
