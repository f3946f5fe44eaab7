/* Every type of KV rows, once, for C, CUDA C++ and Metal. What depends on a type is derived from
 * this table; to add a type, begin with a line here (CONTRIBUTING.md). The enum of turbokv.h, which
 * needs no other file, is held to it at compile time (types.c). */
#ifndef TKV_FORMAT_TYPE_TABLE_H
#define TKV_FORMAT_TYPE_TABLE_H

/* How codes are made and read. */
typedef enum tkv_code_kind {
    TKV_CODE_HALF,     /* fp16 values: no codes, no planes, no side fields */
    TKV_CODE_UNIFORM,  /* 255 levels scaled to the row's largest value */
    TKV_CODE_CODEBOOK, /* Lloyd-Max levels (constants.h) */
    TKV_CODE_TRELLIS,  /* levels of a trellis code (trellis.h) */
    TKV_CODE_SKETCH /* Lloyd-Max levels and, the last plane, the signs of the residual's sketch */
} tkv_code_kind;

/* How attention on integers may round what it multiplies with codes, so that their own error hides
 * it. */
typedef enum tkv_rounding {
    TKV_ROUNDING_NONE,   /* not at all */
    TKV_ROUNDING_COARSE, /* weights and queries coarsely */
    TKV_ROUNDING_FINE,   /* weights finely, queries coarsely */
    TKV_ROUNDING_FINEST  /* both finely */
} tkv_rounding;

/* One line a type:
 *
 *     X(ID, name, number, KIND, plane0, plane1, plane2, level_bits, side_fields, ROUNDING, nmse,
 *       description)
 *
 * ID: TKV_TYPE_<ID> of turbokv.h. name: on the command line. number: in the format and the enum.
 * plane0-2: bits of a code in each plane, the lowest in plane 0; 0: there is none. level_bits: log2
 * of the levels of the codebook or trellis. side_fields: of 16 bits, of a row. nmse: E|x-x'|^2 /
 * E|x|^2 on Gaussian rows of head_dim 128, with the unbiased scale; for long rows a Lloyd-Max
 * codebook of distortion D tends to D/(1-D). */
#define TKV_CODED_TYPES(X)                                                                         \
    X(TURBO8, "turbo8", 1, UNIFORM, 8, 0, 0, 0, 1, FINEST, 4.1e-5,                                 \
      "rotated, 255 uniform levels scaled to the row")                                             \
    X(TURBO4, "turbo4", 2, CODEBOOK, 4, 0, 0, 4, 1, FINE, 0.0092, "rotated, 16 Lloyd-Max levels")  \
    X(TURBO3, "turbo3", 3, CODEBOOK, 2, 1, 0, 3, 1, COARSE, 0.0347, "rotated, 8 Lloyd-Max levels") \
    X(TURBO2, "turbo2", 4, CODEBOOK, 2, 0, 0, 2, 1, COARSE, 0.1305, "rotated, 4 Lloyd-Max levels") \
    X(TRELLIS3, "trellis3", 5, TRELLIS, 2, 1, 0, 4, 1, COARSE, 0.0208,                             \
      "rotated, 256-state trellis code on 16 levels")                                              \
    X(TRELLIS2, "trellis2", 6, TRELLIS, 1, 1, 0, 3, 1, COARSE, 0.0809,                             \
      "rotated, 256-state trellis code on 8 levels")                                               \
    X(TURBO4Q, "turbo4q", 7, SKETCH, 2, 1, 1, 3, 2, COARSE, 0.0196,                                \
      "turbo3 and the residual's signs (QJL); for keys")                                           \
    X(TURBO3Q, "turbo3q", 8, SKETCH, 2, 1, 0, 2, 2, COARSE, 0.0660,                                \
      "turbo2 and the residual's signs (QJL); for keys")

#define TKV_TYPES(X)                                                                               \
    X(F16, "f16", 0, HALF, 0, 0, 0, 0, 0, NONE, 4.3e-8, "IEEE half precision, not rotated")        \
    TKV_CODED_TYPES(X)

#define TKV_MAX_PLANES 3
#define TKV_MAX_SIDE_FIELDS 2

/* What a type is made of: functions that are constants where the type is one. `type` is a number of
 * the table. */
#if defined(__CUDACC__)
#define TKV_TYPE_FUNCTION __host__ __device__ constexpr
#elif defined(__cplusplus)
#define TKV_TYPE_FUNCTION constexpr
#else
#define TKV_TYPE_FUNCTION static inline
#endif

#define TKV_TYPE_CASE_KIND(id, name, number, kind, ...)                                            \
    case number:                                                                                   \
        return TKV_CODE_##kind;
#define TKV_TYPE_CASE_PLANES(id, name, number, kind, plane0, plane1, plane2, ...)                  \
    case number:                                                                                   \
        return plane == 0 ? plane0 : plane == 1 ? plane1 : plane == 2 ? plane2 : 0;
#define TKV_TYPE_CASE_LEVELS(id, name, number, kind, plane0, plane1, plane2, level_bits, ...)      \
    case number:                                                                                   \
        return level_bits;
#define TKV_TYPE_CASE_FIELDS(id, name, number, kind, plane0, plane1, plane2, level_bits,           \
                             side_fields, ...)                                                     \
    case number:                                                                                   \
        return side_fields;
#define TKV_TYPE_CASE_ROUNDING(id, name, number, kind, plane0, plane1, plane2, level_bits,         \
                               side_fields, rounding, ...)                                         \
    case number: return TKV_ROUNDING_##rounding;

TKV_TYPE_FUNCTION tkv_code_kind tkv_type_kind(int type)
{
    switch (type) {
        TKV_TYPES(TKV_TYPE_CASE_KIND)
    }
    return TKV_CODE_HALF;
}

TKV_TYPE_FUNCTION int tkv_type_plane_bits(int type, int plane)
{
    switch (type) {
        TKV_TYPES(TKV_TYPE_CASE_PLANES)
    }
    return 0;
}

TKV_TYPE_FUNCTION int tkv_type_level_bits(int type)
{
    switch (type) {
        TKV_TYPES(TKV_TYPE_CASE_LEVELS)
    }
    return 0;
}

TKV_TYPE_FUNCTION int tkv_type_side_fields(int type)
{
    switch (type) {
        TKV_TYPES(TKV_TYPE_CASE_FIELDS)
    }
    return 0;
}

TKV_TYPE_FUNCTION tkv_rounding tkv_type_rounding(int type)
{
    switch (type) {
        TKV_TYPES(TKV_TYPE_CASE_ROUNDING)
    }
    return TKV_ROUNDING_NONE;
}

TKV_TYPE_FUNCTION int tkv_type_n_planes(int type)
{
    return (tkv_type_plane_bits(type, 0) != 0 ? 1 : 0) +
           (tkv_type_plane_bits(type, 1) != 0 ? 1 : 0) +
           (tkv_type_plane_bits(type, 2) != 0 ? 1 : 0);
}

/* Bits of a code in the planes before `plane`. */
TKV_TYPE_FUNCTION int tkv_type_low_bits(int type, int plane)
{
    return (plane > 0 ? tkv_type_plane_bits(type, 0) : 0) +
           (plane > 1 ? tkv_type_plane_bits(type, 1) : 0) +
           (plane > 2 ? tkv_type_plane_bits(type, 2) : 0);
}

/* Bits of a code; of f16, a value. */
TKV_TYPE_FUNCTION int tkv_type_code_bits(int type)
{
    return tkv_type_kind(type) == TKV_CODE_HALF ? 16 : tkv_type_low_bits(type, TKV_MAX_PLANES);
}

/* Bytes of a row of `padded_dim` coordinates, side fields included. */
TKV_TYPE_FUNCTION int tkv_type_row_bytes(int type, int padded_dim)
{
    return padded_dim * tkv_type_code_bits(type) / 8 + 2 * tkv_type_side_fields(type);
}

#endif
