/* The kernels on AVX-512 (F, BW, DQ, VL, VNNI, VBMI, VBMI2). */
#include "kernels/vector_avx512.h"

#include "kernels/vector_kernels.h"

#include "kernels/vector_decode.h"
#include "kernels/vector_encode.h"

static void encode(const tkv_page_span *span, const float *x, size_t row_stride, void *page)
{
    encode_span(tkv_trellis_search_avx512, span, x, row_stride, page);
}

const tkv_kernels tkv_kernels_avx512 = {
    .name = "avx512",
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
