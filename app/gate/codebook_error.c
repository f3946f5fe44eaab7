#include "gate/codebook_error.h"

#include <math.h>

#define MAX_LEVELS 256
#define MAX_ROUNDS 200000

static const double CONVERGED = 1e-10;

/* P(x < t), and the density at t; t may be infinite. */
static double below(double t)
{
    return 0.5 * erfc(-t / sqrt(2.0));
}

static double density(double t)
{
    return isinf(t) ? 0.0 : exp(-0.5 * t * t) / sqrt(2.0 * acos(-1.0));
}

/* P, E[x] and E[x^2] of what lies between a and b. */
static void moments(double a, double b, double m[3])
{
    /* Both in the upper half would lose their digits in 1 - tiny. */
    m[0] = a > 0.0 ? below(-a) - below(-b) : below(b) - below(a);
    m[1] = density(a) - density(b);
    m[2] = m[0] + (isinf(a) ? 0.0 : a * density(a)) - (isinf(b) ? 0.0 : b * density(b));
}

static double edge(int n, const double *levels, int i)
{
    return i == 0 ? -INFINITY : i == n ? INFINITY : 0.5 * (levels[i - 1] + levels[i]);
}

double tkv_codebook_error(int n, const double *levels)
{
    double error = 0.0;
    for (int i = 0; i < n; i++) {
        double m[3];
        moments(edge(n, levels, i), edge(n, levels, i + 1), m);
        error += m[2] - 2.0 * levels[i] * m[1] + levels[i] * levels[i] * m[0];
    }
    return error;
}

double tkv_codebook_best_error(int n)
{
    double levels[MAX_LEVELS];
    double largest_step = 1.0;
    for (int i = 0; i < n; i++) {
        levels[i] = 3.0 * ((2.0 * i + 1.0) / n - 1.0);
    }
    for (int round = 0; round < MAX_ROUNDS && largest_step > CONVERGED; round++) {
        largest_step = 0.0;
        double next[MAX_LEVELS];
        for (int i = 0; i < n; i++) {
            double m[3];
            moments(edge(n, levels, i), edge(n, levels, i + 1), m);
            next[i] = m[0] > 0.0 ? m[1] / m[0] : levels[i];
            largest_step = fmax(largest_step, fabs(next[i] - levels[i]));
        }
        for (int i = 0; i < n; i++) {
            levels[i] = next[i];
        }
    }
    return tkv_codebook_error(n, levels);
}
