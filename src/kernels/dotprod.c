/* The kernels on ARM64 with FEAT_DotProd (Apple M1, Cortex-A76 and later). */
#include "kernels/vector_neon.h"

#define KERNELS tkv_kernels_dotprod
#define KERNELS_NAME "dotprod"
#define TRELLIS_SEARCH tkv_trellis_search_neon
#include "kernels/vector_table.h"
