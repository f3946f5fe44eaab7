/* The test of devices, on a device that this file makes of the host's memory and the scalar
 * kernels: it passes, and planted defects are found. */
#include "gate/device_test.h"
#include "gate/machine.h"
#include "support/support.h"

#include <signal.h>

typedef enum defect {
    NO_DEFECT,
    WRONG_ROTATION,
    LOST_EFFORT,
    WRONG_SLOT,
    FORGOTTEN_MEAN,
    WRONG_LOAD,
    LOST_LAST_TOKEN,
    WRONG_HEAD,
    FAILING
} defect;

typedef struct fake_device {
    tkv_device base;
    defect defect;
    int n_buffers;
} fake_device;

/* What the next device that is opened does wrong. */
static defect planted = NO_DEFECT;
static int n_left_behind = 0;

static void *at(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

static defect defect_of(const tkv_device *device)
{
    return ((const fake_device *)device)->defect;
}

static int fake_count(char *reason, size_t size)
{
    snprintf(reason, size, "%s", "");
    return 1;
}

static void fake_close(tkv_device *device)
{
    n_left_behind = ((fake_device *)device)->n_buffers;
    free(device);
}

static const char *fake_description(const tkv_device *device)
{
    (void)device;
    return "a device of memory";
}

static tkv_status fake_allocate(tkv_device *device, size_t bytes, uint64_t *address,
                                tkv_error *failure)
{
    (void)failure;
    const size_t rounded = (bytes + 255) / 256 * 256;
    void *memory = aligned_alloc(256, rounded);
    assert_non_null(memory);
    memset(memory, 0, rounded);
    *address = (uint64_t)(uintptr_t)memory;
    ((fake_device *)device)->n_buffers++;
    return TKV_OK;
}

static void fake_release(tkv_device *device, uint64_t address)
{
    ((fake_device *)device)->n_buffers--;
    free(at(address));
}

static tkv_status fake_upload(tkv_device *device, uint64_t to, const void *from, size_t bytes,
                              tkv_error *failure)
{
    (void)device;
    (void)failure;
    memcpy(at(to), from, bytes);
    return TKV_OK;
}

static tkv_status fake_download(tkv_device *device, void *to, uint64_t from, size_t bytes,
                                tkv_error *failure)
{
    (void)device;
    (void)failure;
    memcpy(to, at(from), bytes);
    return TKV_OK;
}

static tkv_status fake_copy(tkv_device *device, uint64_t to, uint64_t from, size_t bytes,
                            tkv_error *failure)
{
    return fake_upload(device, to, at(from), bytes, failure);
}

static tkv_status fake_wait(tkv_device *device, tkv_error *failure)
{
    (void)device;
    (void)failure;
    return TKV_OK;
}

static tkv_status fake_rotate(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                              bool is_inverse, tkv_error *failure)
{
    float *rows = at(x);
    if (defect_of(device) == FAILING) {
        *failure = (tkv_error){TKV_ERR_DEVICE, "the device fell off the bus"};
        return TKV_ERR_DEVICE;
    }
    if (defect_of(device) == WRONG_ROTATION && is_inverse && head_dim == 80) {
        n_rows--;
    }
    return is_inverse ? tkv_unrotate(head_dim, n_rows, rows, failure)
                      : tkv_rotate(head_dim, n_rows, rows, failure);
}

/* A page of a block, and what is in it. */
typedef struct page_view {
    tkv_page_span span;
    void *page;
    int start; /* position */
    const float *mean;
} page_view;

static page_view view_page(const tkv_device_layer *layer, const tkv_device_sequence *sequence,
                           int block, int head, int order)
{
    const tkv_device_block *b = (const tkv_device_block *)at(sequence->blocks) + block;
    const int dims[2] = {layer->head_dim_k, layer->head_dim_v};
    const int32_t types[2] = {layer->type_k, layer->type_v};
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        bytes[i] = b->is_exact ? (size_t)b->n_slots * 2 * (size_t)dims[i]
                               : tkv_page_bytes((tkv_type)types[i], dims[i]);
    }
    const int first_block = (layer->n_sinks + 63) / 64;
    page_view v = {.start = block < first_block ? 64 * block
                                                : layer->n_sinks + 64 * (block - first_block)};
    const int next = block + 1 < first_block ? 64 * (block + 1)
                                             : layer->n_sinks + 64 * (block + 1 - first_block);
    const int end = next < sequence->n_tokens ? next : sequence->n_tokens;
    v.page =
        (uint8_t *)at(b->pages) + (size_t)head * (bytes[0] + bytes[1]) + (order ? bytes[0] : 0);
    v.span = (tkv_page_span){b->is_exact ? TKV_TYPE_F16 : (tkv_type)types[order],
                             (tkv_page_order)order,
                             dims[order],
                             0,
                             end - v.start,
                             (tkv_effort)layer->effort};
    const float *mean = at(order ? sequence->mean_v : sequence->mean_k);
    v.mean = mean && !b->is_exact ? mean + head * dims[order] : NULL;
    return v;
}

static tkv_status fake_store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                             int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                             tkv_error *failure)
{
    const tkv_device_sequence *sequence = at(sequences);
    const defect wrong = defect_of(device);
    (void)failure;
    assert_int_equal(n_sequences, 1);
    assert_int_equal(first, 0);
    assert_int_equal(n_tokens, sequence->n_tokens);
    for (int i = 0; i < sequence->n_blocks * layer->n_kv_heads * 2; i++) {
        const int head = i / 2 % layer->n_kv_heads;
        page_view p = view_page(layer, sequence, i / 2 / layer->n_kv_heads, head, i % 2);
        const int dim = p.span.head_dim;
        const float *x = at(i % 2 ? v : k);
        float *rows = allocate((size_t)(p.span.n_rows * dim) * sizeof *rows);
        for (int t = 0; t < p.span.n_rows; t++) {
            for (int j = 0; j < dim; j++) {
                rows[t * dim + j] = x[((p.start + t) * layer->n_kv_heads + head) * dim + j] -
                                    (p.mean && wrong != FORGOTTEN_MEAN ? p.mean[j] : 0.0f);
            }
        }
        p.span.effort = wrong == LOST_EFFORT ? TKV_EFFORT_FAST : p.span.effort;
        tkv_kernels_scalar.encode(&p.span, rows, (size_t)dim, p.page);
        if (wrong == WRONG_SLOT && p.span.type == TKV_TYPE_TURBO3 && dim == 80) {
            ((uint8_t *)p.page)[11] ^= 1;
        }
        free(rows);
    }
    return TKV_OK;
}

static tkv_status fake_load(tkv_device *device, const tkv_device_layer *layer, uint64_t address,
                            int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *failure)
{
    const tkv_device_sequence *sequence = at(address);
    (void)failure;
    (void)first;
    (void)n_tokens;
    for (int i = 0; i < sequence->n_blocks * layer->n_kv_heads * 2; i++) {
        const int head = i / 2 % layer->n_kv_heads;
        const page_view p = view_page(layer, sequence, i / 2 / layer->n_kv_heads, head, i % 2);
        const int dim = p.span.head_dim;
        const size_t stride = (size_t)(layer->n_kv_heads * dim);
        float *rows = (float *)at(i % 2 ? v : k) + (size_t)p.start * stride + head * dim;
        tkv_kernels_scalar.decode(&p.span, p.page, rows, stride);
        for (int t = 0; p.mean && t < p.span.n_rows; t++) {
            for (int j = 0; j < dim; j++) {
                rows[(size_t)t * stride + (size_t)j] += p.mean[j];
            }
        }
        if (defect_of(device) == WRONG_LOAD && p.span.type == TKV_TYPE_TURBO4Q) {
            rows[0] = nextafterf(rows[0], 1e30f);
        }
    }
    return TKV_OK;
}

static size_t fake_workspace(const tkv_device *device, const tkv_device_attend *params)
{
    (void)device;
    return (size_t)params->max_tokens * (size_t)params->layer.n_kv_heads *
           (size_t)(params->layer.head_dim_k + params->layer.head_dim_v) * sizeof(float);
}

/* Plain softmax attention over loaded rows, in float. */
static tkv_status fake_attend(tkv_device *device, const tkv_device_attend *p, tkv_error *failure)
{
    const tkv_device_layer *l = &p->layer;
    const tkv_device_sequence *sequence = at(p->sequences);
    const int n = sequence->n_tokens;
    const int dim = l->head_dim_k;
    const defect wrong = defect_of(device);
    float *k = at(p->workspace);
    float *v = k + n * l->n_kv_heads * dim;
    assert_int_equal(p->first_position, -1);
    fake_load(device, l, p->sequences, 0, n, (uint64_t)(uintptr_t)k, (uint64_t)(uintptr_t)v,
              failure);
    for (int row = 0; row < p->n_queries * p->n_heads; row++) {
        const int n_seen = n - p->n_queries + 1 + row / p->n_heads - (wrong == LOST_LAST_TOKEN);
        int head = row % p->n_heads / (p->n_heads / l->n_kv_heads);
        head = wrong == WRONG_HEAD && l->type_k == TKV_TYPE_TURBO2 && p->n_queries > 1 ? 0 : head;
        const float *q = (const float *)at(p->q) + row * dim;
        float *out = (float *)at(p->out) + row * dim;
        float sum = 0.0f;
        memset(out, 0, (size_t)dim * sizeof *out);
        for (int t = 0; t < n_seen; t++) {
            float score = 0.0f;
            for (int j = 0; j < dim; j++) {
                score += q[j] * k[(t * l->n_kv_heads + head) * dim + j];
            }
            const float weight = expf(p->scale * score - 20.0f);
            sum += weight;
            for (int j = 0; j < dim; j++) {
                out[j] += weight * v[(t * l->n_kv_heads + head) * dim + j];
            }
        }
        for (int j = 0; j < dim; j++) {
            out[j] /= sum;
        }
    }
    return TKV_OK;
}

static const tkv_device_table fake;

static tkv_status fake_open(int index, void *stream, tkv_device **device, tkv_error *failure)
{
    (void)stream;
    (void)failure;
    assert_int_equal(index, 0);
    fake_device *opened = allocate(sizeof *opened);
    *opened = (fake_device){.base = {&fake}, .defect = planted};
    *device = &opened->base;
    return TKV_OK;
}

static const tkv_device_table fake = {.name = "fake",
                                      .count = fake_count,
                                      .open = fake_open,
                                      .close = fake_close,
                                      .description = fake_description,
                                      .allocate = fake_allocate,
                                      .release = fake_release,
                                      .upload = fake_upload,
                                      .download = fake_download,
                                      .copy = fake_copy,
                                      .wait = fake_wait,
                                      .rotate = fake_rotate,
                                      .store = fake_store,
                                      .load = fake_load,
                                      .attend_workspace_bytes = fake_workspace,
                                      .attend = fake_attend};

static void a_right_device_passes(void **state)
{
    (void)state;
    tkv_self_test *test = allocate(sizeof *test);
    planted = NO_DEFECT;
    assert_ok(tkv_device_test_run(&fake, 0, TKV_DEVICE_TEST_ALL, test, &error));
    for (int i = 0; i < TKV_KERNEL_KINDS * TKV_TYPE_COUNT; i++) {
        assert_string_equal(test->results[i / TKV_TYPE_COUNT][i % TKV_TYPE_COUNT].reason, "");
    }
    assert_true(tkv_self_test_passed(test, TKV_TYPE_COUNT));
    assert_int_equal(n_left_behind, 0);
    free(test);
}

static void planted_defects_are_found(void **state)
{
    (void)state;
    static const struct {
        defect defect;
        tkv_kernel_kind kind;
        tkv_type type;
        const char *reason;
    } cases[] = {
        {WRONG_ROTATION, TKV_KERNEL_ROTATE, 0, "rotate, head_dim 80: back"},
        {LOST_EFFORT, TKV_KERNEL_ENCODE, TKV_TYPE_TRELLIS2, "encode of trellis2"},
        {WRONG_SLOT, TKV_KERNEL_ENCODE, TKV_TYPE_TURBO3, "encode of turbo3, head_dim 80"},
        {FORGOTTEN_MEAN, TKV_KERNEL_ENCODE, TKV_TYPE_TURBO4, "encode of turbo4"},
        {WRONG_LOAD, TKV_KERNEL_DECODE, TKV_TYPE_TURBO4Q, "decode of turbo4q, head_dim 64"},
        {LOST_LAST_TOKEN, TKV_KERNEL_ATTENTION, TKV_TYPE_F16, "1 queries: error"},
        {WRONG_HEAD, TKV_KERNEL_ATTENTION, TKV_TYPE_TURBO2, "21 queries: error"},
    };
    tkv_self_test *test = allocate(sizeof *test);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        planted = cases[i].defect;
        assert_ok(tkv_device_test_run(&fake, 0, 80, test, &error));
        assert_false(tkv_self_test_passed(test, TKV_TYPE_COUNT));
        const tkv_kernel_result *result = &test->results[cases[i].kind][cases[i].type];
        assert_true(result->n_failed > 0);
        if (!strstr(result->reason, cases[i].reason)) {
            fail_msg("reason '%s' lacks '%s'", result->reason, cases[i].reason);
        }
    }
    free(test);
}

static void errors_of_a_device_are_reported(void **state)
{
    (void)state;
    tkv_self_test *test = allocate(sizeof *test);
    planted = FAILING;
    assert_fails(tkv_device_test_run(&fake, 0, 80, test, &error), TKV_ERR_DEVICE,
                 "fell off the bus");
    assert_int_equal(n_left_behind, 0);
    tkv_device_table table = fake;
    table.load = NULL;
    assert_fails(tkv_device_test_run(&table, 0, 80, test, &error), TKV_ERR_UNSUPPORTED,
                 "'fake' is not complete");
    free(test);
}

static void speeds_are_measured(void **state)
{
    (void)state;
    tkv_probe probe;
    planted = NO_DEFECT;
    assert_ok(tkv_device_probe_run(&fake, 0, 1024, &probe, &error));
    assert_int_equal(probe.n_tokens, 1024);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        assert_true(probe.microseconds[type] > 0.0 && isfinite(probe.microseconds[type]));
    }
    assert_int_equal(n_left_behind, 0);
}

static int count_nothing(char *reason, size_t size)
{
    snprintf(reason, size, "driver 1.0 is too old");
    return 0;
}

static int count_and_die(char *reason, size_t size)
{
    (void)reason;
    (void)size;
    raise(SIGKILL);
    return 0;
}

static tkv_status open_and_die(int index, void *stream, tkv_device **device, tkv_error *failure)
{
    (void)index;
    (void)stream;
    (void)device;
    (void)failure;
    raise(SIGKILL);
    return TKV_OK;
}

/* The tables of a build: with a device, without one, with a driver that kills. */
static const tkv_device_table *strange_tables(int index)
{
    static tkv_device_table tables[3];
    tables[0] = tables[1] = tables[2] = fake;
    tables[1].name = "cuda";
    tables[1].count = count_nothing;
    tables[2].name = "dying";
    tables[2].count = count_and_die;
    return index < 3 ? &tables[index] : NULL;
}

static const tkv_gate_backend *find_backend(const tkv_gate *gate, const char *device)
{
    for (int i = 0; i < gate->n_backends; i++) {
        if (strcmp(gate->backends[i].device, device) == 0) {
            return &gate->backends[i];
        }
    }
    fail_msg("no back end %s", device);
    return NULL;
}

static void devices_are_listed(void **state)
{
    (void)state;
    tkv_gate *gate = allocate(sizeof *gate);
    tkv_gate_candidate candidates[TKV_GATE_MAX_BACKENDS];
    assert_ok(tkv_gate_list(strange_tables, 20, gate, candidates, &error));
    assert_string_equal(find_backend(gate, "cpu")->name, "scalar");
    assert_string_equal(find_backend(gate, "fake")->name, "fake");
    assert_string_equal(find_backend(gate, "fake")->description, "a device of memory");
    assert_string_equal(find_backend(gate, "cuda")->reason, "driver 1.0 is too old");
    assert_string_equal(find_backend(gate, "metal")->reason, "not in this build");
    assert_non_null(strstr(find_backend(gate, "dying")->reason, "ended with signal 9"));
    int n_tables = 0;
    for (int i = 0; i < gate->n_backends; i++) {
        n_tables += candidates[i].table != NULL;
        assert_int_equal(gate->backends[i].state, TKV_BACKEND_ABSENT);
    }
    assert_int_equal(n_tables, 1);
    free(gate);
}

static void failing_devices_are_results(void **state)
{
    (void)state;
    tkv_gate_backend b = {.device = "fake"};
    planted = FAILING;
    assert_ok(tkv_gate_examine(&(tkv_gate_candidate){.table = &fake}, 1, 60, &b, &error));
    assert_int_equal(b.state, TKV_BACKEND_FAILED);
    assert_string_equal(b.reason, "the self-test: the device fell off the bus");
    tkv_device_table dying = fake;
    dying.open = open_and_die;
    assert_ok(tkv_gate_examine(&(tkv_gate_candidate){.table = &dying}, 1, 60, &b, &error));
    assert_int_equal(b.state, TKV_BACKEND_FAILED);
    assert_non_null(strstr(b.reason, "ended with signal 9"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_right_device_passes),
                                       cmocka_unit_test(planted_defects_are_found),
                                       cmocka_unit_test(errors_of_a_device_are_reported),
                                       cmocka_unit_test(devices_are_listed),
                                       cmocka_unit_test(failing_devices_are_results),
                                       cmocka_unit_test(speeds_are_measured)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
