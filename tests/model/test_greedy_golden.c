/* Models that others made: tokens of hostile texts and greedy continuations with f16 KV against
 * llama.cpp's on the weights expanded to F32, from files that tools/make_greedy_golden.py wrote.
 * usage: test_greedy_golden smollm2 | gemma3 */
#include "support/fetched_model.h"
#include "support/support.h"

#include "model/prompt.h"
#include "model/session.h"

#include <cjson/cJSON.h>

#define MAX_TOKENS 2048

/* With sanitizers a step takes ten times as long. */
#ifdef TKV_SANITIZED
#define MAX_PROMPTS 1
#define MAX_GREEDY 4
#else
#define MAX_PROMPTS 64
#define MAX_GREEDY MAX_TOKENS
#endif

typedef struct loaded_model {
    cJSON *golden;
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_tokenizer *tokenizer;
    tkv_context *context;
} loaded_model;

static char model_path[1024];

static cJSON *read_golden(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/model/data/greedy_golden_%s.json", TKV_SOURCE_DIR, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    const long size = ftell(file);
    rewind(file);
    char *text = allocate((size_t)size + 1);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    fclose(file);
    cJSON *golden = cJSON_Parse(text);
    assert_non_null(golden);
    free(text);
    return golden;
}

static loaded_model load(const char *name)
{
    loaded_model loaded = {.golden = read_golden(name)};
    assert_ok(tkv_gguf_open(model_path, &loaded.gguf, &error));
    assert_ok(tkv_model_create(loaded.gguf, &loaded.model, &error));
    assert_ok(tkv_tokenizer_from_gguf(loaded.gguf, &loaded.tokenizer, &error));
    /* One thread: on a busy machine, threads that wait for each other take many times longer. */
    const tkv_context_params params = {.n_threads = 1};
    assert_ok(tkv_context_create(&params, &loaded.context, &error));
    return loaded;
}

static void unload(loaded_model *loaded)
{
    tkv_context_free(loaded->context);
    tkv_tokenizer_free(loaded->tokenizer);
    tkv_model_free(loaded->model);
    tkv_gguf_close(loaded->gguf);
    cJSON_Delete(loaded->golden);
}

static const char *text_of(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    assert_true(cJSON_IsString(item));
    return item->valuestring;
}

/* The tokens are those of a golden array. */
static void check_ids(const char *what, const cJSON *expected, const int32_t *found, int n_found)
{
    const int n = cJSON_GetArraySize(expected);
    for (int i = 0; i < n && i < n_found; i++) {
        const int id = cJSON_GetArrayItem(expected, i)->valueint;
        if (id != found[i]) {
            fail_msg("%.40s: token %d: expected %d, found %d", what, i, id, (int)found[i]);
        }
    }
    if (n != n_found) {
        fail_msg("%.40s: expected %d tokens, found %d", what, n, n_found);
    }
}

static void test_tokens(void **state)
{
    loaded_model loaded = load(*state);
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(loaded.golden, "texts"))
    {
        const char *text = text_of(item, "text");
        tkv_tokens tokens = {0};
        assert_ok(tkv_tokenizer_encode(loaded.tokenizer, text, strlen(text),
                                       cJSON_IsTrue(cJSON_GetObjectItem(item, "special")), &tokens,
                                       &error));
        check_ids(text, cJSON_GetObjectItem(item, "ids"), tokens.ids, (int)tokens.n);
        tkv_tokens_free(&tokens);
    }
    unload(&loaded);
}

/* The tokens of the model's chat form are special ones, and a turn's end ends a text: whether the
 * model ever says it is another matter. */
static void test_turns(void **state)
{
    const bool is_gemma = strcmp(*state, "gemma3") == 0;
    loaded_model loaded = load(*state);
    const char *const names[] = {is_gemma ? "<start_of_turn>" : "<|im_start|>",
                                 is_gemma ? "<end_of_turn>" : "<|im_end|>"};
    for (int i = 0; i < 2; i++) {
        const int32_t id = tkv_tokenizer_find_special(loaded.tokenizer, names[i]);
        assert_true(id >= 0);
        assert_int_equal(tkv_tokenizer_is_end(loaded.tokenizer, id), i);
    }
    unload(&loaded);
}

static int32_t largest_of(const float *logits, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

static void eval(tkv_session *session, const int32_t *tokens, int n_tokens, float *logits)
{
    const tkv_eval_params params = {.logits_mode = TKV_LOGITS_LAST, .logits = logits};
    assert_ok(tkv_session_eval(session, tokens, n_tokens, &params, &error));
}

/* Token by token, as generation does it. */
static void check_greedy(const loaded_model *loaded, const cJSON *prompt, const int32_t *tokens,
                         int n_tokens)
{
    const cJSON *expected = cJSON_GetObjectItem(prompt, "greedy");
    const int n =
        cJSON_GetArraySize(expected) < MAX_GREEDY ? cJSON_GetArraySize(expected) : MAX_GREEDY;
    const int n_vocabulary = tkv_model_get_config(loaded->model)->vocabulary_size;
    float *logits = allocate((size_t)n_vocabulary * sizeof *logits);
    tkv_session *session = NULL;
    const tkv_session_params params = {.max_tokens = MAX_TOKENS};
    assert_ok(tkv_session_create(loaded->model, loaded->context, &params, &session, &error));
    eval(session, tokens, n_tokens, logits);
    for (int i = 0; i < n; i++) {
        const int32_t token = largest_of(logits, n_vocabulary);
        const int32_t golden = cJSON_GetArrayItem(expected, i)->valueint;
        if (token != golden) {
            fail_msg("%s, generated token %d: expected %d, found %d, which leads by %g",
                     text_of(prompt, "name"), i, (int)golden, (int)token,
                     (double)(logits[token] - logits[golden]));
        }
        eval(session, &token, 1, logits);
    }
    tkv_session_free(session);
    free(logits);
}

static void test_greedy_f16(void **state)
{
    loaded_model loaded = load(*state);
    const cJSON *prompts = cJSON_GetObjectItem(loaded.golden, "prompts");
    assert_int_equal(cJSON_GetArraySize(prompts), 5);
    for (int i = 0; i < 5 && i < MAX_PROMPTS; i++) {
        const cJSON *prompt = cJSON_GetArrayItem(prompts, i);
        const char *text = text_of(prompt, "text");
        tkv_tokens tokens = {0};
        assert_ok(tkv_prompt_encode(loaded.tokenizer, text, strlen(text), &tokens, &error));
        check_ids(text, cJSON_GetObjectItem(prompt, "tokens"), tokens.ids, (int)tokens.n);
        check_greedy(&loaded, prompt, tokens.ids, (int)tokens.n);
        print_message("%s: the same\n", text_of(prompt, "name"));
        tkv_tokens_free(&tokens);
    }
    unload(&loaded);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_greedy_golden smollm2 | gemma3\n");
        return EXIT_FAILURE;
    }
    if (!fetched_model(argv[1], model_path, sizeof model_path)) {
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        {"tokens", test_tokens, NULL, NULL, argv[1]},
        {"turns", test_turns, NULL, NULL, argv[1]},
        {"greedy, f16 KV", test_greedy_f16, NULL, NULL, argv[1]},
    };
    return cmocka_run_group_tests_name(argv[1], tests, NULL, NULL);
}
