/* The command on Metal: a model's answer is the CPU's, and the benchmark runs. */
#include "cli/process.h"

/* Several pages of tokens, of which the older ones are coded. */
static const char prompt[] =
    "The old man went down to the river every morning to look at the boats. He had done so for as "
    "long as anybody could remember, in rain and in snow, and when the children asked him what he "
    "was waiting for, he smiled and said that he was not waiting at all.";

static cJSON *run_on(const char *device)
{
    return run_json((const char *const[]){"run", "--device", device, "-n", "5", "--temp", "0",
                                          "--kv", "4bit", "--recent", "16", "-p", prompt, "--json",
                                          NULL});
}

static void text_is_that_of_the_cpu(void **state)
{
    (void)state;
    cJSON *expected = run_on("cpu");
    cJSON *found = run_on("metal");
    assert_string_equal(text_of(found, "text"), text_of(expected, "text"));
    assert_string_equal(text_of(found, "kernels"), "metal");
    cJSON_Delete(expected);
    cJSON_Delete(found);
}

static void attention_is_benched(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){
        "bench", "attention", "--device", "metal", "-n", "150", "--kv-heads", "1", "-g", "2",
        "--head-dim", "64", "-r", "1", "--types", "turbo3", "--json", NULL});
    const cJSON *rows = cJSON_GetObjectItem(json, "types");
    assert_string_equal(text_of(json, "kernels"), "metal");
    assert_int_equal(cJSON_GetArraySize(rows), 2);
    assert_true(number_of(cJSON_GetArrayItem(rows, 1), "median_seconds") > 0.0);
    assert_true(number_of(cJSON_GetArrayItem(rows, 1), "output_error") < 0.5);
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_that_of_the_cpu),
        cmocka_unit_test(attention_is_benched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
