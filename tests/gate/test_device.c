/* The test of devices, on the reference device: it passes, and planted defects are found. */
#include "base/half.h"
#include "device/context.h"
#include "gate/machine.h"
#include "support/reference_device.h"
#include "support/support.h"

#include <signal.h>

/* Sanitizers make long tests of the reference longer. */
#ifdef TKV_SANITIZED
enum { LARGEST = 112 };
#else
enum { LARGEST = 0 };
#endif

typedef enum defect {
    NO_DEFECT,
    WRONG_ROTATION,
    LOST_EFFORT,
    WRONG_SLOT,
    FORGOTTEN_MEAN,
    WRONG_LOAD,
    WRONG_HALF,
    LOST_LAST_TOKEN,
    WRONG_HEAD,
    LOST_BACK,
    LOST_BEGIN,
    LOST_PART
} defect;

/* What the device does wrong. */
static defect planted = NO_DEFECT;

/* The table whose functions these replace. */
#define RIGHT reference_device_table

static void flip_sign(tkv_device *device, uint64_t at)
{
    float value;
    assert_ok(RIGHT.download(device, &value, at, sizeof value, &error));
    value = -value;
    assert_ok(RIGHT.upload(device, at, &value, sizeof value, &error));
}

static tkv_status rotate(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                         bool is_inverse, tkv_error *failure)
{
    const tkv_status status = RIGHT.rotate(device, head_dim, n_rows, x, is_inverse, failure);
    if (planted == WRONG_ROTATION && is_inverse && head_dim == 80) {
        flip_sign(device, x + (n_rows * (size_t)head_dim - 1) * sizeof(float));
    }
    return status;
}

/* Stores as if there were no means. */
static tkv_status store_uncentred(tkv_device *device, const tkv_device_layer *layer,
                                  uint64_t sequences, int n_tokens, uint64_t k, uint64_t v,
                                  tkv_error *failure)
{
    tkv_device_sequence right;
    assert_ok(RIGHT.download(device, &right, sequences, sizeof right, &error));
    tkv_device_sequence wrong = right;
    wrong.mean_k = wrong.mean_v = 0;
    assert_ok(RIGHT.upload(device, sequences, &wrong, sizeof wrong, &error));
    const tkv_status status = RIGHT.store(device, layer, sequences, 1, 0, n_tokens, k, v, failure);
    assert_ok(RIGHT.upload(device, sequences, &right, sizeof right, &error));
    return status;
}

/* A bit of the first coded page. */
static void spoil_page(tkv_device *device, uint64_t sequences)
{
    tkv_device_sequence sequence;
    tkv_device_block block;
    uint8_t byte;
    assert_ok(RIGHT.download(device, &sequence, sequences, sizeof sequence, &error));
    assert_ok(RIGHT.download(device, &block, sequence.blocks + sizeof block, sizeof block, &error));
    assert_ok(RIGHT.download(device, &byte, block.pages + 11, 1, &error));
    byte ^= 1;
    assert_ok(RIGHT.upload(device, block.pages + 11, &byte, 1, &error));
}

static tkv_status store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                        int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                        tkv_error *failure)
{
    tkv_device_layer used = *layer;
    if (planted == FORGOTTEN_MEAN) {
        return store_uncentred(device, layer, sequences, n_tokens, k, v, failure);
    }
    used.effort = planted == LOST_EFFORT ? TKV_EFFORT_FAST : used.effort;
    const tkv_status status =
        RIGHT.store(device, &used, sequences, n_sequences, first, n_tokens, k, v, failure);
    if (planted == WRONG_SLOT && n_tokens > 1 && layer->type_k == TKV_TYPE_TURBO3 &&
        layer->head_dim_k == 80) {
        spoil_page(device, sequences);
    }
    return status;
}

static tkv_status load(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                       int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *failure)
{
    const tkv_status status = RIGHT.load(device, layer, sequence, first, n_tokens, k, v, failure);
    if (planted == WRONG_LOAD && layer->type_k == TKV_TYPE_TURBO4Q) {
        flip_sign(device, k);
    }
    return status;
}

/* Loads one kind of rows as halves. */
static void load_halves(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                        int first, int n_tokens, bool are_keys, uint64_t to)
{
    const int head_dim = are_keys ? layer->head_dim_k : layer->head_dim_v;
    const size_t n = (size_t)(n_tokens * layer->n_kv_heads * head_dim);
    float *rows = allocate(n * sizeof *rows);
    uint16_t *halves = allocate(n * sizeof *halves);
    uint64_t there;
    assert_ok(RIGHT.allocate(device, n * sizeof *rows, &there, &error));
    assert_ok(RIGHT.load(device, layer, sequence, first, n_tokens, are_keys ? there : 0,
                         are_keys ? 0 : there, &error));
    assert_ok(RIGHT.download(device, rows, there, n * sizeof *rows, &error));
    for (size_t i = 0; i < n; i++) {
        halves[i] = tkv_float_to_finite_half(rows[i]);
    }
    halves[n - 1] ^= planted == WRONG_HALF && layer->type_v == TKV_TYPE_TURBO8 ? 1u : 0u;
    assert_ok(RIGHT.upload(device, to, halves, n * sizeof *halves, &error));
    RIGHT.release(device, there);
    free(rows);
    free(halves);
}

static tkv_status load_half(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                            int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *failure)
{
    (void)failure;
    load_halves(device, layer, sequence, first, n_tokens, true, k);
    load_halves(device, layer, sequence, first, n_tokens, false, v);
    return TKV_OK;
}

static tkv_status attend(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                         tkv_error *failure)
{
    const tkv_device_attend *params = &plan->params;
    tkv_attend_plan used = *plan;
    if (planted == LOST_LAST_TOKEN) {
        used.params.first_position = params->max_tokens - params->n_queries - 1;
    }
    used.params.begin = planted == LOST_BEGIN ? 0 : params->begin;
    const tkv_status status = RIGHT.attend(device, &used, workspace, failure);
    if (planted == WRONG_HEAD && params->layer.type_k == TKV_TYPE_TURBO2 && params->n_queries > 1) {
        for (int j = 0; j < params->layer.head_dim_v; j++) {
            flip_sign(device, params->out + (size_t)j * sizeof(float));
        }
    }
    return status;
}

static tkv_status move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *failure)
{
    tkv_device_rows used = *rows;
    used.is_back = planted == LOST_BACK ? 0 : used.is_back;
    return RIGHT.move_rows(device, &used, failure);
}

static tkv_status join(tkv_device *device, const tkv_device_join *parts, tkv_error *failure)
{
    tkv_device_join used = *parts;
    used.n_parts = planted == LOST_PART ? 1 : used.n_parts;
    return RIGHT.join(device, &used, failure);
}

/* The reference device with these functions. */
static const tkv_device_table *strange_device(defect wrong)
{
    static tkv_device_table table;
    planted = wrong;
    table = reference_device_table;
    table.name = "strange";
    table.rotate = rotate;
    table.store = store;
    table.load = load;
    table.load_half = load_half;
    table.attend = attend;
    table.move_rows = move_rows;
    table.join = join;
    return &table;
}

static tkv_status run_self_test(const tkv_device_table *table, int max_head_dim,
                                tkv_self_test *test, tkv_error *failure)
{
    tkv_context *context = NULL;
    assert_ok(tkv_context_create_on(table, 0, NULL, &context, &error));
    context->device->table = table; /* and not the one that has opened it */
    const tkv_status status =
        tkv_self_test_run(context, TKV_SELF_TEST_OF_DEVICE, max_head_dim, test, failure);
    tkv_context_free(context);
    return status;
}

static void a_right_device_passes(void **state)
{
    (void)state;
    tkv_self_test *test = allocate(sizeof *test);
    assert_ok(run_self_test(strange_device(NO_DEFECT), LARGEST, test, &error));
    for (int i = 0; i < TKV_OPERATION_COUNT * TKV_TYPE_COUNT; i++) {
        assert_string_equal(test->results[i / TKV_TYPE_COUNT][i % TKV_TYPE_COUNT].reason, "");
    }
    assert_true(tkv_self_test_passed(test, TKV_TYPE_COUNT));
    assert_int_equal(reference_device_bytes(), 0);
    free(test);
}

static void planted_defects_are_found(void **state)
{
    (void)state;
    static const struct {
        defect defect;
        tkv_operation operation;
        tkv_type type;
        const char *reason;
    } cases[] = {
        {WRONG_ROTATION, TKV_OPERATION_UNROTATE, 0, "unrotate, head_dim 80"},
        {LOST_EFFORT, TKV_OPERATION_STORE, TKV_TYPE_TRELLIS2, "store of trellis2"},
        {WRONG_SLOT, TKV_OPERATION_STORE, TKV_TYPE_TURBO3, "store of turbo3, head_dim 80"},
        {FORGOTTEN_MEAN, TKV_OPERATION_STORE, TKV_TYPE_TURBO4, "store of turbo4"},
        {WRONG_LOAD, TKV_OPERATION_LOAD, TKV_TYPE_TURBO4Q, "load of turbo4q, head_dim 64"},
        {WRONG_HALF, TKV_OPERATION_LOAD, TKV_TYPE_TURBO8, "load of turbo8, head_dim 64, halves"},
        {LOST_LAST_TOKEN, TKV_OPERATION_ATTEND, TKV_TYPE_F16, "1 queries from"},
        {WRONG_HEAD, TKV_OPERATION_ATTEND, TKV_TYPE_TURBO2, "21 queries"},
        {LOST_BACK, TKV_OPERATION_MOVE_ROWS, 0, "back 1"},
        {LOST_BEGIN, TKV_OPERATION_ATTEND, TKV_TYPE_TURBO3, "1 queries to two parts"},
        {LOST_PART, TKV_OPERATION_ATTEND, TKV_TYPE_F16, "1 queries to two parts"},
    };
    tkv_self_test *test = allocate(sizeof *test);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const tkv_device_table *table = strange_device(cases[i].defect);
        assert_ok(run_self_test(table, 80, test, &error));
        if (tkv_self_test_passed(test, TKV_TYPE_COUNT)) {
            fail_msg("defect %d is not found", (int)cases[i].defect);
        }
        const tkv_operation_result *result = &test->results[cases[i].operation][cases[i].type];
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
    tkv_device_table table = *strange_device(NO_DEFECT);
    reference_device_fail(4, false);
    assert_fails(run_self_test(&table, 80, test, &error), TKV_ERR_DEVICE, "rotate fails");
    assert_true(reference_device_recover());
    assert_int_equal(reference_device_bytes(), 0);
    table.load = NULL;
    assert_fails(run_self_test(&table, 80, test, &error), TKV_ERR_UNSUPPORTED,
                 "'strange' is not complete");
    free(test);
}

static void speeds_are_measured(void **state)
{
    (void)state;
    tkv_probe probe;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create_on(strange_device(NO_DEFECT), 0, NULL, &context, &error));
    assert_ok(tkv_probe_run_on_device(context, 1024, &probe, &error));
    tkv_context_free(context);
    assert_int_equal(probe.n_tokens, 1024);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        assert_true(probe.microseconds[type] > 0.0 && isfinite(probe.microseconds[type]));
    }
    assert_int_equal(reference_device_bytes(), 0);
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

static tkv_status open_and_die(int index, const tkv_device_setup *setup, tkv_device **device,
                               tkv_error *failure)
{
    (void)index;
    (void)setup;
    (void)device;
    (void)failure;
    raise(SIGKILL);
    return TKV_OK;
}

/* The tables of a build: with a device, without one, with a driver that kills. */
static const tkv_device_table *strange_table(int index)
{
    static tkv_device_table tables[3];
    tables[0] = tables[1] = tables[2] = reference_device_table;
    tables[0].name = "fake";
    tables[1].name = "cuda";
    tables[1].count = count_nothing;
    tables[2].name = "dying";
    tables[2].count = count_and_die;
    tables[2].open = open_and_die;
    return index < 3 ? &tables[index] : NULL;
}

static const char *strange_name(int index)
{
    const tkv_device_table *table = strange_table(index);
    return table ? table->name : NULL;
}

static const tkv_device_table *find_table(const char *name)
{
    int i = 0;
    while (strncmp(name, strange_table(i)->name, strlen(strange_table(i)->name)) != 0) {
        i++;
    }
    return strange_table(i);
}

static int count_strange(const char *name, char *reason, size_t size)
{
    return find_table(name)->count(reason, size);
}

static tkv_status open_strange(const tkv_context_params *params, tkv_context **context,
                               tkv_error *failure)
{
    const char *colon = strchr(params->device, ':');
    return find_table(params->device)->count == count_and_die
               ? open_and_die(0, NULL, NULL, failure)
               : tkv_context_create_on(find_table(params->device), colon ? atoi(colon + 1) : 0,
                                       params, context, failure);
}

static const tkv_gate_devices strange_devices = {strange_name, count_strange, open_strange};

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
    assert_ok(tkv_gate_list(&strange_devices, 20, gate, candidates, &error));
    assert_string_equal(find_backend(gate, "cpu")->name, "scalar");
    assert_string_equal(find_backend(gate, "fake")->name, "fake");
    assert_string_equal(find_backend(gate, "fake")->description, "the CPU's reference");
    assert_string_equal((find_backend(gate, "fake") + 1)->name, "fake:1");
    assert_string_equal(find_backend(gate, "cuda")->reason, "driver 1.0 is too old");
    assert_string_equal(find_backend(gate, "metal")->reason, "not in this build");
    assert_non_null(strstr(find_backend(gate, "dying")->reason, "ended with signal 9"));
    int n_devices = 0;
    for (int i = 0; i < gate->n_backends; i++) {
        n_devices += candidates[i].devices != NULL;
        assert_int_equal(gate->backends[i].state, TKV_BACKEND_ABSENT);
    }
    assert_int_equal(n_devices, 2); /* of the first kind there are two */
    free(gate);
}

static void failing_devices_are_results(void **state)
{
    (void)state;
    tkv_gate_backend b = {.device = "fake"};
    reference_device_fail(4, false);
    const tkv_gate_candidate failing = {.devices = &strange_devices, .device = "fake"};
    assert_ok(tkv_gate_examine(&failing, 1, 60, &b, &error));
    reference_device_recover();
    assert_int_equal(b.state, TKV_BACKEND_FAILED);
    assert_string_equal(b.reason, "the self-test: reference device: rotate fails");
    /* That there is no memory now is no failure. */
    reference_device_fail(1, false);
    assert_ok(tkv_gate_examine(&failing, 1, 60, &b, &error));
    reference_device_recover();
    assert_int_equal(b.state, TKV_BACKEND_ABSENT);
    assert_non_null(strstr(b.reason, "allocate fails"));
    const tkv_gate_candidate dying = {.devices = &strange_devices, .device = "dying"};
    assert_ok(tkv_gate_examine(&dying, 1, 60, &b, &error));
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
