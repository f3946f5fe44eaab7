/* Rows that a device moves to other widths and positions, to the bit, and parts of attention that
 * it joins, against sums in double. */
#include "base/random.h"
#include "base/rope.h"
#include "check/trial.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Kinds of rows without denormals, which Metal's shading language lets become zero. */
enum { N_ROW_KINDS = 7 };

static const double JOIN_BOUND = 1e-5;
static const double SUM_BOUND = 1e-6;

/* ---- Rows ---------------------------------------------------------------------------------- */

/* What the CPU makes of the rows. */
static void move_here(const tkv_device_rows *rows, bool is_turned, const float *turns,
                      const float *from, float *to)
{
    for (size_t i = 0; i < rows->n_rows; i++) {
        const tkv_rope rope = {rows->is_interleaved != 0, 2 * rows->n_pairs, NULL};
        float row[TKV_MAX_HEAD_DIM] = {0};
        memcpy(row, from + i * (size_t)rows->from_width, (size_t)rows->from_width * sizeof *row);
        if (is_turned) {
            tkv_turn_key(&rope, turns, rows->is_back != 0, row);
        }
        memcpy(to + i * (size_t)rows->to_width, row, (size_t)rows->to_width * sizeof *row);
    }
}

/* n_pairs < 0: not turned. */
static void check_rows(tkv_trial *trial, const tkv_device_rows *shape)
{
    tkv_device_rows rows = *shape;
    const size_t n_from = (size_t)rows.n_rows * (size_t)rows.from_width;
    const size_t n_to = (size_t)rows.n_rows * (size_t)rows.to_width;
    const bool is_turned = rows.n_pairs >= 0;
    uint64_t seed = rows.n_rows + 100 * n_from + 10 * n_to;
    float turns[TKV_MAX_HEAD_DIM] = {0};
    float *from = tkv_trial_host(trial, n_from * sizeof *from);
    float *expected = tkv_trial_host(trial, n_to * sizeof *expected);
    for (int i = 0; i < rows.n_pairs; i++) {
        const double angle = 10.0 * (double)tkv_random_near_gauss(&seed);
        turns[i] = (float)cos(angle);
        turns[rows.n_pairs + i] = (float)sin(angle);
    }
    if (tkv_trial_is_on(trial)) {
        tkv_check_rows(&seed, (int)rows.n_rows, rows.from_width, (size_t)rows.from_width,
                       N_ROW_KINDS, from);
    }
    rows.from = tkv_trial_put(trial, from, n_from * sizeof *from);
    rows.to = tkv_trial_put_guarded(trial, n_to);
    rows.turns = is_turned ? tkv_trial_put(trial, turns, sizeof turns) : 0;
    rows.n_pairs = is_turned ? rows.n_pairs : 0;
    if (tkv_trial_is_on(trial)) {
        move_here(&rows, is_turned, turns, from, expected);
        tkv_trial_note(trial, trial->table->move_rows(trial->device, &rows, trial->check->error));
    }
    bool is_intact = true;
    const float *found = tkv_trial_get_guarded(trial, rows.to, n_to, &is_intact);
    if (found) {
        tkv_check_name(trial->check, TKV_OPERATION_MOVE_ROWS, TKV_TYPE_COUNT, rows.to_width,
                       "%d rows from width %d, turned %d, %d pairs, interleaved %d, back %d",
                       (int)rows.n_rows, rows.from_width, is_turned, rows.n_pairs,
                       rows.is_interleaved, rows.is_back);
        tkv_check_tell_equal(trial->check, NULL, found, expected, n_to * sizeof *found);
        tkv_check_tell(trial->check, NULL, !is_intact, 0.0, "writes outside its arrays");
    }
    tkv_trial_end(trial);
}

void tkv_check_device_rows(tkv_trial *trial)
{
    const int widths[][2] = {{2, 16},  {16, 2},    {128, 128},   {100, 112}, {112, 100},
                             {80, 80}, {126, 128}, {1024, 1024}, {34, 48},   {250, 256}};
    const bool is_all = trial->check->params->mode == TKV_CHECK_ALL;
    if (!tkv_check_wants(trial->check, TKV_OPERATION_MOVE_ROWS)) {
        return;
    }
    for (int i = 0; i < 10; i++) {
        const int smaller = widths[i][0] < widths[i][1] ? widths[i][0] : widths[i][1];
        const int pairs[] = {-1, 0, 1, smaller / 4, smaller / 2};
        for (int k = 0; k < 20; k += is_all ? 1 : 3) {
            const tkv_device_rows rows = {.n_rows = (uint64_t)(1 + (7 * i + 3 * k) % 40),
                                          .from_width = widths[i][0],
                                          .to_width = widths[i][1],
                                          .n_pairs = pairs[k % 5],
                                          .is_interleaved = k / 5 % 2,
                                          .is_back = k / 10};
            check_rows(trial, &rows);
        }
    }
    if (tkv_trial_is_on(trial)) {
        const tkv_device_rows none = {.from_width = 128, .to_width = 128};
        tkv_trial_note(trial, trial->table->move_rows(trial->device, &none, trial->check->error));
    }
}

/* ---- Joining ------------------------------------------------------------------------------- */

/* Parts that see nothing hold NaN; part 0 sees something in every row. Every 17th sum is NaN, and
 * with it what is joined of its row. */
static void make_parts(const tkv_device_join *shape, uint64_t *seed, float *parts, float *log_sums)
{
    const size_t n_rows = (size_t)shape->n_rows;
    const size_t width = (size_t)shape->from_width;
    tkv_random_fill(seed, n_rows * (size_t)shape->n_parts * width, parts);
    for (size_t i = 0; i < n_rows * (size_t)shape->n_parts; i++) {
        const bool is_nothing = i >= n_rows && tkv_random_below(seed, 3) == 0;
        log_sums[i] = is_nothing     ? -INFINITY
                      : i % 17 == 16 ? NAN
                                     : 4.0f * tkv_random_near_gauss(seed) + (i % 5 ? 0.0f : 200.0f);
        for (size_t j = 0; is_nothing && j < width; j++) {
            parts[i * width + j] = NAN;
        }
    }
}

/* The join of one row in double; returns the logarithm of the sum. */
static double join_row(const tkv_device_join *shape, const float *parts, const float *log_sums,
                       size_t row, double *out)
{
    const size_t n_rows = (size_t)shape->n_rows;
    double maximum = -INFINITY;
    double sum = 0.0;
    for (size_t p = 0; p < (size_t)shape->n_parts; p++) {
        maximum = fmax(maximum, (double)log_sums[p * n_rows + row]);
    }
    for (int j = 0; j < shape->to_width; j++) {
        out[j] = 0.0;
    }
    for (size_t p = 0; p < (size_t)shape->n_parts; p++) {
        const double weight = exp((double)log_sums[p * n_rows + row] - maximum);
        const float *part = parts + (p * n_rows + row) * (size_t)shape->from_width;
        sum += weight;
        for (int j = 0; weight != 0.0 && j < shape->to_width; j++) {
            out[j] += weight * (double)part[j];
        }
    }
    for (int j = 0; j < shape->to_width; j++) {
        out[j] /= sum;
    }
    return maximum + log(sum);
}

/* In units of the bound; what should be NaN must be. */
static double error_of(double found, double expected, double bound)
{
    if (isnan(expected) || isnan(found)) {
        return isnan(expected) && isnan(found) ? 0.0 : INFINITY;
    }
    return found == expected ? 0.0 : fabs(found - expected) / bound;
}

/* `sums` may be NULL. */
static double join_error(const tkv_device_join *join, const float *parts, const float *log_sums,
                         const float *out, const float *sums)
{
    double worst = 0.0;
    for (size_t i = 0; i < join->n_rows; i++) {
        double expected[TKV_MAX_HEAD_DIM];
        const double log_sum = join_row(join, parts, log_sums, i, expected);
        for (int j = 0; j < join->to_width; j++) {
            const double found = (double)out[i * (size_t)join->to_width + (size_t)j];
            worst = fmax(worst, error_of(found, expected[j], JOIN_BOUND));
        }
        if (sums) {
            const double bound = SUM_BOUND * (1.0 + fabs(log_sum));
            worst = fmax(worst, error_of((double)sums[i], log_sum, bound));
        }
    }
    return worst;
}

static void check_join(tkv_trial *trial, const tkv_device_join *shape, bool has_sums)
{
    tkv_device_join join = *shape;
    const size_t n_rows = (size_t)join.n_rows;
    const size_t n_out = n_rows * (size_t)join.to_width;
    const size_t n_part_rows = n_rows * (size_t)join.n_parts;
    const size_t n_values = n_part_rows * (size_t)join.from_width;
    uint64_t seed = n_values + n_out;
    float *parts = tkv_trial_host(trial, n_values * sizeof *parts);
    float *log_sums = tkv_trial_host(trial, n_part_rows * sizeof *log_sums);
    if (tkv_trial_is_on(trial)) {
        make_parts(&join, &seed, parts, log_sums);
    }
    join.parts = tkv_trial_put(trial, parts, n_values * sizeof *parts);
    join.log_sums = tkv_trial_put(trial, log_sums, n_part_rows * sizeof *log_sums);
    join.out = tkv_trial_put_guarded(trial, n_out);
    join.log_sums_out = has_sums ? tkv_trial_put_guarded(trial, n_rows) : 0;
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->join(trial->device, &join, trial->check->error));
    }
    bool is_intact = true;
    const float *out = tkv_trial_get_guarded(trial, join.out, n_out, &is_intact);
    const float *sums =
        has_sums ? tkv_trial_get_guarded(trial, join.log_sums_out, n_rows, &is_intact) : NULL;
    if (tkv_trial_is_on(trial)) {
        const double error = join_error(&join, parts, log_sums, out, sums);
        tkv_check_name(trial->check, TKV_OPERATION_JOIN, TKV_TYPE_COUNT, join.to_width,
                       "%d rows of %d parts of width %d", (int)n_rows, join.n_parts,
                       join.from_width);
        tkv_check_tell(trial->check, NULL, is_intact ? error : INFINITY, 1.0, NULL);
    }
    tkv_trial_end(trial);
}

void tkv_check_device_join(tkv_trial *trial)
{
    const int widths[][2] = {{128, 128}, {16, 2}, {112, 100}, {1024, 1024}, {80, 80}, {48, 34}};
    const bool is_all = trial->check->params->mode == TKV_CHECK_ALL;
    if (!tkv_check_wants(trial->check, TKV_OPERATION_JOIN)) {
        return;
    }
    for (int i = 0; i < 30; i += is_all ? 1 : 3) {
        const tkv_device_join join = {.n_rows = (uint64_t)(1 + 11 * i % 50),
                                      .n_parts = 1 + i % 7,
                                      .from_width = widths[i % 6][0],
                                      .to_width = widths[i % 6][1]};
        check_join(trial, &join, i / 2 % 2);
    }
    if (tkv_trial_is_on(trial)) {
        const tkv_device_join none = {.n_parts = 2, .from_width = 128, .to_width = 128};
        tkv_trial_note(trial, trial->table->join(trial->device, &none, trial->check->error));
    }
}
