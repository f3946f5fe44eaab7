/* One harness that checks kernels and times them, in the manner of dav1d's checkasm: the gate, the
 * conformance tests and `turbokv bench kernels` run its cases. Outputs lie between guards, rows are
 * random or made to do harm, and expected values come from the scalar reference, from double
 * precision on what the codes stand for, and from known digests. It prints nothing: every case is
 * reported to the caller. */
#ifndef TKV_CHECK_CHECK_H
#define TKV_CHECK_CHECK_H

#include "device/device.h"
#include "kernels/kernels.h"
#include "turbokv.h"

/* tkv_check_run on tables of kernels; when timed, ratios are to the first. */
tkv_status tkv_check_kernels(const tkv_kernels *const *tables, int n_tables,
                             const tkv_check_params *params, tkv_check_report report, void *user,
                             tkv_error *error);

/* The same of a device. */
tkv_status tkv_check_device(tkv_device *device, const tkv_check_params *params,
                            tkv_check_report report, void *user, tkv_error *error);

/* Tables that tkv_check_kernels takes at most. */
#define TKV_CHECK_MAX_TABLES 8

/* A run. Where an error of a device, or lack of memory, has ended it, `status` says so, and what
 * is still called does nothing. */
typedef struct tkv_check {
    const tkv_check_params *params;
    tkv_check_report report;
    void *user;
    tkv_status status;
    tkv_error *error;
    tkv_check_result result; /* of the case under way, as far as it is known */
    char text[400];          /* that the result points to */
    char fault[200];
} tkv_check;

bool tkv_check_is_on(const tkv_check *check);

/* Whether the run has an operation among those that the caller asked for. */
bool tkv_check_wants(const tkv_check *check, tkv_operation operation);

/* Whether the run is to take a head_dim. */
bool tkv_check_takes_dim(const tkv_check *check, int head_dim);

/* The seed of case `index`. */
uint64_t tkv_check_seed(const tkv_check *check, int index);

/* Buffers of a case, each between guards; all are given back together. */
enum { TKV_CHECK_MAX_BUFFERS = 16 };
typedef struct tkv_check_memory {
    tkv_check *check;
    int n;
    uint8_t *buffers[TKV_CHECK_MAX_BUFFERS]; /* with their guards */
    size_t bytes[TKV_CHECK_MAX_BUFFERS];     /* without */
} tkv_check_memory;

/* A buffer of bytes 0xa5, aligned to 64; NULL, and the run is over, if there is no memory. */
void *tkv_check_take(tkv_check_memory *memory, size_t bytes);

/* n floats that lie off a vector's boundary. */
float *tkv_check_take_floats(tkv_check_memory *memory, size_t n);

void tkv_check_give_back(tkv_check_memory *memory);

/* Names the case under way: the operation, and what else it is made of. */
void tkv_check_name(tkv_check *check, tkv_operation operation, tkv_type type, int head_dim,
                    const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Reports it: the largest error and what it may be. It fails if the error is larger, or no number,
 * or if something was written between the buffers of `memory` (NULL: none). `fault` is what to say
 * then, NULL: the numbers. */
void tkv_check_tell(tkv_check *check, const tkv_check_memory *memory, double error, double bound,
                    const char *fault);

/* The same of what must be equal to the bit. */
void tkv_check_tell_equal(tkv_check *check, const tkv_check_memory *memory, const void *found,
                          const void *expected, size_t bytes);

/* The larger of two errors, infinity if either is no number. */
double tkv_check_worse(double a, double b);

/* FNV-1a, from TKV_CHECK_DIGEST on. */
#define TKV_CHECK_DIGEST 0xcbf29ce484222325u
uint64_t tkv_check_digest(uint64_t digest, const void *data, size_t n);

/* Kinds of rows: Gaussian, a spike, zero, tiny, huge, constant, on a grid, denormal, near the
 * largest float, with an outlier, nearly all in a run of coordinates of the rotated row (for the
 * trellis: the costs of which its search's metrics saturate), not finite. */
enum { TKV_CHECK_FINITE_KINDS = 11, TKV_CHECK_KINDS = 12 };

/* Fills rows x + i * stride [head_dim] with rows of the first n_kinds kinds at random; 1: Gaussian,
 * or nearly. The same floats everywhere. */
void tkv_check_rows(uint64_t *seed, int n_rows, int head_dim, size_t stride, int n_kinds, float *x);

/* The format says that a row decodes to NaN, not to which. */
void tkv_check_unify_nan(size_t n, float *x);

double tkv_check_norm(int n, const float *x);

/* Head sizes that the known answers are given for; what rows are padded to. */
enum { TKV_CHECK_DIMS = 9 };
extern const int tkv_check_dims[TKV_CHECK_DIMS];

/* The cases of one table of kernels: by operation; what it adds to the error of the codes; pages
 * of any bits at all. */
void tkv_check_rotation(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_softmax(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_coding(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_products(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_errors(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_hostile_pages(tkv_check *check, const tkv_kernels *kernels);

/* One case of the shape that is timed, so that nothing wrong is timed unnoticed. */
void tkv_check_shape(tkv_check *check, const tkv_kernels *kernels, tkv_operation operation,
                     tkv_type type, int head_dim);
void tkv_check_rotation_shape(tkv_check *check, const tkv_kernels *kernels, int head_dim);
void tkv_check_softmax_shape(tkv_check *check, const tkv_kernels *kernels);
void tkv_check_coding_shape(tkv_check *check, const tkv_kernels *kernels, tkv_type type,
                            int head_dim);
void tkv_check_products_shape(tkv_check *check, const tkv_kernels *kernels, tkv_type type,
                              int head_dim);

/* Queries that attend to a page at a time where kernels are timed: a group of four. */
enum { TKV_CHECK_GROUP = 4 };

/* Times the operations of several tables in turns. */
void tkv_check_speed(tkv_check *check, const tkv_kernels *const *tables, int n_tables);

/* Types and head sizes that are timed, by index from 0; TKV_TYPE_COUNT and 0 beyond the last. */
tkv_type tkv_check_timed_type(const tkv_check_params *params, int index);
int tkv_check_timed_dim(const tkv_check_params *params, int index);

#endif
