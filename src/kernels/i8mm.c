/* The kernels on ARM64 with FEAT_I8MM beside FEAT_DotProd (Apple M2, Neoverse N2 and V1 and later).
 */
#include "kernels/vector_neon.h"

#define KERNELS tkv_kernels_i8mm
#define KERNELS_NAME "i8mm"
#define TRELLIS_SEARCH tkv_trellis_search_neon
#include "kernels/vector_table.h"
