/* The kernels on AVX-512 (F, BW, DQ, VL, VNNI, VBMI, VBMI2). */
#include "kernels/vector_avx512.h"

#define KERNELS tkv_kernels_avx512
#define KERNELS_NAME "avx512"
#define TRELLIS_SEARCH tkv_trellis_search_avx512
#include "kernels/vector_table.h"
