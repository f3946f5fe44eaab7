#include "model/matmul.h"

#include "common/try.h"
#include "model/dequantise.h"
#include "model/dot_q8_0.h"
#include "model/simd_clones.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>

/* Up to this many rows of x, reading the weights in their own type beats the BLAS. */
#define FEW_ROWS 8
#define LANES 32
/* Values that are dequantised at a time: stays in the first-level cache. */
#define CHUNK 1024
/* A dequantised tile should stay in the second-level cache, but have enough rows for the BLAS to
 * pay for packing x again. */
#define TILE_BYTES ((size_t)4 << 20)
#define MIN_TILE_ROWS 64
/* Below some 20 us of work a thread may wake too late to be of use. */
#define MIN_PARALLEL_WEIGHTS ((size_t)1 << 18)
#define PARTS_PER_THREAD 4

typedef struct product {
    const tkv_weight_format *format;
    const uint8_t *weights;
    size_t row_bytes;
    int n_in;
    int n_out;
    int n_rows;
    const float *x;
    float *y;
    const tkv_matmul_means *means;
} product;

/* The caller alone without a context. */
static int count_threads(const product *p)
{
    return p->means->context ? tkv_context_threads(p->means->context) : 1;
}

static bool is_stopped(const product *p)
{
    return tkv_context_is_stopped(p->means->context);
}

/* Sums in lanes, so that the compiler may vectorise without reordering. n is any length. */
TKV_SIMD_CLONES
static float dot(size_t n, const float *a, const float *b)
{
    float lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            lanes[lane] += a[i + lane] * b[i + lane];
        }
    }
    for (int width = LANES / 2; width > 0; width /= 2) {
        for (int lane = 0; lane < width; lane++) {
            lanes[lane] += lanes[lane + width];
        }
    }
    for (; i < n; i++) {
        lanes[0] += a[i] * b[i];
    }
    return lanes[0];
}

/* One column of y: a row of weights against all rows of x. */
static void multiply_weight_row(const product *p, int out)
{
    float chunk[CHUNK];
    float sums[FEW_ROWS] = {0};
    const uint8_t *row = p->weights + (size_t)out * p->row_bytes;
    const size_t n_in = (size_t)p->n_in;
    for (size_t i = 0; i < n_in; i += CHUNK) {
        const size_t n = n_in - i < CHUNK ? n_in - i : CHUNK;
        p->format->dequantise(row + i / p->format->block_length * p->format->block_bytes, n, chunk);
        for (int r = 0; r < p->n_rows; r++) {
            sums[r] += dot(n, chunk, p->x + (size_t)r * n_in + i);
        }
    }
    for (int r = 0; r < p->n_rows; r++) {
        p->y[(size_t)r * (size_t)p->n_out + (size_t)out] = sums[r];
    }
}

/* Threads, and parts for them to take: several each, since a thread may come late. */
static int choose_parts(const product *p, int *n_threads)
{
    *n_threads = count_threads(p);
    if (*n_threads == 1 || (size_t)p->n_in * (size_t)p->n_out < MIN_PARALLEL_WEIGHTS) {
        *n_threads = 1;
        return 1;
    }
    return PARTS_PER_THREAD * *n_threads < p->n_out ? PARTS_PER_THREAD * *n_threads : p->n_out;
}

typedef struct few_job {
    const product *p;
    int n_parts;
    tkv_dot_q8_0 dot; /* NULL: not for this product */
} few_job;

static void multiply_part(void *argument, int part, int thread)
{
    (void)thread;
    const few_job *job = argument;
    const product *p = job->p;
    const int64_t n_out = p->n_out;
    const int end = is_stopped(p) ? 0 : (int)(n_out * (part + 1) / job->n_parts);
    int out = (int)(n_out * part / job->n_parts);
    for (; job->dot && out + TKV_DOT_ROWS <= end; out += TKV_DOT_ROWS) {
        job->dot((size_t)p->n_in, p->weights + (size_t)out * p->row_bytes, p->row_bytes, p->x,
                 p->y + out);
    }
    for (; out < end; out++) {
        multiply_weight_row(p, out);
    }
}

static void multiply_few(const product *p)
{
    int n_threads;
    const bool has_dot = p->format->type == TKV_WEIGHT_Q8_0 && p->n_rows == 1;
    few_job job = {p, choose_parts(p, &n_threads), has_dot ? tkv_dot_q8_0_get() : NULL};
    tkv_context_run(p->means->context, n_threads, job.n_parts, multiply_part, &job);
}

/* Many rows without a BLAS: the weights are read for every few of them. */
static void multiply_groups(const product *p)
{
    for (int row = 0; row < p->n_rows; row += FEW_ROWS) {
        product few = *p;
        few.n_rows = p->n_rows - row < FEW_ROWS ? p->n_rows - row : FEW_ROWS;
        few.x = p->x + (size_t)row * (size_t)p->n_in;
        few.y = p->y + (size_t)row * (size_t)p->n_out;
        multiply_few(&few);
    }
}

static int tile_rows(const product *p, int n_threads)
{
    const size_t fitting = TILE_BYTES / ((size_t)p->n_in * sizeof(float));
    const int share = (p->n_out + n_threads - 1) / n_threads;
    int rows = fitting < (size_t)share ? (int)fitting : share;
    rows = rows < MIN_TILE_ROWS ? MIN_TILE_ROWS : rows;
    return rows < p->n_out ? rows : p->n_out;
}

typedef struct many_job {
    const product *p;
    int rows;     /* a tile */
    float *tiles; /* [n_threads][rows][n_in] */
} many_job;

/* Columns of y through the BLAS. */
static void multiply_tile(void *argument, int item, int thread)
{
    const many_job *job = argument;
    const product *p = job->p;
    const size_t n_in = (size_t)p->n_in;
    const int first = item * job->rows;
    const int n = p->n_out - first < job->rows ? p->n_out - first : job->rows;
    float *tile = job->tiles + (size_t)thread * (size_t)job->rows * n_in;
    if (is_stopped(p)) {
        return;
    }
    for (int i = 0; i < n; i++) {
        p->format->dequantise(p->weights + (size_t)(first + i) * p->row_bytes, n_in,
                              tile + (size_t)i * n_in);
    }
    tkv_blas_multiply(p->means->blas, p->n_rows, n, p->n_in, p->x, tile, p->y + first, p->n_out);
}

static tkv_status multiply_many(const product *p, tkv_error *error)
{
    const int n_team = count_threads(p);
    const int n_allowed = tkv_blas_threads(p->means->blas);
    const int n_threads = n_team < n_allowed ? n_team : n_allowed;
    many_job job = {p, tile_rows(p, n_threads), NULL};
    const int n_tiles = (p->n_out + job.rows - 1) / job.rows;
    const size_t n_used = (size_t)(n_threads < n_tiles ? n_threads : n_tiles);
    job.tiles = malloc(n_used * (size_t)job.rows * (size_t)p->n_in * sizeof *job.tiles);
    if (!job.tiles) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu tiles of %d x %d weights",
                        n_used, job.rows, p->n_in);
    }
    tkv_context_run(p->means->context, (int)n_used, n_tiles, multiply_tile, &job);
    free(job.tiles);
    return TKV_OK;
}

tkv_status tkv_matmul(const tkv_gguf_tensor *weight, int n_rows, const float *x, float *y,
                      const tkv_matmul_means *means, tkv_error *error)
{
    const tkv_weight_format *format = tkv_weight_format_get(weight->type);
    if (!format || weight->dims[2] != 1 || weight->dims[3] != 1 || weight->dims[0] > INT_MAX ||
        weight->dims[1] > INT_MAX) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "tensor %.64s, %s, of the shape %" PRIu64 " x %" PRIu64 " x %" PRIu64
                        " x %" PRIu64 ": expected a matrix of a supported type",
                        weight->name, tkv_weight_type_name(weight->type), weight->dims[0],
                        weight->dims[1], weight->dims[2], weight->dims[3]);
    }
    const product p = {.format = format,
                       .weights = weight->data,
                       .row_bytes =
                           (size_t)weight->dims[0] / format->block_length * format->block_bytes,
                       .n_in = (int)weight->dims[0],
                       .n_out = (int)weight->dims[1],
                       .n_rows = n_rows,
                       .x = x,
                       .y = y,
                       .means = means};
    if (n_rows <= FEW_ROWS) {
        multiply_few(&p);
    } else if (!means->blas) {
        multiply_groups(&p);
    } else {
        TKV_TRY(multiply_many(&p, error));
    }
    if (is_stopped(&p)) {
        return tkv_fail(error, TKV_ERR_INTERRUPTED, "a product was interrupted");
    }
    return TKV_OK;
}
