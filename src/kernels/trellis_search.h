/* The trellis searches that instruction sets bring; each finds the path that tkv_trellis_search
 * finds. */
#ifndef TKV_KERNELS_TRELLIS_SEARCH_H
#define TKV_KERNELS_TRELLIS_SEARCH_H

#include "format/trellis.h"

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
