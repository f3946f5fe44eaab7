/* How far a codebook is from the best one for a Gaussian. */
#ifndef TKV_GATE_CODEBOOK_ERROR_H
#define TKV_GATE_CODEBOOK_ERROR_H

/* Mean squared error of N(0, 1) coded with the nearest of n levels (ascending). */
double tkv_codebook_error(int n, const double *levels);

/* The same of the best n levels, n from 1 to 256: Lloyd's iteration (Lloyd 1982; Max 1960) to its
 * fixed point, which for a Gaussian is the only one. */
double tkv_codebook_best_error(int n);

#endif
