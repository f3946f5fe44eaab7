/* The kernels on ARM64's Advanced SIMD. */
#include "kernels/vector_neon.h"

#define KERNELS tkv_kernels_neon
#define KERNELS_NAME "neon"
#define TRELLIS_SEARCH tkv_trellis_search_neon
#include "kernels/vector_table.h"
