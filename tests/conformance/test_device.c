/* Rotation, storing and loading of every device table of this build, on every device that it finds,
 * against the CPU reference to the bit. TKV_TEST_QUICK=1 takes few and small cases: for emulated
 * devices and memory checkers. */
#include "conformance/device_case.h"

/* The format says that a row decodes to NaN, not to which. */
static void unify_nan(size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = isnan(x[i]) ? NAN : x[i];
    }
}

/* ---- Rotation ------------------------------------------------------------------------------ */

static void check_rotation(const device_under_test *dut, int head_dim, int n_rows, uint64_t seed)
{
    const size_t n = (size_t)n_rows * (size_t)head_dim;
    float *expected = allocate(n * sizeof *expected);
    float *actual = allocate((n + GUARD_FLOATS) * sizeof *actual);
    fill_gauss(&seed, n, expected);
    memcpy(actual, expected, n * sizeof *actual);
    for (int i = 0; i < GUARD_FLOATS; i++) {
        actual[n + (size_t)i] = GUARD_VALUE;
    }
    const uint64_t x = device_put(dut, actual, (n + GUARD_FLOATS) * sizeof *actual);
    for (int is_inverse = 0; is_inverse < 2; is_inverse++) {
        assert_ok(dut->table->rotate(dut->device, head_dim, (size_t)n_rows, x, is_inverse, &error));
        assert_ok(dut->table->download(dut->device, actual, x, (n + GUARD_FLOATS) * sizeof *actual,
                                       &error));
        (is_inverse ? tkv_kernels_scalar.unrotate : tkv_kernels_scalar.rotate)(head_dim, n_rows,
                                                                               expected);
        if (memcmp(actual, expected, n * sizeof *actual) != 0) {
            fail_msg("rotation of %d rows, head_dim %d, inverse %d is not that of the reference",
                     n_rows, head_dim, is_inverse);
        }
        for (int i = 0; i < GUARD_FLOATS; i++) {
            assert_true(actual[n + (size_t)i] == GUARD_VALUE);
        }
    }
    dut->table->release(dut->device, x);
    free(expected);
    free(actual);
}

static void rotation_is_equal_to_the_bit(device_under_test *dut)
{
    for (int head_dim = 16; head_dim <= TKV_MAX_HEAD_DIM; head_dim += dut->is_quick ? 144 : 16) {
        check_rotation(dut, head_dim, 1 + head_dim / 16 % 37, (uint64_t)head_dim);
    }
    check_rotation(dut, 128, dut->is_quick ? 130 : 5000, 3);
}

/* ---- Store and load ------------------------------------------------------------------------ */

/* Stores tokens of all sequences, on the device and on the host; `first` as in the table. */
static void store_tokens(case_memory *memory, int first, int n_tokens)
{
    const device_under_test *dut = memory->dut;
    const device_case *c = memory->params;
    uint64_t addresses[2];
    for (int order = 0; order < 2; order++) {
        const size_t token = (size_t)c->layer.n_kv_heads * (size_t)case_head_dim(&c->layer, order);
        const size_t n = (size_t)n_tokens * token;
        float *x = allocate((size_t)c->n_sequences * n * sizeof *x);
        for (int s = 0; s < c->n_sequences; s++) {
            const int from = first >= 0 ? first : memory->sequences[s].entry.n_tokens - n_tokens;
            memcpy(x + (size_t)s * n, memory->sequences[s].rows[order] + (size_t)from * token,
                   n * sizeof *x);
            for (int i = 0; i < n_tokens * c->layer.n_kv_heads; i++) {
                case_store_row(memory, s, from + i / c->layer.n_kv_heads, i % c->layer.n_kv_heads,
                               order);
            }
        }
        addresses[order] = device_put(dut, x, (size_t)c->n_sequences * n * sizeof *x);
        free(x);
    }
    assert_ok(dut->table->store(dut->device, &c->layer, memory->address, c->n_sequences, first,
                                n_tokens, addresses[0], addresses[1], &error));
    assert_ok(dut->table->wait(dut->device, &error));
    dut->table->release(dut->device, addresses[0]);
    dut->table->release(dut->device, addresses[1]);
}

static void compare_pages(const case_memory *memory)
{
    const device_under_test *dut = memory->dut;
    const device_case *c = memory->params;
    for (int s = 0; s < c->n_sequences; s++) {
        for (int b = 0; b < memory->sequences[s].entry.n_blocks; b++) {
            const case_block *block = &memory->sequences[s].blocks[b];
            uint8_t *pages = allocate(block->bytes);
            assert_ok(
                dut->table->download(dut->device, pages, block->entry.pages, block->bytes, &error));
            for (size_t i = 0; i < block->bytes; i++) {
                if (pages[i] != block->pages[i]) {
                    char what[160];
                    snprintf(what, sizeof what,
                             "sequence %d, block %d, byte %zu of %zu is 0x%02x, expected 0x%02x", s,
                             b, i, block->bytes, pages[i], block->pages[i]);
                    fail_case(c, what);
                }
            }
            free(pages);
        }
    }
}

/* Loads tokens of one sequence; order 2: keys and values in one call. */
static void check_load(const case_memory *memory, int sequence, int first, int n_tokens, int which)
{
    const device_under_test *dut = memory->dut;
    const device_case *c = memory->params;
    uint64_t addresses[2] = {0, 0};
    size_t n[2];
    for (int order = 0; order < 2; order++) {
        n[order] =
            (size_t)(n_tokens * c->layer.n_kv_heads) * (size_t)case_head_dim(&c->layer, order);
        if (which == 2 || which == order) {
            addresses[order] = device_allocate(dut, (n[order] + GUARD_FLOATS) * sizeof(float));
        }
    }
    assert_ok(dut->table->load(dut->device, &c->layer,
                               memory->address + (uint64_t)sequence * sizeof(tkv_device_sequence),
                               first, n_tokens, addresses[0], addresses[1], &error));
    for (int order = 0; order < 2; order++) {
        if (!addresses[order]) {
            continue;
        }
        const size_t head_dim = (size_t)case_head_dim(&c->layer, order);
        float *actual = allocate((n[order] + GUARD_FLOATS) * sizeof *actual);
        float *expected = allocate((n[order] + GUARD_FLOATS) * sizeof *expected);
        assert_ok(dut->table->download(dut->device, actual, addresses[order],
                                       (n[order] + GUARD_FLOATS) * sizeof *actual, &error));
        for (int i = 0; i < n_tokens * c->layer.n_kv_heads; i++) {
            case_load_row(memory, sequence, first + i / c->layer.n_kv_heads,
                          i % c->layer.n_kv_heads, order, expected + (size_t)i * head_dim);
        }
        unify_nan(n[order], actual);
        unify_nan(n[order], expected);
        if (memcmp(actual, expected, (n[order] + GUARD_FLOATS) * sizeof *actual) != 0) {
            fail_case(c, order ? "loaded values are not those of the reference"
                               : "loaded keys are not those of the reference");
        }
        free(actual);
        free(expected);
        dut->table->release(dut->device, addresses[order]);
    }
}

/* Keys and values as halves. */
static void check_load_half(const case_memory *memory, int sequence, int first, int n_tokens)
{
    const device_under_test *dut = memory->dut;
    const device_case *c = memory->params;
    const tkv_device_table *table = dut->table;
    uint64_t addresses[2];
    if (!table->load_half) {
        return;
    }
    for (int order = 0; order < 2; order++) {
        const int n = n_tokens * c->layer.n_kv_heads * case_head_dim(&c->layer, order);
        addresses[order] = device_allocate(dut, ((size_t)n + GUARD_FLOATS) * sizeof(uint16_t));
    }
    assert_ok(table->load_half(dut->device, &c->layer,
                               memory->address + (uint64_t)sequence * sizeof(tkv_device_sequence),
                               first, n_tokens, addresses[0], addresses[1], &error));
    for (int order = 0; order < 2; order++) {
        const int head_dim = case_head_dim(&c->layer, order);
        const int n = n_tokens * c->layer.n_kv_heads * head_dim;
        uint16_t *actual = allocate(((size_t)n + GUARD_FLOATS) * sizeof *actual);
        float x[TKV_MAX_HEAD_DIM];
        assert_ok(table->download(dut->device, actual, addresses[order],
                                  ((size_t)n + GUARD_FLOATS) * sizeof *actual, &error));
        for (int i = 0; i < n; i++) {
            const int row = i / head_dim;
            if (i % head_dim == 0) {
                case_load_row(memory, sequence, first + row / c->layer.n_kv_heads,
                              row % c->layer.n_kv_heads, order, x);
            }
            const float value = x[i % head_dim];
            if (isnan(value) ? !isnan(tkv_half_to_float(actual[i]))
                             : actual[i] != tkv_float_to_finite_half(value)) {
                fail_case(c, "loaded halves are not those of the reference");
            }
        }
        for (int i = 0; i < GUARD_FLOATS; i++) {
            assert_int_equal(actual[n + i], 0);
        }
        free(actual);
        table->release(dut->device, addresses[order]);
    }
}

/* A prefill chunk, a second one, then tokens one by one; then all sequences' tails at once. */
static void check_storing(const device_under_test *dut, const device_case *c)
{
    case_memory memory;
    case_create(dut, c, &memory);
    int shortest = c->n_tokens[0];
    for (int s = 1; s < c->n_sequences; s++) {
        shortest = c->n_tokens[s] < shortest ? c->n_tokens[s] : shortest;
    }
    const int chunk = shortest * 2 / 3;
    if (chunk > 0) {
        store_tokens(&memory, 0, chunk);
    }
    for (int i = chunk; i < shortest && i < chunk + 3; i++) {
        store_tokens(&memory, i, 1);
    }
    compare_pages(&memory);
    store_tokens(&memory, -1, 1);
    store_tokens(&memory, -1, shortest - chunk);
    compare_pages(&memory);
    for (int s = 0; s < c->n_sequences; s++) {
        const int first = chunk / 3;
        check_load(&memory, s, first, c->n_tokens[s] - first, 2);
        check_load(&memory, s, c->n_tokens[s] - 1, 1, s % 2);
        check_load_half(&memory, s, first, c->n_tokens[s] - first);
    }
    case_free(&memory);
}

static void pages_are_equal_to_the_bit(device_under_test *dut)
{
    const int n_head_dims = dut->is_quick ? 6 : (int)N_CASE_HEAD_DIMS;
    for (int d = 0; d < n_head_dims; d++) {
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            uint64_t seed = (uint64_t)(100 * d + type);
            device_case c = {.layer = {.type_k = type,
                                       .type_v = (type + d) % TKV_TYPE_COUNT,
                                       .n_kv_heads = 1 + (d + type) % 3,
                                       .head_dim_k = case_head_dims[d],
                                       .head_dim_v = type % 4 == 3 ? case_head_dims[(d + 3) % 7]
                                                                   : case_head_dims[d],
                                       .n_sinks = type % 3 == 0 ? 0 : 1 + random_below(&seed, 100),
                                       .effort = (d + type) % TKV_EFFORT_COUNT},
                             .n_sequences = 1 + type % 3,
                             .is_centred = (d + type) % 2,
                             .exact_share = type % 4 == 1,
                             .n_kinds = type % 2 == d % 2 ? N_KINDS : 1,
                             .seed = seed};
            for (int s = 0; s < c.n_sequences; s++) {
                c.n_tokens[s] = 1 + random_below(&seed, dut->is_quick ? 70 : 300);
            }
            check_storing(dut, &c);
        }
    }
}

/* Every type in both orders, at the lengths around a page's edges. */
static void page_edges_are_equal_to_the_bit(device_under_test *dut)
{
    const int lengths[] = {1, 31, 32, 33, 63, 64, 65, 127, 128, 129};
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        for (int i = 0; i < 10; i += dut->is_quick ? 4 : 1) {
            const device_case c = {.layer = {.type_k = type,
                                             .type_v = type,
                                             .n_kv_heads = 1,
                                             .head_dim_k = i % 2 ? 48 : 128,
                                             .head_dim_v = i % 2 ? 48 : 128,
                                             .n_sinks = i % 3 ? 0 : 4,
                                             .effort = TKV_EFFORT_FAST},
                                   .n_sequences = 1,
                                   .n_tokens = {lengths[i]},
                                   .n_kinds = N_KINDS,
                                   .seed = (uint64_t)(10 * type + i)};
            check_storing(dut, &c);
        }
    }
}

static void test_rotation(void **state)
{
    (void)state;
    on_every_device(rotation_is_equal_to_the_bit);
}

static void test_pages(void **state)
{
    (void)state;
    on_every_device(pages_are_equal_to_the_bit);
}

static void test_page_edges(void **state)
{
    (void)state;
    on_every_device(page_edges_are_equal_to_the_bit);
}

/* An argument chooses tests by pattern: "test_page*". */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_page_edges),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
