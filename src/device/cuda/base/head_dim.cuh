/* The head sizes that kernels are compiled for. */
#ifndef TKV_DEVICE_CUDA_BASE_HEAD_DIM_CUH
#define TKV_DEVICE_CUDA_BASE_HEAD_DIM_CUH

#include <type_traits>

namespace tkv_cuda
{

/* Calls f with one of them as a constant of the compiler. Returns whether it is one. */
template <typename F> bool with_head_dim(int head_dim, F f)
{
    switch (head_dim) {
    case 64: f(std::integral_constant<int, 64>{}); return true;
    case 128: f(std::integral_constant<int, 128>{}); return true;
    case 256: f(std::integral_constant<int, 256>{}); return true;
    }
    return false;
}

} /* namespace tkv_cuda */

#endif
