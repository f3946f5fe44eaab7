/* What the processor under this process can do. */
#ifndef TKV_BASE_CPU_H
#define TKV_BASE_CPU_H

#include <stdbool.h>

#ifdef __x86_64__
#include <cpuid.h>

/* AVX2, FMA and the conversions of halves: what every kernel compiled for AVX2 uses. */
static inline bool tkv_cpu_has_avx2(void)
{
    /* Clang 14's __builtin_cpu_supports does not know "f16c". */
    unsigned a;
    unsigned b;
    unsigned c = 0;
    unsigned d;
    const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#endif
