/* The table of an instruction set. The last thing that its file includes, after its operations and
 * the definitions of
 *   KERNELS          the table's variable,
 *   KERNELS_NAME     its name,
 *   TRELLIS_SEARCH   its search (kernels/trellis_search.h). */
#include "kernels/vector_decode.h"
#include "kernels/vector_encode.h"
#include "kernels/vector_kernels.h"

const tkv_kernels KERNELS = {
    .name = KERNELS_NAME,
    .weight_rounding = WEIGHT_ROUNDING,
    .weight_rounding_fine = TWO_PART_ROUNDING,
    .query_rounding = QUERY_ROUNDING,
    .query_rounding_fine = TWO_PART_ROUNDING,
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
