/* What the demo claims, by instruction set. usage: test_cli_demo [smollm2]
 *
 * Without an argument, on the shipped model; with one, on a model that others made, and then
 * README.md says what comes of it. */
#include "process.h"

#include "cli/demo.h"
#include "kernels/kernels.h"
#include "support/fetched_model.h"

#include <fcntl.h>

#define EXIT_SKIPPED 77
#define N_RESULTS 4

static const char *const presets[N_RESULTS] = {"f16", "4bit", "3bit", "2bit"};

static char path[1024]; /* empty: the shipped model */

static cJSON *run_demo(const char *n_text)
{
    const char *const arguments[] = {
        "demo", "-n", n_text, "-t", "2", "--json", path[0] ? "-m" : NULL, path, NULL};
    return run_json(arguments);
}

static const cJSON *result_of(const cJSON *json, int i)
{
    const cJSON *result = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "results"), i);
    assert_string_equal(text_of(result, "kv"), presets[i]);
    return result;
}

static bool is_right(const cJSON *result)
{
    return cJSON_IsTrue(cJSON_GetObjectItem(result, "right"));
}

/* Figures that errors of rounding reach are equal only roughly. */
static void assert_same_claims(const cJSON *json, const cJSON *other)
{
    assert_int_equal(number_of(json, "prompt_tokens"), number_of(other, "prompt_tokens"));
    for (int i = 0; i < N_RESULTS; i++) {
        const cJSON *a = result_of(json, i);
        const cJSON *b = result_of(other, i);
        if (is_right(a) != is_right(b)) {
            fail_msg("%s: '%s' with %s, '%s' with %s", presets[i], text_of(a, "answer"),
                     text_of(json, "kernels"), text_of(b, "answer"), text_of(other, "kernels"));
        }
        assert_true(number_of(a, "kv_bytes") == number_of(b, "kv_bytes"));
        assert_true(number_of(a, "times_smaller") == number_of(b, "times_smaller"));
        const double kl = number_of(a, "mean_kl");
        assert_float_equal(number_of(b, "mean_kl"), kl, 0.3 * kl);
        assert_float_equal(number_of(b, "same_top"), number_of(a, "same_top"),
                           0.05 * number_of(a, "positions"));
    }
}

/* The demo with all kernels of this machine, but for the reference's if the text is too long for
 * them; the last one is returned. */
static cJSON *run_on_all_kernels(const char *n_text, bool has_reference)
{
    cJSON *first = NULL;
    const tkv_kernels *kernels;
    for (int i = has_reference ? 0 : 1; (kernels = tkv_kernels_available(i)); i++) {
        assert_int_equal(setenv("TKV_CPU", kernels->name, 1), 0);
        cJSON *json = run_demo(n_text);
        assert_string_equal(text_of(json, "kernels"), kernels->name);
        if (first) {
            assert_same_claims(first, json);
            cJSON_Delete(first);
        }
        first = json;
    }
    unsetenv("TKV_CPU");
    return first ? first : run_demo(n_text);
}

static void kernels_make_no_difference(void **state)
{
    (void)state;
    cJSON *json = run_on_all_kernels(path[0] ? "320" : "512", true);
    for (int i = 0; i < N_RESULTS; i++) {
        const cJSON *result = result_of(json, i);
        assert_true(number_of(result, "read_tokens_per_second") > 0.0);
        assert_true(number_of(result, "write_tokens_per_second") > 0.0);
        assert_true(i == 0 || number_of(result, "times_smaller") > 1.0);
        assert_true(i == 0 || number_of(result, "mean_kl") > 0.0);
    }
    assert_true(is_right(result_of(json, 0)));
    assert_true(number_of(result_of(json, 0), "mean_kl") == 0.0);
    assert_true(number_of(result_of(json, 0), "same_top") ==
                number_of(result_of(json, 0), "positions"));
    cJSON_Delete(json);
}

/* The line of a text that begins with these words, after the line `heading`. The caller frees it.
 */
static char *find_line(const char *text, const char *heading, const char *words)
{
    const char *at = strstr(text, heading);
    assert_non_null(at);
    at = strstr(at, words);
    if (!at) {
        fail_msg("no line with '%s' after '%s'", words, heading);
    }
    const size_t length = strcspn(at, "\n");
    char *line = allocate(length + 1);
    memcpy(line, at, length);
    return line;
}

/* README.md shows the default demo on this model: its answers, and its figures but for times. */
static void readme_says_what_comes_of_it(void **state)
{
    (void)state;
    char *readme = read_all(open(TKV_SOURCE_DIR "/README.md", O_RDONLY));
    cJSON *json = run_on_all_kernels("2048", false);
    for (int i = 0; i < N_RESULTS; i++) {
        const cJSON *result = result_of(json, i);
        char words[64];
        snprintf(words, sizeof words, "\n    %-5s", presets[i]);
        char *answer = find_line(readme, "KV           answer", words + 1);
        snprintf(words, sizeof words, "    %-5s %-6s ", presets[i],
                 is_right(result) ? "right" : "wrong");
        assert_memory_equal(answer, words, strlen(words));
        free(answer);

        snprintf(words, sizeof words, "    %-5s ", presets[i]);
        char *figures = find_line(readme, "KV           bytes", words);
        double bytes, smaller, bits, mean_kl;
        int same_top;
        assert_int_equal(sscanf(figures + strlen(words), "%lf %lfx %lf %*f %*f %d/%*d %lf", &bytes,
                                &smaller, &bits, &same_top, &mean_kl),
                         5);
        assert_float_equal(bytes / number_of(result, "kv_bytes"), 1.0, 0.01);
        assert_float_equal(smaller / number_of(result, "times_smaller"), 1.0, 0.01);
        assert_float_equal(bits / number_of(result, "bits_per_value"), 1.0, 0.01);
        assert_float_equal(same_top, number_of(result, "same_top"), 0.05 * 256);
        assert_float_equal(mean_kl, number_of(result, "mean_kl"), 0.3 * mean_kl);
        free(figures);
    }
    cJSON_Delete(json);
    free(readme);
}

/* More digits are another number, and a second number comes too late. */
static void only_the_number_is_right(void **state)
{
    (void)state;
    assert_true(demo_is_right("48213", "48213"));
    assert_true(demo_is_right("The answer is:\n 48213.", "48213"));
    assert_false(demo_is_right("482133.", "48213"));
    assert_false(demo_is_right("148213", "48213"));
    assert_false(demo_is_right("4821", "48213"));
    assert_false(demo_is_right("12, or 48213", "48213"));
    assert_false(demo_is_right("The number only.", "48213"));
    assert_false(demo_is_right("", "48213"));
}

/* Whole paragraphs, the fact between them. */
static void the_text_is_as_long_as_asked_for(void **state)
{
    (void)state;
    cJSON *json = run_demo("300");
    const double n = number_of(json, "text_tokens");
    assert_in_range((int)n, 150, 300);
    assert_in_range((int)number_of(json, "tokens_before_fact"), 1, 90);
    assert_true(number_of(json, "prompt_tokens") > n);
    assert_true(number_of(result_of(json, 0), "positions") ==
                floor(number_of(json, "prompt_tokens") / 2.0));
    cJSON_Delete(json);
}

static void a_text_has_an_end(void **state)
{
    (void)state;
    assert_outcome(run("demo", "-n", "1000000"), 1, "", "expected a demo of fewer than 1000000");
    assert_outcome(run("demo", "-n", "0"), 2, "", "whole number from 16");
    assert_outcome(run("demo", "-m", "/no/model.gguf"), 1, "", "/no/model.gguf");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest shipped[] = {
        cmocka_unit_test(kernels_make_no_difference), cmocka_unit_test(only_the_number_is_right),
        cmocka_unit_test(the_text_is_as_long_as_asked_for), cmocka_unit_test(a_text_has_an_end)};
    const struct CMUnitTest fetched[] = {cmocka_unit_test(kernels_make_no_difference),
                                         cmocka_unit_test(readme_says_what_comes_of_it)};
    if (argc == 1) {
        return cmocka_run_group_tests(shipped, NULL, NULL);
    }
    return fetched_model(argv[1], path, sizeof path) ? cmocka_run_group_tests(fetched, NULL, NULL)
                                                     : EXIT_SKIPPED;
}
