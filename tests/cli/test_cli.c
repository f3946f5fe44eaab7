/* What the subcommands share, run, and types. */
#include "process.h"

static void help_and_usage(void **state)
{
    (void)state;
    assert_outcome(run("--help"), 0, "commands:", "");
    assert_outcome(run("--version"), 0, "format 1", "");
    assert_outcome(run("run", "--help"), 0, "-ctk, --cache-type-k TYPE", "");
    assert_outcome(run("types", "--help"), 0, "--head-dim", "");
    assert_outcome(run("demo", "--help"), 0, "--model", "");
    assert_outcome(run_with((const char *const[]){NULL}), 2, "", "usage:");
    assert_outcome(run("fly"), 2, "", "no command 'fly'");
}

static void wrong_options_list_the_valid_ones(void **state)
{
    (void)state;
    assert_outcome(run("run", "--colour", "red"), 2, "", "--cache-type-v");
    assert_outcome(run("run", "-p", "x", "-ctk", "q4_0"), 2, "", "turbo4, turbo3, turbo2");
    assert_outcome(run("run", "-p", "x", "-n", "12x"), 2, "", "whole number from -1");
    assert_outcome(run("run", "-p", "x", "-n", "99999999999"), 2, "", "whole number");
    assert_outcome(run("run", "-p", "x", "--temp", "hot"), 2, "", "number from -100 to 100");
    assert_outcome(run("run", "-p", "x", "--min-p", "1.5"), 2, "", "from -100 to 1");
    assert_outcome(run("run", "-p", "x", "-s", "-4"), 2, "", "whole number from 0");
    assert_outcome(run("run", "-p", "x", "--system-prompt", "y"), 2, "", "expected --chat");
    assert_outcome(run("run", "-p", "x", "--boundary", "turbo8"), 2, "", "LAYERS:TYPE");
    assert_outcome(run("run", "-p"), 2, "", "needs a value");
    assert_outcome(run("run", "-p", "x", "stray"), 2, "", "unexpected argument 'stray'");
    assert_outcome(run("run"), 2, "", "either -p TEXT or -f FILE");
    assert_outcome(run("run", "-p", "x", "-f", "y"), 2, "", "either -p TEXT or -f FILE");
    assert_outcome(run("types", "--head-dim", "65"), 2, "", "even number");
}

static void unreadable_input_is_named(void **state)
{
    (void)state;
    assert_outcome(run("run", "-m", "/no/model.gguf", "-p", "x"), 1, "", "/no/model.gguf");
    assert_outcome(run("run", "-m", TKV_SOURCE_DIR "/README.md", "-p", "x"), 1, "",
                   "not a GGUF file");
    assert_outcome(run("run", "-f", "/no/prompt"), 1, "", "/no/prompt");
    assert_outcome(run("run", "-f", TKV_SOURCE_DIR "/models/tiny-q8_0.gguf"), 1, "", "NUL bytes");
    assert_outcome(run("run", "-f", "/dev/zero"), 1, "", "/dev/zero holds NUL bytes");
    assert_outcome(run("run", "-p", "x", "--policy", "/dev/zero"), 2, "", "NUL bytes");
    assert_outcome(run("run", "-p", ""), 1, "", "prompt is empty");
    assert_outcome(run("run", "-p", "a b c d e f g h", "-c", "3"), 1, "", "context 3");
}

static void types_are_listed(void **state)
{
    (void)state;
    assert_outcome(run("types"), 0, "turbo3", "");
    cJSON *json = run_json((const char *const[]){"types", "--json", NULL});
    const cJSON *types = cJSON_GetObjectItem(json, "types");
    assert_int_equal(cJSON_GetArraySize(types), TKV_TYPE_COUNT);
    const cJSON *turbo3 = cJSON_GetArrayItem(types, TKV_TYPE_TURBO3);
    assert_string_equal(text_of(turbo3, "name"), "turbo3");
    assert_true(number_of(turbo3, "bits_per_value") == 3.125);
    const cJSON *preset = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "presets"), 3);
    assert_string_equal(text_of(preset, "name"), "3bit");
    const cJSON *bits = cJSON_GetObjectItem(preset, "bits_per_value");
    assert_true(number_of(cJSON_GetArrayItem(bits, 0), "tokens") == 4096);
    assert_true(number_of(cJSON_GetArrayItem(bits, 0), "bits") < 3.6);
    assert_true(number_of(cJSON_GetArrayItem(bits, 2), "bits") < 3.2);
    cJSON_Delete(json);
}

static void text_is_generated(void **state)
{
    (void)state;
    outcome o = run("run", "-p", "The old house stood", "-n", "12", "--temp", "0", "-t", "1");
    assert_int_equal(o.status, 0);
    assert_true(strlen(o.out) > 12);
    assert_non_null(strstr(o.err, "bits a value"));
    cJSON *json = run_json((const char *const[]){"run", "-p", "The old house stood", "-n", "12",
                                                 "--temp", "0", "-t", "1", "--json", NULL});
    /* The streamed text is the same, with a newline at its end. */
    const size_t length = strlen(text_of(json, "text"));
    assert_int_equal(strlen(o.out), length + 1);
    assert_memory_equal(o.out, text_of(json, "text"), length);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "tokens")), 12);
    assert_true(number_of(json, "decoded_tokens") == 11);
    assert_true(number_of(json, "cached_tokens") == number_of(json, "prompt_tokens") + 11);
    cJSON_Delete(json);
    done(&o);
}

/* What a cache is compared with is a cache of f16: page tables and pages that are not full count on
 * both sides. */
static void like_is_compared_with_like(void **state)
{
    (void)state;
    assert_outcome(run("run", "-p", "hi", "-n", "2"), 0, "", "(1.00x)");
    static const char *const lengths[] = {"2", "100", "700"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        cJSON *json = run_json((const char *const[]){"run", "-p", "hi", "-n", lengths[i], "--temp",
                                                     "0.9", "--json", NULL});
        const double ratio = number_of(json, "kv_bytes_f16") / number_of(json, "kv_bytes");
        assert_float_equal(ratio, 1.0, 0.004);
        cJSON_Delete(json);
    }
}

static void seeds_repeat(void **state)
{
    (void)state;
    const char *const a[] = {"run",    "-p",   "Once",   "-n",   "20",     "-s", "7",
                             "--json", "-ctk", "turbo4", "-ctv", "turbo3", NULL};
    const char *const b[] = {"run",    "-p",   "Once",   "-n",   "20",     "-s", "8",
                             "--json", "-ctk", "turbo4", "-ctv", "turbo3", NULL};
    cJSON *first = run_json(a);
    cJSON *second = run_json(a);
    cJSON *other = run_json(b);
    assert_string_equal(text_of(first, "text"), text_of(second, "text"));
    assert_string_not_equal(text_of(first, "text"), text_of(other, "text"));
    assert_string_equal(text_of(first, "cache_type_k"), "turbo4");
    assert_string_equal(text_of(first, "cache_type_v"), "turbo3");
    cJSON_Delete(first);
    cJSON_Delete(second);
    cJSON_Delete(other);
}

/* The context ends the text; -n -1 does not run beyond it. */
static void the_context_is_the_limit(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){"run", "-p", "One two three", "-c", "24", "--json",
                                                 "--temp", "0", NULL});
    assert_true(number_of(json, "cached_tokens") <= 24);
    assert_true(number_of(json, "decoded_tokens") > 5);
    cJSON_Delete(json);
}

static void a_shift_goes_beyond_it(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){
        "run", "-p", "The old house stood by the river", "-c", "64", "-n", "150", "--json",
        "--temp", "0.9", "--kv", "3bit", "--context-shift", "--sparse-v", "0.01", NULL});
    /* Each shift makes room for thirty tokens; the text may end before. */
    const double n = number_of(json, "decoded_tokens");
    assert_true(n > 64);
    assert_float_equal(number_of(json, "context_shifts"), (n - 56) / 30, 1.5);
    assert_true(number_of(json, "cached_tokens") <= 64);
    assert_true(number_of(json, "values_skipped") > 0.0);
    assert_non_null(strstr(text_of(json, "policy"), "k=trellis3 v=trellis3 sinks=4"));
    cJSON_Delete(json);
    assert_outcome(run("run", "-p", "One two three", "-c", "24", "-n", "60", "--context-shift",
                       "--keep", "23"),
                   1, "", "expected a smaller --keep");
    assert_outcome(run("run", "-p", "One two three", "-c", "24", "-n", "60", "--context-shift",
                       "--sparse-v", "auto", "-ctk", "turbo4"),
                   0, "", "sparse V skipped");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(help_and_usage),
                                       cmocka_unit_test(wrong_options_list_the_valid_ones),
                                       cmocka_unit_test(unreadable_input_is_named),
                                       cmocka_unit_test(types_are_listed),
                                       cmocka_unit_test(text_is_generated),
                                       cmocka_unit_test(like_is_compared_with_like),
                                       cmocka_unit_test(seeds_repeat),
                                       cmocka_unit_test(the_context_is_the_limit),
                                       cmocka_unit_test(a_shift_goes_beyond_it)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
