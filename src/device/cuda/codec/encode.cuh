/* Quantisation of one row in a half-warp (docs/FORMAT.md section 9), bit for bit as
 * src/format/quantise.c; the trellis search is in trellis_search.cuh. */
#ifndef TKV_DEVICE_CUDA_CODEC_ENCODE_CUH
#define TKV_DEVICE_CUDA_CODEC_ENCODE_CUH

#include "device/cuda/base/half.cuh"
#include "device/cuda/base/levels.cuh"
#include "device/cuda/codec/row.cuh"

namespace tkv_cuda
{

constexpr float tiny_row = 0x1p-40f;
constexpr float huge_row = 0x1p40f;
constexpr float huge_factor = 0x1p-72f;

__constant__ const float thresholds2[] = TKV_CODEBOOK_THRESHOLDS_2;
__constant__ const float thresholds3[] = TKV_CODEBOOK_THRESHOLDS_3;
__constant__ const float thresholds4[] = TKV_CODEBOOK_THRESHOLDS_4;

/* A rotated row on its way; the same in all lanes of the row but for y. */
template <int N> struct row_input {
    float y[row_shape<N>::capacity];
    float norm2;
    float to_unit; /* z = y * to_unit has unit variance */
    bool is_finite;
    bool is_huge;
    bool is_zero;
    float maximum;
};

template <int N> struct row_codes {
    uint32_t codes[row_shape<N>::capacity];
    uint32_t side[2]; /* the same in all lanes */
};

/* Rotates a row that is in in->y. */
template <int N> __device__ void prepare_row(const row_shape<N> &shape, row_input<N> *in)
{
    bool is_finite = true;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        is_finite = is_finite && isfinite(in->y[i]);
    }
    in->is_finite = row_ballot(!is_finite) == 0;
    in->is_huge = max_magnitude(shape, in->y) > huge_row;
    const float factor = in->is_huge ? huge_factor : 1.0f;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        in->y[i] *= factor;
    }
    rotate_row(shape, in->y);
    in->maximum = max_magnitude(shape, in->y);
    in->is_zero = in->maximum < tiny_row;
    in->norm2 = dot_row(shape, in->y, in->y);
    in->to_unit = __fsqrt_rn(__fdiv_rn((float)shape.head_dim, in->norm2));
}

__device__ inline float unbiased_scale(float norm2, float dot)
{
    return fminf(__fdiv_rn(norm2, dot) * TKV_LEVEL_UNIT, half_max);
}

template <int Bits> __device__ __forceinline__ const float *thresholds_of()
{
    static_assert(Bits >= 2 && Bits <= 4, "a codebook of format/constants.h");
    return Bits == 2 ? thresholds2 : Bits == 3 ? thresholds3 : thresholds4;
}

/* Code of the nearest entry of a codebook. */
template <int Bits> __device__ uint32_t nearest_code(float z)
{
    const float *thresholds = thresholds_of<Bits>();
    uint32_t code = 0;
#pragma unroll
    for (int k = 0; k < (1 << Bits) - 1; k++) {
        code += z > thresholds[k];
    }
    return code;
}

template <int N>
__device__ void quantise_uniform(const row_shape<N> &shape, const row_input<N> &in,
                                 row_codes<N> *out)
{
    float levels[row_shape<N>::capacity];
    const float factor = __fdiv_rn(127.0f, in.maximum);
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        levels[i] = rintf(in.y[i] * factor);
        out->codes[i] = (uint32_t)(int)levels[i] & 0xffu;
    }
    out->side[0] = to_half(unbiased_scale(in.norm2, dot_row(shape, in.y, levels)));
    out->side[1] = 0;
}

/* Codes, levels and <z, levels>. */
template <int N, int Type>
__device__ float choose_codes(const row_shape<N> &shape, const row_input<N> &in, row_codes<N> *out,
                              float *levels)
{
    float z[row_shape<N>::capacity];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        z[i] = in.y[i] * in.to_unit;
        out->codes[i] = nearest_code<type_traits<Type>::level_bits>(z[i]);
        levels[i] = level_at<Type>(out->codes[i]);
    }
    return dot_row(shape, z, levels);
}

template <int N, int Type>
__device__ void quantise_codebook(const row_shape<N> &shape, const row_input<N> &in,
                                  row_codes<N> *out)
{
    float levels[row_shape<N>::capacity];
    const float dot = choose_codes<N, Type>(shape, in, out, levels);
    out->side[0] = to_half(unbiased_scale(in.norm2, __fdiv_rn(dot, in.to_unit)));
    out->side[1] = 0;
}

template <int N, int Type>
__device__ void quantise_sketch(const row_shape<N> &shape, const row_input<N> &in,
                                row_codes<N> *out)
{
    float levels[row_shape<N>::capacity];
    float residual[row_shape<N>::capacity];
    const float dot = choose_codes<N, Type>(shape, in, out, levels);
    const float scale =
        __fdiv_rn(__fdiv_rn(dot, in.to_unit), dot_row(shape, levels, levels)) * TKV_LEVEL_UNIT;
    out->side[0] = to_half(fminf(scale, half_max));
    const float stored = from_half(out->side[0]) / TKV_LEVEL_UNIT;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        residual[i] = in.y[i] - stored * levels[i];
    }
    const float norm2 = dot_row(shape, residual, residual);
    mix(shape, sketch_signs, residual);
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        out->codes[i] |= (uint32_t)(residual[i] < 0.0f) << type_traits<Type>::level_bits;
    }
    const float d = (float)shape.head_dim;
    const float step =
        __fsqrt_rn(__fdiv_rn(norm2, d)) * (1.25331414f * (1.0f - __fdiv_rn(0.25f, d)));
    out->side[1] = to_half(fminf(step, half_max));
}

/* What the rows that cannot be quantised become. */
template <int N>
__device__ void finish_row(const row_shape<N> &shape, const row_input<N> &in,
                           uint32_t saturated_scale, row_codes<N> *out)
{
    if (in.is_huge) {
        out->side[0] = saturated_scale;
        out->side[1] = 0;
    }
    if (!in.is_finite || in.is_zero) {
        out->side[0] = in.is_finite ? 0 : half_nan;
        out->side[1] = 0;
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            out->codes[i] = 0;
        }
    }
}

/* Encodes the row in in->y; Type is no trellis type. */
template <int N, int Type>
__device__ void encode_row(const row_shape<N> &shape, row_input<N> *in, row_codes<N> *out)
{
    using traits = type_traits<Type>;
    prepare_row(shape, in);
    if constexpr (traits::kind == TKV_CODE_UNIFORM) {
        quantise_uniform(shape, *in, out);
    } else if constexpr (traits::kind == TKV_CODE_SKETCH) {
        quantise_sketch<N, Type>(shape, *in, out);
    } else {
        static_assert(traits::kind == TKV_CODE_CODEBOOK, "trellises have a search of their own");
        quantise_codebook<N, Type>(shape, *in, out);
    }
    finish_row(shape, *in, 0x7bffu, out);
}

} /* namespace tkv_cuda */

#endif
