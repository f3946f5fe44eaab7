/* Rows between the caller and the pages, and parts of attention joined. */
#include "base/rope.h"
#include "device/host/host.h"

#include <math.h>
#include <string.h>

tkv_status tkv_host_move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error)
{
    (void)device;
    (void)error;
    const float *from = tkv_host_pointer(rows->from);
    const float *turns = tkv_host_pointer(rows->turns);
    float *to = tkv_host_pointer(rows->to);
    const tkv_rope rope = {rows->is_interleaved != 0, 2 * rows->n_pairs, NULL};
    for (size_t i = 0; i < rows->n_rows; i++) {
        float row[TKV_MAX_HEAD_DIM] = {0};
        memcpy(row, from + i * (size_t)rows->from_width, (size_t)rows->from_width * sizeof *row);
        if (turns) {
            tkv_turn_key(&rope, turns, rows->is_back != 0, row);
        }
        memcpy(to + i * (size_t)rows->to_width, row, (size_t)rows->to_width * sizeof *row);
    }
    return TKV_OK;
}

/* One row of the whole. A part in which the row sees nothing has a log-sum of minus infinity. */
static void join_row(const tkv_device_join *join, size_t i, float *out, float *log_sum_out)
{
    const float *parts = tkv_host_pointer(join->parts);
    const float *log_sums = tkv_host_pointer(join->log_sums);
    double row[TKV_MAX_HEAD_DIM] = {0};
    double maximum = -INFINITY;
    double sum = 0.0;
    for (size_t p = 0; p < (size_t)join->n_parts; p++) {
        const double log_sum = (double)log_sums[p * join->n_rows + i];
        maximum = log_sum > maximum ? log_sum : maximum; /* fmax breaks GCC 12 for ARM64 */
    }
    for (size_t p = 0; p < (size_t)join->n_parts; p++) {
        const size_t index = p * join->n_rows + i;
        const double weight = exp((double)log_sums[index] - maximum);
        const float *part = parts + index * (size_t)join->from_width;
        sum += weight;
        for (int j = 0; weight > 0.0 && j < join->to_width; j++) {
            row[j] += weight * (double)part[j];
        }
    }
    for (int j = 0; j < join->to_width; j++) {
        out[j] = (float)(row[j] / sum);
    }
    if (log_sum_out) {
        *log_sum_out = (float)(maximum + log(sum));
    }
}

tkv_status tkv_host_join(tkv_device *device, const tkv_device_join *join, tkv_error *error)
{
    (void)device;
    (void)error;
    float *out = tkv_host_pointer(join->out);
    float *log_sums_out = tkv_host_pointer(join->log_sums_out);
    for (size_t i = 0; i < join->n_rows; i++) {
        join_row(join, i, out + i * (size_t)join->to_width, log_sums_out ? log_sums_out + i : NULL);
    }
    return TKV_OK;
}
