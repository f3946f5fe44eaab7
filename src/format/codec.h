/* Parts of the codec that the rest of the library uses: what a type is made of, rotation,
 * quantisation of one row, and where codes lie in rows and pages. Together with the scalar kernels
 * this is the specification in code of docs/FORMAT.md. No allocation, no I/O, no threads. */
#ifndef TKV_FORMAT_CODEC_H
#define TKV_FORMAT_CODEC_H

#include "format/constants.h"
#include "format/trellis.h"
#include "format/type_table.h"
#include "turbokv.h"

/* Rows are padded with zeros to a multiple of this many coordinates. */
#define TKV_DIM_STEP 16

static inline int tkv_padded_dim(int head_dim)
{
    return (head_dim + TKV_DIM_STEP - 1) / TKV_DIM_STEP * TKV_DIM_STEP;
}

/* As tkv_check_head_dim, for what works on rows as they are stored: a multiple of TKV_DIM_STEP. */
tkv_status tkv_check_padded_dim(tkv_type type, int head_dim, tkv_error *error);

/* Lloyd-Max codebook of N(0,1) with 2, 3 or 4 bits (Max 1960; Lloyd 1982). */
const tkv_codebook *tkv_codebook_get(int bits);

/* One row between quantiser and bit layout. */
typedef struct tkv_row_codes {
    uint8_t codes[TKV_MAX_HEAD_DIM];
    uint16_t side[TKV_MAX_SIDE_FIELDS]; /* fp16 scale; of a sketch also fp16 residual step */
} tkv_row_codes;

/* Sign words of the two rotation rounds: bit j%32 of word j/32 set = coordinate j is negated. */
#define TKV_SIGN_WORDS (TKV_MAX_HEAD_DIM / 32)
extern const uint32_t tkv_rotation_signs[2][TKV_SIGN_WORDS];

/* Largest power of two that is at most head_dim: the size of the Walsh-Hadamard blocks. */
int tkv_rotation_block(int head_dim);

/* Sign words of the sketch, laid out likewise. */
extern const uint32_t tkv_sketch_signs[TKV_SIGN_WORDS];

/* Rotates one vector of head_dim floats in place, or back. */
void tkv_rotate_row(int head_dim, float *x);
void tkv_unrotate_row(int head_dim, float *x);

/* The orthonormal sketch of a rotated row: sign flips and one Walsh-Hadamard transform, and back.
 */
void tkv_sketch_row(int head_dim, float *y);
void tkv_unsketch_row(int head_dim, float *y);

/* Sum in the order that the format prescribes: 16 lanes, each adding every 16th value, then folded
 * 8, 4, 2, 1. n is a multiple of 16. */
float tkv_sum16(int n, const float *values);

/* <a, b> in that order. */
float tkv_dot16(int n, const float *a, const float *b);

/* Rotates and quantises one row x [head_dim] of any coded type (not f16). NaN or infinity gives
 * codes 0 and a NaN scale. The effort matters to trellis types only. */
void tkv_encode_row(tkv_type type, tkv_effort effort, int head_dim, const float *x,
                    tkv_row_codes *row);

/* Quantises one rotated row of finite values whose squares do not overflow when summed. */
void tkv_quantise_row(tkv_type type, tkv_effort effort, int head_dim, const float *y,
                      tkv_row_codes *row);

/* A row between rotation and codes: y, and z = y * to_unit of unit variance. */
typedef struct tkv_rotated_row {
    int head_dim;
    bool is_huge;  /* scaled down before it was rotated */
    float maximum; /* of the magnitudes of y */
    float norm2;   /* |y|^2 */
    float to_unit;
    float y[TKV_MAX_HEAD_DIM];
    float z[TKV_MAX_HEAD_DIM];
} tkv_rotated_row;

/* Encoding in steps, for kernels with a trellis search of their own: begin (with a row, or with one
 * that is rotated already), offer one path or several, end. False of begin: the row is zero or not
 * finite, and its codes are complete. An offered path is kept if it correlates better with the row
 * than *best, at first -1. */
bool tkv_begin_row(int head_dim, const float *x, tkv_rotated_row *in, tkv_row_codes *row);
bool tkv_begin_rotated_row(int head_dim, const float *y, tkv_rotated_row *in, tkv_row_codes *row);
void tkv_offer_path(const tkv_trellis *trellis, const tkv_rotated_row *in,
                    const tkv_trellis_path *path, float *best, tkv_row_codes *row);
void tkv_end_row(tkv_type type, const tkv_rotated_row *in, tkv_row_codes *row);

/* Values of one row in the rotated domain. */
void tkv_dequantise_row(tkv_type type, int head_dim, const tkv_row_codes *row, float *y);

/* Between codes and a row record, or a slot of a page. A page is words of 4 bytes, side fields
 * last; `page` is aligned to 4 bytes. Not for f16. */
void tkv_pack_row(tkv_type type, int head_dim, const tkv_row_codes *row, uint8_t *record);
void tkv_unpack_row(tkv_type type, int head_dim, const uint8_t *record, tkv_row_codes *row);
void tkv_pack_slot(tkv_type type, tkv_page_order order, int head_dim, int slot,
                   const tkv_row_codes *row, void *page);
void tkv_unpack_slot(tkv_type type, tkv_page_order order, int head_dim, int slot, const void *page,
                     tkv_row_codes *row);

/* Index of the first NaN or infinity among n values, or n. */
size_t tkv_find_non_finite(size_t n, const float *values);

#endif
