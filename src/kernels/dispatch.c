/* Which kernel tables this build has and this machine can run. */
#include "base/cpu.h"
#include "base/error.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(TKV_HAVE_ARM64_KERNELS) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(TKV_HAVE_ARM64_KERNELS) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static bool always(void)
{
    return true;
}

#ifdef TKV_HAVE_X86_KERNELS
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2");
}
#endif

#ifdef TKV_HAVE_ARM64_KERNELS
#ifdef __APPLE__
static bool has_feature(const char *name)
{
    int is_present = 0;
    size_t size = sizeof is_present;
    return sysctlbyname(name, &is_present, &size, NULL, 0) == 0 && is_present;
}
#endif

static bool has_dotprod(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_DotProd");
#else
    return false;
#endif
}

static bool has_i8mm(void)
{
#if defined(__linux__)
    return has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#elif defined(__APPLE__)
    return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM");
#else
    return false;
#endif
}
#endif

typedef struct candidate {
    const tkv_kernels *kernels;
    bool (*is_supported)(void);
} candidate;

/* The best last. */
static const candidate candidates[] = {
    {&tkv_kernels_scalar, always},
#ifdef TKV_HAVE_X86_KERNELS
    {&tkv_kernels_avx2, tkv_cpu_has_avx2}, {&tkv_kernels_avx512, has_avx512},
#endif
#ifdef TKV_HAVE_ARM64_KERNELS
    {&tkv_kernels_neon, always},           {&tkv_kernels_dotprod, has_dotprod},
    {&tkv_kernels_i8mm, has_i8mm},
#endif
};

enum { N_CANDIDATES = sizeof candidates / sizeof *candidates };

const tkv_kernels *tkv_kernels_built(int index, bool *is_supported)
{
    if (index < 0 || index >= N_CANDIDATES) {
        return NULL;
    }
    *is_supported = candidates[index].is_supported();
    return candidates[index].kernels;
}

const tkv_kernels *tkv_kernels_available(int index)
{
    for (int i = 0; i < N_CANDIDATES; i++) {
        if (candidates[i].is_supported() && index-- == 0) {
            return candidates[i].kernels;
        }
    }
    return NULL;
}

tkv_status tkv_kernels_select(const char *name, const tkv_kernels **kernels, tkv_error *error)
{
    char available[64] = "";
    for (int i = 0; i < N_CANDIDATES; i++) {
        if (!candidates[i].is_supported()) {
            continue;
        }
        *kernels = candidates[i].kernels;
        if (name && strcmp(name, candidates[i].kernels->name) == 0) {
            return TKV_OK;
        }
        const size_t used = strlen(available);
        snprintf(available + used, sizeof available - used, "%s%s", used ? ", " : "",
                 candidates[i].kernels->name);
    }
    if (name) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "kernels '%.40s' (TKV_CPU): this machine and build have %s", name,
                        available);
    }
    return TKV_OK;
}
