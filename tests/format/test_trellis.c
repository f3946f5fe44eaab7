#include "format/codec.h"
#include "format/trellis.h"
#include "kernels/kernels.h"
#include "kernels/trellis_search.h"
#include "support/support.h"

/* The cost that the search minimises, of a given path. */
static double path_cost(const tkv_trellis *trellis, int head_dim, const float *z,
                        const tkv_trellis_path *path)
{
    float levels[TKV_MAX_HEAD_DIM];
    double cost = 0.0;
    tkv_trellis_levels(trellis, head_dim, path->codes, path->start, levels);
    for (int j = 0; j < head_dim; j++) {
        const double target = fmax(-190.0, fmin(rint((double)(z[j] * trellis->unit)), 190.0));
        cost += (target - (double)levels[j]) * (target - (double)levels[j]);
    }
    return cost;
}

/* Every path of a short row, by brute force over path bits and start states. */
static double best_cost(const tkv_trellis *trellis, int head_dim, const float *z)
{
    double best = INFINITY;
    for (unsigned bits = 0; bits < 1u << (head_dim + TKV_TRELLIS_START_BITS); bits++) {
        unsigned window = bits >> head_dim;
        double cost = 0.0;
        for (int j = 0; j < head_dim && cost < best; j++) {
            double nearest = INFINITY;
            const double target = rint((double)(z[j] * trellis->unit));
            window = (window << 1 | (bits >> (head_dim - 1 - j) & 1u)) & 0x1ffu;
            for (int free = 0; free < 1 << trellis->free_bits; free++) {
                const double d = target - trellis->levels[tkv_trellis_index(window, free)];
                nearest = fmin(nearest, d * d);
            }
            cost += nearest;
        }
        best = fmin(best, cost);
    }
    return best;
}

static void search_finds_the_best_path(void **state)
{
    (void)state;
    uint64_t seed = 21;
    for (int trial = 0; trial < 20; trial++) {
        const tkv_trellis *trellis = tkv_trellis_get(3 + trial % 2);
        float z[10];
        tkv_trellis_path path;
        fill_gauss(&seed, 10, z);
        tkv_trellis_search(trellis, TKV_TRELLIS_STATE_BITS, 1.0f, 10, z, &path);
        assert_true(path_cost(trellis, 10, z, &path) == best_cost(trellis, 10, z));
    }
}

/* More survivors and more gains never lose on average, and all decode alike. */
static void efforts_are_ordered(void **state)
{
    (void)state;
    const tkv_effort order[3] = {TKV_EFFORT_FAST, TKV_EFFORT_DEFAULT, TKV_EFFORT_BEST};
    const double bounds[2][3] = {{0.0240, 0.0213, 0.0213}, {0.0920, 0.0825, 0.0820}};
    for (int t = 0; t < 2; t++) {
        const tkv_type type = t ? TKV_TYPE_TRELLIS2 : TKV_TYPE_TRELLIS3;
        double errors[3] = {0.0, 0.0, 0.0};
        for (int e = 0; e < 3; e++) {
            uint64_t seed = 5;
            for (int i = 0; i < 400; i++) {
                float y[128];
                float back[128];
                tkv_row_codes row;
                fill_gauss(&seed, 128, y);
                tkv_quantise_row(type, order[e], 128, y, &row);
                tkv_dequantise_row(type, 128, &row, back);
                const double error = relative_error(128, back, y);
                errors[e] += error * error / 400;
            }
            assert_true(errors[e] < bounds[t][e]);
        }
        assert_true(errors[0] > errors[1] && errors[1] > errors[2]);
    }
}

/* Decoding by shifted words, as kernels do it: bit j%32 of word j/32 is path bit j. */
static void windows_are_shifted_words(void **state)
{
    (void)state;
    uint64_t seed = 8;
    const tkv_trellis *trellis = tkv_trellis_get(4);
    uint8_t codes[128];
    float levels[128];
    uint32_t words[4] = {0};
    for (int j = 0; j < 128; j++) {
        codes[j] = (uint8_t)random_below(&seed, 8);
        words[j / 32] |= (uint32_t)(codes[j] >> 2) << (j % 32);
    }
    const unsigned start = 45;
    tkv_trellis_levels(trellis, 128, codes, start, levels);
    uint32_t before = 0;
    for (int bit = 0; bit < TKV_TRELLIS_START_BITS; bit++) {
        before |= (start >> bit & 1u) << (31 - bit);
    }
    for (int w = 0; w < 4; w++) {
        const uint64_t pair = (uint64_t)words[w] << 32 | (w ? words[w - 1] : before);
        uint32_t z[2] = {0, 0};
        for (int k = 0; k < 9; k++) {
            const uint32_t shifted = (uint32_t)(pair >> (32 - k));
            z[1] ^= TKV_TRELLIS_TAPS_Z1 >> k & 1u ? shifted : 0;
            z[0] ^= TKV_TRELLIS_TAPS_Z0 >> k & 1u ? shifted : 0;
        }
        for (int b = 0; b < 32; b++) {
            const int index =
                4 * (codes[32 * w + b] & 3) + 2 * (int)(z[1] >> b & 1u) + (int)(z[0] >> b & 1u);
            assert_true(levels[32 * w + b] == (float)trellis->levels[index]);
        }
    }
}

/* Rows that a search could stumble over: random, constant, far outside the levels, spikes. */
static void fill_row(uint64_t *seed, int kind, int head_dim, float *z)
{
    for (int j = 0; j < head_dim; j++) {
        const float g = random_gauss(seed);
        const float values[] = {g,       g, g, 1.0f, j % 2 ? 10.0f : -10.0f, j % 37 ? 0.0f : 6.0f,
                                3.0f * g};
        z[j] = values[kind % 7];
    }
}

typedef void (*search_function)(const tkv_trellis *trellis, int survivor_bits, float gain,
                                int head_dim, const float *z, tkv_trellis_path *path);

/* Vector searches give the reference's path, whatever the row, the gain and the size. */
static void check_search(search_function search)
{
    const float gains[] = {1.0f, 0.97f, 1.03f};
    uint64_t seed = 99;
    for (int trial = 0; trial < 3000; trial++) {
        const tkv_trellis *trellis = tkv_trellis_get(3 + trial % 2);
        const int head_dim = trial % 16 ? 64 + 16 * (trial % 5) : 576;
        float z[576];
        tkv_trellis_path expected;
        tkv_trellis_path actual;
        const int bits = trial % 50 ? TKV_TRELLIS_STATE_BITS : 5;
        fill_row(&seed, trial, head_dim, z);
        tkv_trellis_search(trellis, bits, gains[trial % 3], head_dim, z, &expected);
        search(trellis, bits, gains[trial % 3], head_dim, z, &actual);
        assert_int_equal(actual.start, expected.start);
        assert_memory_equal(actual.codes, expected.codes, (size_t)head_dim);
    }
}

/* The search of a kernel table; the reference's for those that bring none. */
static search_function search_of(const char *kernels)
{
#if defined(TKV_HAVE_X86_KERNELS)
    if (strcmp(kernels, "avx2") == 0) {
        return tkv_trellis_search_avx2;
    }
    if (strcmp(kernels, "avx512") == 0) {
        return tkv_trellis_search_avx512;
    }
#elif defined(TKV_HAVE_ARM64_KERNELS)
    if (strcmp(kernels, "neon") == 0 || strcmp(kernels, "dotprod") == 0 ||
        strcmp(kernels, "i8mm") == 0) {
        return tkv_trellis_search_neon;
    }
#endif
    assert_string_equal(kernels, "scalar");
    return tkv_trellis_search;
}

static void vector_searches_find_the_same_path(void **state)
{
    (void)state;
    const tkv_kernels *kernels;
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        print_message("search of %s\n", kernels->name);
        check_search(search_of(kernels->name));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(search_finds_the_best_path),
                                       cmocka_unit_test(efforts_are_ordered),
                                       cmocka_unit_test(windows_are_shifted_words),
                                       cmocka_unit_test(vector_searches_find_the_same_path)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
