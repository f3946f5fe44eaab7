/* Rows moved to other widths and positions, and parts of attention joined, by every device table of
 * this build on every device that it finds: the former as on the CPU to the bit, the latter against
 * sums in double. TKV_TEST_QUICK=1 as in test_device.c. */
#include "cache/cache.h"
#include "conformance/device_case.h"

/* Values in the device's memory between guards. */
static uint64_t put_guarded(const device_under_test *dut, size_t n)
{
    float *x = allocate((n + GUARD_FLOATS) * sizeof *x);
    for (size_t i = 0; i < n + GUARD_FLOATS; i++) {
        x[i] = i < n ? NAN : GUARD_VALUE;
    }
    const uint64_t address = device_put(dut, x, (n + GUARD_FLOATS) * sizeof *x);
    free(x);
    return address;
}

static float *get_guarded(const device_under_test *dut, uint64_t address, size_t n)
{
    float *x = allocate((n + GUARD_FLOATS) * sizeof *x);
    assert_ok(
        dut->table->download(dut->device, x, address, (n + GUARD_FLOATS) * sizeof *x, &error));
    for (size_t i = 0; i < GUARD_FLOATS; i++) {
        assert_true(x[n + i] == GUARD_VALUE);
    }
    dut->table->release(dut->device, address);
    return x;
}

/* Kinds of rows without denormals, which Metal's shading language lets become zero. */
enum { N_ROW_KINDS = 7 };

/* ---- Rows ---------------------------------------------------------------------------------- */

/* n_pairs < 0: not turned. */
static void check_rows(const device_under_test *dut, const tkv_device_rows *shape)
{
    tkv_device_rows rows = *shape;
    const size_t n_rows = (size_t)rows.n_rows;
    const size_t from_width = (size_t)rows.from_width;
    const size_t to_width = (size_t)rows.to_width;
    const bool is_turned = rows.n_pairs >= 0;
    uint64_t seed = n_rows + 100 * from_width + 10 * to_width;
    float turns[TKV_MAX_HEAD_DIM] = {0};
    for (int i = 0; i < rows.n_pairs; i++) {
        const double angle = 10.0 * (double)random_gauss(&seed);
        turns[i] = (float)cos(angle);
        turns[rows.n_pairs + i] = (float)sin(angle);
    }
    float *from = case_rows(&seed, (int)n_rows, rows.from_width, N_ROW_KINDS);
    rows.from = device_put(dut, from, n_rows * from_width * sizeof *from);
    rows.to = put_guarded(dut, n_rows * to_width);
    rows.turns = is_turned ? device_put(dut, turns, sizeof turns) : 0;
    rows.n_pairs = is_turned ? rows.n_pairs : 0;
    assert_ok(dut->table->move_rows(dut->device, &rows, &error));
    float *to = get_guarded(dut, rows.to, n_rows * to_width);
    for (size_t i = 0; i < n_rows; i++) {
        const tkv_rope rope = {rows.is_interleaved != 0, 2 * rows.n_pairs, NULL};
        float row[TKV_MAX_HEAD_DIM] = {0};
        memcpy(row, from + i * from_width, from_width * sizeof *row);
        if (is_turned) {
            tkv_turn_key(&rope, turns, rows.is_back != 0, row);
        }
        if (memcmp(row, to + i * to_width, to_width * sizeof *row) != 0) {
            fail_msg("row %zu of %zu, from width %d to %d, turns %d, %d pairs, interleaved %d, "
                     "back %d, is not that of the CPU",
                     i, n_rows, rows.from_width, rows.to_width, is_turned, rows.n_pairs,
                     rows.is_interleaved, rows.is_back);
        }
    }
    dut->table->release(dut->device, rows.from);
    if (is_turned) {
        dut->table->release(dut->device, rows.turns);
    }
    free(from);
    free(to);
}

static void rows_are_moved_to_the_bit(device_under_test *dut)
{
    const int widths[][2] = {{2, 16},  {16, 2},    {128, 128},   {100, 112}, {112, 100},
                             {80, 80}, {126, 128}, {1024, 1024}, {34, 48},   {250, 256}};
    for (int i = 0; i < 10; i++) {
        const int smaller = widths[i][0] < widths[i][1] ? widths[i][0] : widths[i][1];
        const int pairs[] = {-1, 0, 1, smaller / 4, smaller / 2};
        for (int k = 0; k < 20; k += dut->is_quick ? 3 : 1) {
            const tkv_device_rows rows = {.n_rows = (uint64_t)(1 + (7 * i + 3 * k) % 40),
                                          .from_width = widths[i][0],
                                          .to_width = widths[i][1],
                                          .n_pairs = pairs[k % 5],
                                          .is_interleaved = k / 5 % 2,
                                          .is_back = k / 10};
            check_rows(dut, &rows);
        }
    }
    const tkv_device_rows none = {.from_width = 128, .to_width = 128};
    assert_ok(dut->table->move_rows(dut->device, &none, &error));
}

/* ---- Joining ------------------------------------------------------------------------------- */

/* Parts that see nothing hold NaN; part 0 sees something in every row. Every 17th sum is NaN, and
 * with it what is joined of its row. */
static void make_parts(const tkv_device_join *shape, uint64_t *seed, float *parts, float *log_sums)
{
    const size_t n_rows = (size_t)shape->n_rows;
    const size_t width = (size_t)shape->from_width;
    fill_gauss(seed, n_rows * (size_t)shape->n_parts * width, parts);
    for (size_t i = 0; i < n_rows * (size_t)shape->n_parts; i++) {
        const bool is_nothing = i >= n_rows && random_below(seed, 3) == 0;
        log_sums[i] = is_nothing     ? -INFINITY
                      : i % 17 == 16 ? NAN
                                     : 4.0f * random_gauss(seed) + (i % 5 ? 0.0f : 200.0f);
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

static void check_join(const device_under_test *dut, const tkv_device_join *shape, bool has_sums)
{
    tkv_device_join join = *shape;
    const size_t n_rows = (size_t)join.n_rows;
    const size_t to_width = (size_t)join.to_width;
    const size_t n_part_rows = n_rows * (size_t)join.n_parts;
    const size_t n_values = n_part_rows * (size_t)join.from_width;
    uint64_t seed = n_values + to_width;
    float *parts = allocate(n_values * sizeof *parts);
    float *log_sums = allocate(n_part_rows * sizeof *log_sums);
    make_parts(&join, &seed, parts, log_sums);
    join.parts = device_put(dut, parts, n_values * sizeof *parts);
    join.log_sums = device_put(dut, log_sums, n_part_rows * sizeof *log_sums);
    join.out = put_guarded(dut, n_rows * to_width);
    join.log_sums_out = has_sums ? put_guarded(dut, n_rows) : 0;
    assert_ok(dut->table->join(dut->device, &join, &error));
    float *out = get_guarded(dut, join.out, n_rows * to_width);
    float *sums = has_sums ? get_guarded(dut, join.log_sums_out, n_rows) : NULL;
    for (size_t i = 0; i < n_rows; i++) {
        double expected[TKV_MAX_HEAD_DIM];
        const double log_sum = join_row(&join, parts, log_sums, i, expected);
        for (size_t j = 0; j < to_width; j++) {
            const double difference = fabs((double)out[i * to_width + j] - expected[j]);
            if (isnan(expected[j]) ? !isnan(out[i * to_width + j]) : !(difference <= 1e-5)) {
                fail_msg("row %zu of %zu of %d parts of width %d to %d, coordinate %zu: %g, "
                         "expected %g",
                         i, n_rows, join.n_parts, join.from_width, join.to_width, j,
                         (double)out[i * to_width + j], expected[j]);
            }
        }
        if (sums && isnan(log_sum)) {
            assert_true(isnan(sums[i]));
        } else if (sums) {
            assert_true(fabs((double)sums[i] - log_sum) <= 1e-6 * (1.0 + fabs(log_sum)));
        }
    }
    dut->table->release(dut->device, join.parts);
    dut->table->release(dut->device, join.log_sums);
    free(parts);
    free(log_sums);
    free(out);
    free(sums);
}

static void parts_are_joined(device_under_test *dut)
{
    const int widths[][2] = {{128, 128}, {16, 2}, {112, 100}, {1024, 1024}, {80, 80}, {48, 34}};
    for (int i = 0; i < 30; i += dut->is_quick ? 3 : 1) {
        const tkv_device_join join = {.n_rows = (uint64_t)(1 + 11 * i % 50),
                                      .n_parts = 1 + i % 7,
                                      .from_width = widths[i % 6][0],
                                      .to_width = widths[i % 6][1]};
        check_join(dut, &join, i / 2 % 2);
    }
    const tkv_device_join none = {.n_parts = 2, .from_width = 128, .to_width = 128};
    assert_ok(dut->table->join(dut->device, &none, &error));
}

static void test_rows(void **state)
{
    (void)state;
    on_every_device(rows_are_moved_to_the_bit);
}

static void test_join(void **state)
{
    (void)state;
    on_every_device(parts_are_joined);
}

/* An argument chooses tests by pattern: "test_j*". */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_join),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
