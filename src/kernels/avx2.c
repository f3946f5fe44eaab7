/* The kernels on AVX2 (with FMA and F16C). */
#include "kernels/vector_avx2.h"

#define KERNELS tkv_kernels_avx2
#define KERNELS_NAME "avx2"
#define TRELLIS_SEARCH tkv_trellis_search_avx2
#include "kernels/vector_table.h"
