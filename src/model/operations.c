#include "model/operations.h"

#include <math.h>

static float root_mean_square(size_t width, const float *x, float epsilon)
{
    double sum = 0.0;
    for (size_t i = 0; i < width; i++)
        sum += (double)x[i] * x[i];
    return (float)sqrt(sum / (double)width + epsilon);
}

void tkv_rms_norm(size_t n_rows, size_t width, const float *x, const float *weight, float epsilon,
                  float *y)
{
    for (size_t row = 0; row < n_rows; row++, x += width, y += width) {
        const float inverse = 1.0f / root_mean_square(width, x, epsilon);
        for (size_t i = 0; i < width; i++)
            y[i] = x[i] * inverse * weight[i];
    }
}

void tkv_swiglu(size_t n, float *gate, const float *up)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void tkv_add(size_t n, float *x, const float *y)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

void tkv_add_bias(size_t n_rows, size_t width, float *x, const float *bias)
{
    for (size_t row = 0; row < n_rows; row++)
        tkv_add(width, x + row * width, bias);
}
