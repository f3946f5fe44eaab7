/* Numbers that the gate reads from files: those of a record that somebody edited are refused, with
 * the field and its range; those in a stranger's sources that are no sizes count as unknown. */
#include "gate/evidence.h"
#include "gate/record.h"
#include "support/support.h"

#include <limits.h>

static cJSON *make_record(void)
{
    tkv_gate *gate = allocate(sizeof *gate);
    gate->n_backends = 1;
    gate->backends[0] = (tkv_gate_backend){.device = "cpu",
                                           .name = "scalar",
                                           .state = TKV_BACKEND_PASSED,
                                           .n_cases = 482,
                                           .n_failed = 0,
                                           .probe = {.n_tokens = 4096, .n_threads = 2}};
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        gate->backends[0].probe.microseconds[type] = 10.0 + type;
    }
    cJSON *json = tkv_gate_to_json(gate);
    assert_non_null(json);
    free(gate);
    return json;
}

/* A whole record with the number `name` of its back end, or of its type, replaced. */
static tkv_status read_with(const char *name, const char *number, tkv_gate *gate, tkv_error *error)
{
    cJSON *json = make_record();
    cJSON *backend = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "back_ends"), 0);
    cJSON *owner = cJSON_GetObjectItem(backend, name)
                       ? backend
                       : cJSON_GetArrayItem(cJSON_GetObjectItem(backend, "types"), 1);
    assert_non_null(cJSON_GetObjectItem(owner, name));
    cJSON_DeleteItemFromObject(owner, name);
    if (number) {
        cJSON_AddItemToObject(owner, name, cJSON_Parse(number));
    }
    const tkv_status status = tkv_gate_from_json(json, gate, error);
    cJSON_Delete(json);
    return status;
}

static void numbers_out_of_range_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"cases", "failed", "probe_tokens", "probe_threads",
                                        "attend_us"};
    static const char *const numbers[] = {"333333333333", "3.3e11", "-1",     "1e300", "-1e300",
                                          "1e999",        "\"4\"",  "[4096]", "null",  NULL};
    tkv_gate *gate = allocate(sizeof *gate);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char quoted[32];
        snprintf(quoted, sizeof quoted, "'%s'", names[i]);
        const char *range =
            strcmp(names[i], "attend_us") == 0 ? "from 0 to 86400000000" : "from 0 to 2147483647";
        for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++) {
            const char *const parts[] = {"back end 'scalar'", quoted, range};
            for (int k = 0; k < 3; k++) {
                assert_fails(read_with(names[i], numbers[j], gate, &error), TKV_ERR_FORMAT,
                             parts[k]);
            }
        }
    }
    assert_fails(read_with("cases", "2147483648", gate, &error), TKV_ERR_FORMAT, "is 2147483648:");
    assert_fails(read_with("cases", "7.5", gate, &error), TKV_ERR_FORMAT,
                 "is 7.5: expected a whole number");
    free(gate);
}

static void numbers_at_the_edges_are_read(void **state)
{
    (void)state;
    tkv_gate *gate = allocate(sizeof *gate);
    assert_ok(read_with("cases", "2147483647", gate, &error));
    assert_int_equal(gate->backends[0].n_cases, INT_MAX);
    assert_int_equal(gate->backends[0].probe.n_tokens, 4096);
    assert_ok(read_with("probe_threads", "0", gate, &error));
    assert_int_equal(gate->backends[0].probe.n_threads, 0);
    assert_ok(read_with("attend_us", "0.125", gate, &error));
    assert_true(gate->backends[0].probe.microseconds[1] == 0.125);
    free(gate);
}

static void numbers_in_names_are_bounded(void **state)
{
    (void)state;
    assert_int_equal(tkv_number_of_name("128_dv96"), 128);
    assert_int_equal(tkv_number_of_name("1000000"), 1000000);
    assert_int_equal(tkv_number_of_name("1000001"), 0);
    assert_int_equal(tkv_number_of_name("4294967424"), 0); /* 128 in 32 bits */
    assert_int_equal(tkv_number_of_name("99999999999999999999999999"), 0);
    assert_int_equal(tkv_number_of_name("-1"), 0);
    assert_int_equal(tkv_number_of_name(""), 0);
    tkv_evidence item = {.name = "kernel_flash_attn_ext_kturbo2_vturbo2_dk4294967424_dv96"};
    tkv_read_attention_name(&item);
    assert_string_equal(item.type_k, "turbo2");
    assert_int_equal(item.dim_k, 0);
    assert_int_equal(item.dim_v, 96);
}

static void numbers_in_macros_are_bounded(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "DECL_FATTN_VEC_CASE(4294967424, GGML_TYPE_TURBO3_0, GGML_TYPE_TURBO3_0)",
        "DECL_FATTN_VEC_CASE(64, GGML_TYPE_TURBO3_0, GGML_TYPE_TURBO3_0, 96"};
    static const int dims[][2] = {{0, 0}, {64, 96}};
    const tkv_words words = {.n = 1, .word = {"turbo"}};
    for (int i = 0; i < 2; i++) {
        tkv_source_report report;
        const size_t size = strlen(texts[i]);
        char *exact = allocate(size); /* one byte too far is seen by a sanitizer */
        memcpy(exact, texts[i], size);
        assert_ok(tkv_source_scan(exact, size, &words, &report, &error));
        const tkv_evidence *kernel = NULL;
        for (int j = 0; j < report.n_items; j++) {
            kernel = report.items[j].kind == TKV_EVIDENCE_KERNEL ? &report.items[j] : kernel;
        }
        assert_non_null(kernel);
        assert_string_equal(kernel->type_k, "turbo3");
        assert_int_equal(kernel->dim_k, dims[i][0]);
        assert_int_equal(kernel->dim_v, dims[i][1]);
        tkv_source_report_free(&report);
        free(exact);
    }
}

static void tables_of_what_no_float_holds_are_no_tables(void **state)
{
    (void)state;
    static const char text[] = "float turbo_centroids_2bit[4] = {-1e999f, -1, 1, 2};\n"
                               "float turbo_centroids_3bit[4] = {-2, -1, 1, 2};\n";
    tkv_source_report report;
    const tkv_words turbo = {.n = 1, .word = {"turbo"}};
    assert_ok(tkv_source_scan(text, strlen(text), &turbo, &report, &error));
    assert_int_equal(report.n_items, 1);
    assert_string_equal(report.items[0].name, "turbo_centroids_3bit");
    tkv_source_report_free(&report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_in_names_are_bounded),
        cmocka_unit_test(numbers_in_macros_are_bounded),
        cmocka_unit_test(tables_of_what_no_float_holds_are_no_tables),
        cmocka_unit_test(numbers_out_of_range_are_refused),
        cmocka_unit_test(numbers_at_the_edges_are_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
