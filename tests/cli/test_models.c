/* The command on models that others made. usage: test_cli_models smollm2 | gemma3 */
#include "process.h"

#include "support/fetched_model.h"

static char path[1024];

#define MAX_ANSWER 60
#define QUESTION "What is the capital of France?"

/* The answer to a prompt, which must end by itself. */
static cJSON *answer(const char *kv, const char *chat, const char *prompt)
{
    const char *const arguments[] = {"run", "-m", path, "--temp", "0",  "-n",   "60", "--kv",
                                     kv,    "-t", "1",  "--json", "-p", prompt, chat, NULL};
    cJSON *json = run_json(arguments);
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(json, "tokens")) < MAX_ANSWER);
    return json;
}

static void a_chat_is_answered_and_ends(void **state)
{
    (void)state;
    const char *typed = "<|im_start|>user\n" QUESTION "<|im_end|>\n<|im_start|>assistant\n";
    const char *const presets[] = {"f16", "8bit", "4bit", "3bit"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        cJSON *by_hand = answer(presets[i], NULL, typed);
        assert_string_equal(text_of(by_hand, "text"), "The capital of France is Paris.");
        cJSON_Delete(by_hand);
    }
    cJSON *by_option = answer("f16", "--chat", QUESTION);
    assert_string_equal(text_of(by_option, "text"), "The capital of France is Paris.");
    cJSON_Delete(by_option);
}

/* The wheel has the model before it was taught turns: what it answers and whether it ends are its
 * own, so of its chat form the prompt is looked at. */
static void a_chat_is_written_in_gemmas_form(void **state)
{
    (void)state;
    const char *typed = "<start_of_turn>user\n" QUESTION "<end_of_turn>\n<start_of_turn>model\n";
    const char *const by_hand[] = {"run", "-m", path, "--temp", "0",      "-n", "8",
                                   "-t",  "1",  "-p", typed,    "--json", NULL};
    const char *const by_option[] = {"run", "-m", path, "--temp", "0",      "-n",     "8",
                                     "-t",  "1",  "-p", QUESTION, "--chat", "--json", NULL};
    cJSON *expected = run_json(by_hand);
    cJSON *found = run_json(by_option);
    /* Begin, three marks of turns, user and model, three ends of lines, and the question. */
    assert_int_equal(number_of(found, "prompt_tokens"), 1 + 3 + 2 + 3 + 7);
    assert_int_equal(number_of(found, "prompt_tokens"), number_of(expected, "prompt_tokens"));
    assert_string_equal(text_of(found, "text"), text_of(expected, "text"));
    cJSON_Delete(expected);
    cJSON_Delete(found);
}

/* It goes on with a pattern. */
static void a_base_model_goes_on(void **state)
{
    (void)state;
    assert_outcome(run("run", "-m", path, "--temp", "0", "-n", "6", "--kv", "4bit", "-t", "1", "-p",
                       "Germany: Berlin\nItaly: Rome\nSpain: Madrid\nFrance:"),
                   0, " Paris\n", "bits a value");
}

static void a_context_beyond_training_warns(void **state)
{
    (void)state;
    assert_outcome(run("run", "-m", path, "-n", "1", "-c", "32769", "-t", "1", "-p", "x"), 0, "",
                   "a context of 32769 tokens: the model was trained for");
    outcome o = run("run", "-m", path, "-n", "1", "-c", "8192", "-t", "1", "-p", "x");
    assert_int_equal(o.status, 0);
    assert_null(strstr(o.err, "warning"));
    done(&o);
}

int main(int argc, char **argv)
{
    const bool is_gemma = argc == 2 && strcmp(argv[1], "gemma3") == 0;
    if (argc != 2 || (!is_gemma && strcmp(argv[1], "smollm2") != 0)) {
        fprintf(stderr, "usage: test_cli_models smollm2 | gemma3\n");
        return EXIT_FAILURE;
    }
    if (!fetched_model(argv[1], path, sizeof path)) {
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest of_smollm2[] = {
        cmocka_unit_test(a_chat_is_answered_and_ends),
        cmocka_unit_test(a_context_beyond_training_warns),
    };
    const struct CMUnitTest of_gemma3[] = {
        cmocka_unit_test(a_chat_is_written_in_gemmas_form),
        cmocka_unit_test(a_base_model_goes_on),
        cmocka_unit_test(a_context_beyond_training_warns),
    };
    return is_gemma ? cmocka_run_group_tests_name("gemma3", of_gemma3, NULL, NULL)
                    : cmocka_run_group_tests_name("smollm2", of_smollm2, NULL, NULL);
}
