/* TKV_SIMD_CLONES before a function lets the compiler emit it for several x86-64 levels and choose
 * at load time. Elsewhere, and under sanitizers, whose run time is not ready when the choice is
 * made, it is empty. */
#ifndef TKV_MODEL_SIMD_CLONES_H
#define TKV_MODEL_SIMD_CLONES_H

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) &&       \
    !defined(TKV_SANITIZED)
#define TKV_SIMD_CLONES                                                                            \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TKV_SIMD_CLONES
#endif

#endif
