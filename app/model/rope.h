/* Rotary position embedding (Su et al., arXiv 2104.09864). */
#ifndef TKV_MODEL_ROPE_H
#define TKV_MODEL_ROPE_H

/* Which coordinates are turned together: (2i, 2i+1), or (i, i + rope_dim/2). */
typedef enum tkv_rope_pairing { TKV_ROPE_INTERLEAVED, TKV_ROPE_HALF_SPLIT } tkv_rope_pairing;

/* Angle of each pair per position: base^(-2i/rope_dim) / (linear_factor * factors[i]) into
 * frequencies [rope_dim/2]. factors: NULL (all 1), or [rope_dim/2], each > 0 ("llama3" scaling). */
void tkv_rope_frequencies(int rope_dim, double base, double linear_factor, const float *factors,
                          double *frequencies);

/* Cosine and sine, each times magnitude, of n_tokens positions from first_position on:
 * table [n_tokens][rope_dim/2][2]. A negative position turns back. */
void tkv_rope_table(int rope_dim, const double *frequencies, double magnitude, int first_position,
                    int n_tokens, float *table);

/* Turns the leading rope_dim coordinates of each head of x [n_tokens][n_heads][head_dim] in place,
 * by the table's row of its token. rope_dim <= head_dim, even. */
void tkv_rope_apply(tkv_rope_pairing pairing, int rope_dim, const float *table, int n_tokens,
                    int n_heads, int head_dim, float *x);

#endif
