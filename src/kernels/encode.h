/* Encoding on the CPU: the reference's, with the trellis search that an instruction set brings. */
#ifndef TKV_KERNELS_ENCODE_H
#define TKV_KERNELS_ENCODE_H

#include "format/trellis.h"
#include "kernels/kernels.h"

/* tkv_kernels.encode with a search. */
void tkv_encode_span(tkv_trellis_search_function search, const tkv_page_span *span, const float *x,
                     size_t row_stride, void *page);

#if defined(TKV_HAVE_X86_KERNELS)
void tkv_trellis_search_avx2(const tkv_trellis *trellis, int survivor_bits, float gain,
                             int head_dim, const float *z, tkv_trellis_path *path);
void tkv_trellis_search_avx512(const tkv_trellis *trellis, int survivor_bits, float gain,
                               int head_dim, const float *z, tkv_trellis_path *path);
#endif

#if defined(TKV_HAVE_ARM64_KERNELS)
void tkv_trellis_search_neon(const tkv_trellis *trellis, int survivor_bits, float gain,
                             int head_dim, const float *z, tkv_trellis_path *path);
#endif

#endif
