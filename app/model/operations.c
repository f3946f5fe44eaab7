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

/* (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)) */
void tkv_geglu(size_t n, float *gate, const float *up)
{
    const float twice_root = 1.5957691216f; /* 2 sqrt(2/pi) */
    for (size_t i = 0; i < n; i++) {
        const float z = gate[i];
        gate[i] = z / (1.0f + expf(-twice_root * (z + 0.044715f * z * z * z))) * up[i];
    }
}

void tkv_scale(size_t n, float *x, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
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
