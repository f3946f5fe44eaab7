/* Tokenizers against golden values of independent implementations, and on hostile input. */
#include "model/tokenizer.h"
#include "support/support.h"

#include <cjson/cJSON.h>

typedef struct golden {
    cJSON *root;
    tkv_gguf_text *tokens;
    tkv_gguf_text *merges;
    float *scores;
    int32_t *kinds;
    tkv_tokenizer_params params;
} golden;

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    const long size = ftell(file);
    rewind(file);
    char *text = allocate((size_t)size + 1);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    fclose(file);
    return text;
}

static tkv_gguf_text *texts(const cJSON *array, int32_t *n)
{
    *n = cJSON_GetArraySize(array);
    tkv_gguf_text *result = allocate((size_t)*n * sizeof *result);
    const cJSON *item;
    int32_t i = 0;
    cJSON_ArrayForEach(item, array)
    {
        result[i++] = (tkv_gguf_text){item->valuestring, strlen(item->valuestring)};
    }
    return result;
}

/* The part of the golden file that is about one pre-tokenizer, or "llama". */
static golden load(const char *name)
{
    char *text = read_file(TKV_SOURCE_DIR "/tests/model/data/tokenizer_golden.json");
    golden g = {.root = cJSON_Parse(text)};
    free(text);
    assert_non_null(g.root);
    const cJSON *part = cJSON_GetObjectItem(g.root, name);
    const cJSON *item;
    const bool is_llama = strcmp(name, "llama") == 0;
    g.params = (tkv_tokenizer_params){.model = is_llama ? "llama" : "gpt2",
                                      .pre_tokenizer = name,
                                      .bos_token = -1,
                                      .unknown_token = is_llama ? 0 : -1,
                                      .adds_space_prefix = is_llama};
    g.tokens = texts(cJSON_GetObjectItem(part, "tokens"), &g.params.n_tokens);
    g.merges = texts(cJSON_GetObjectItem(part, "merges"), &g.params.n_merges);
    if (is_llama) {
        g.scores = allocate((size_t)g.params.n_tokens * sizeof *g.scores);
        g.kinds = allocate((size_t)g.params.n_tokens * sizeof *g.kinds);
        int i = 0;
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(part, "scores"))
        {
            g.scores[i++] = (float)item->valuedouble;
        }
        i = 0;
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(part, "kinds"))
        {
            g.kinds[i++] = item->valueint;
        }
    }
    g.params.tokens = g.tokens;
    g.params.merges = g.merges;
    g.params.scores = g.scores;
    g.params.kinds = g.kinds;
    return g;
}

static void unload(golden *g)
{
    cJSON_Delete(g->root);
    free(g->tokens);
    free(g->merges);
    free(g->scores);
    free(g->kinds);
}

static void check_round_trip(const tkv_tokenizer *tokenizer, const tkv_tokens *tokens,
                             const char *text, size_t length, bool has_prefix)
{
    size_t at = 0;
    for (size_t i = 0; i < tokens->n; i++) {
        const tkv_gguf_text piece = tkv_tokenizer_decode(tokenizer, tokens->ids[i]);
        const size_t skip = has_prefix && i == 0 ? 1 : 0;
        assert_true(at + piece.length - skip <= length);
        assert_memory_equal(text + at, piece.data + skip, piece.length - skip);
        at += piece.length - skip;
    }
    assert_int_equal(at, length);
}

/* Compares with the golden tokens of a part. Returns how many texts there were. */
static int check_cases(const golden *g, const char *part)
{
    tkv_tokenizer *tokenizer = NULL;
    assert_ok(tkv_tokenizer_create(&g->params, &tokenizer, &error));
    const cJSON *item;
    int n_cases = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(cJSON_GetObjectItem(g->root, part), "cases"))
    {
        const char *text = cJSON_GetObjectItem(item, "text")->valuestring;
        const cJSON *ids = cJSON_GetObjectItem(item, "ids");
        tkv_tokens tokens = {0};
        assert_ok(tkv_tokenizer_encode(tokenizer, text, strlen(text), false, &tokens, &error));
        bool is_equal = tokens.n == (size_t)cJSON_GetArraySize(ids);
        for (size_t t = 0; is_equal && t < tokens.n; t++) {
            is_equal = cJSON_GetArrayItem(ids, (int)t)->valueint == tokens.ids[t];
        }
        if (!is_equal) {
            char *expected = cJSON_PrintUnformatted(ids);
            fail_msg("%s: '%s' gives %zu tokens, expected %s", g->params.pre_tokenizer, text,
                     tokens.n, expected);
        }
        if (*text) {
            check_round_trip(tokenizer, &tokens, text, strlen(text), g->params.adds_space_prefix);
        }
        tkv_tokens_free(&tokens);
        n_cases++;
    }
    tkv_tokenizer_free(tokenizer);
    return n_cases;
}

static void equals_independent_implementations(void **state)
{
    (void)state;
    const char *const names[] = {"gpt-2",  "llama-bpe", "qwen2", "smollm",
                                 "tekken", "default",   "llama"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden g = load(names[i]);
        assert_int_equal(check_cases(&g, names[i]), 30);
        unload(&g);
    }
}

/* Files name the same expressions in many ways; one without a name means the default. */
static void pre_tokenizers_have_several_names(void **state)
{
    (void)state;
    const char *const names[][2] = {
        {"", "default"},          {"phi-2", "gpt-2"},         {"gigachat", "gpt-2"},
        {"a.x-4.0", "gpt-2"},     {"mellum", "gpt-2"},        {"exaone4", "gpt-2"},
        {"olmo", "gpt-2"},        {"trillion", "gpt-2"},      {"granite-docling", "gpt-2"},
        {"llama3", "llama-bpe"},  {"llama-v3", "llama-bpe"},  {"falcon3", "llama-bpe"},
        {"pixtral", "llama-bpe"}, {"falcon-h1", "llama-bpe"}, {"midm-2.0", "llama-bpe"},
        {"lfm2", "llama-bpe"},    {"glm4", "llama-bpe"},      {"deepseek-r1-qwen", "qwen2"},
        {"kormo", "qwen2"},       {"megrez", "qwen2"},        {"stablelm2", "qwen2"},
        {"hunyuan", "qwen2"},     {"solar-open", "qwen2"},    {"grok-2", "qwen2"},
        {"starcoder", "smollm"},  {"refact", "smollm"},       {"command-r", "smollm"},
        {"codeshell", "smollm"},  {"exaone", "smollm"},       {"minerva-7b", "smollm"},
        {"dbrx", "llama-bpe"},    {"smaug-bpe", "llama-bpe"}, {"chatglm-bpe", "llama-bpe"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden g = load(names[i][1]);
        g.params.pre_tokenizer = names[i][0];
        assert_int_equal(check_cases(&g, names[i][1]), 30);
        unload(&g);
    }
}

static void any_bytes_survive(void **state)
{
    (void)state;
    const char *const names[] = {"gpt-2", "qwen2", "tekken", "llama"};
    uint64_t seed = 77;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden g = load(names[i]);
        tkv_tokenizer *tokenizer = NULL;
        assert_ok(tkv_tokenizer_create(&g.params, &tokenizer, &error));
        for (int trial = 0; trial < 200; trial++) {
            char text[300];
            const size_t length = 1 + (size_t)random_below(&seed, 299);
            for (size_t b = 0; b < length; b++) {
                text[b] =
                    (char)(trial % 2 ? random_below(&seed, 256) : 32 + random_below(&seed, 95));
            }
            tkv_tokens tokens = {0};
            assert_ok(tkv_tokenizer_encode(tokenizer, text, length, true, &tokens, &error));
            check_round_trip(tokenizer, &tokens, text, length, g.params.adds_space_prefix);
            tkv_tokens_free(&tokens);
        }
        tkv_tokenizer_free(tokenizer);
        unload(&g);
    }
}

/* A megabyte without a break is one piece. */
static void long_runs_take_no_quadratic_time(void **state)
{
    (void)state;
    golden g = load("qwen2");
    tkv_tokenizer *tokenizer = NULL;
    assert_ok(tkv_tokenizer_create(&g.params, &tokenizer, &error));
    const size_t length = 1 << 20;
    char *text = allocate(length);
    for (size_t i = 0; i < length; i++) {
        text[i] = "theroadmill"[i % 11];
    }
    tkv_tokens tokens = {0};
    assert_ok(tkv_tokenizer_encode(tokenizer, text, length, false, &tokens, &error));
    check_round_trip(tokenizer, &tokens, text, length, false);
    tkv_tokens_free(&tokens);
    free(text);
    tkv_tokenizer_free(tokenizer);
    unload(&g);
}

/* As in llama.cpp: SentencePiece's space comes before every run of text between special tokens. */
static void every_run_has_a_space_before(void **state)
{
    (void)state;
    golden g = load("llama");
    tkv_tokenizer *tokenizer = NULL;
    assert_ok(tkv_tokenizer_create(&g.params, &tokenizer, &error));
    const int32_t special = tkv_tokenizer_find_special(tokenizer, "</s>");
    assert_true(special >= 0);
    const char *const parts[] = {"the road", "to the mill"};
    tkv_tokens expected = {0};
    tkv_tokens tokens = {0};
    for (int i = 0; i < 2; i++) {
        assert_ok(
            tkv_tokenizer_encode(tokenizer, parts[i], strlen(parts[i]), true, &expected, &error));
        assert_ok(i == 0 ? tkv_tokens_push(&expected, special, &error) : TKV_OK);
    }
    const char text[] = "the road</s>to the mill";
    assert_ok(tkv_tokenizer_encode(tokenizer, text, strlen(text), true, &tokens, &error));
    assert_int_equal(tokens.n, expected.n);
    assert_memory_equal(tokens.ids, expected.ids, tokens.n * sizeof *tokens.ids);
    tkv_tokens_free(&tokens);
    tkv_tokens_free(&expected);
    tkv_tokenizer_free(tokenizer);
    unload(&g);
}

static void special_tokens(void **state)
{
    (void)state;
    tkv_gguf *gguf = NULL;
    tkv_tokenizer *tokenizer = NULL;
    assert_ok(tkv_gguf_open(TKV_SOURCE_DIR "/models/tiny-q8_0.gguf", &gguf, &error));
    assert_ok(tkv_tokenizer_from_gguf(gguf, &tokenizer, &error));
    tkv_gguf_close(gguf);
    const tkv_gguf_text end = tkv_tokenizer_decode(tokenizer, 0);
    assert_true(tkv_tokenizer_is_end(tokenizer, 0));
    assert_false(tkv_tokenizer_is_end(tokenizer, 1));
    assert_false(tkv_tokenizer_is_end(tokenizer, -1));
    assert_int_equal(tkv_tokenizer_decode(tokenizer, 1 << 20).length, 0);
    tkv_tokens tokens = {0};
    assert_ok(tkv_tokenizer_encode(tokenizer, end.data, end.length, true, &tokens, &error));
    assert_int_equal(tokens.n, 1);
    assert_int_equal(tokens.ids[0], 0);
    assert_ok(tkv_tokenizer_encode(tokenizer, end.data, end.length, false, &tokens, &error));
    assert_true(tokens.n > 2);
    tkv_tokens_free(&tokens);
    tkv_tokenizer_free(tokenizer);
}

static void wrong_vocabularies_are_refused(void **state)
{
    (void)state;
    golden g = load("qwen2");
    tkv_tokenizer *tokenizer = NULL;
    tkv_tokenizer_params p = g.params;
    p.model = "bert";
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_UNSUPPORTED,
                 "gpt2 or llama");
    p = g.params;
    p.pre_tokenizer = "unheard-of-0123456789";
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_UNSUPPORTED,
                 "tokenizer.ggml.pre is 'unheard-of-012345678'; known are default gpt-2");
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_UNSUPPORTED, " tekken");
    p = g.params;
    p.n_tokens = 0;
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_FORMAT, "0 tokens");
    p = g.params;
    p.n_end_tokens = 1;
    p.end_tokens = &p.n_tokens;
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_FORMAT, "end token");
    p = g.params;
    p.model = "llama";
    assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_FORMAT, "scores");
    const char *const merges[] = {"", " ", "a", "a b c", "zz qq", "\xff x", "a "};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        const tkv_gguf_text merge = {merges[i], strlen(merges[i])};
        p = g.params;
        p.merges = &merge;
        p.n_merges = 1;
        assert_fails(tkv_tokenizer_create(&p, &tokenizer, &error), TKV_ERR_FORMAT, "merge 0");
    }
    assert_null(tokenizer);
    unload(&g);
}

static void whole_characters(void **state)
{
    (void)state;
    assert_int_equal(tkv_utf8_whole("abc", 3), 3);
    assert_int_equal(tkv_utf8_whole("\xe2\x82\xac", 3), 3);
    assert_int_equal(tkv_utf8_whole("a\xe2\x82", 3), 1);
    assert_int_equal(tkv_utf8_whole("a\xe2", 2), 1);
    assert_int_equal(tkv_utf8_whole("\xf0\x9f\x91", 3), 0);
    assert_int_equal(tkv_utf8_whole("\xf0\x9f\x91\x8d", 4), 4);
    assert_int_equal(tkv_utf8_whole("\x82\x82\x82\x82", 4), 4);
    assert_int_equal(tkv_utf8_whole("\xff", 1), 1);
    assert_int_equal(tkv_utf8_whole("", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_independent_implementations),
                                       cmocka_unit_test(pre_tokenizers_have_several_names),
                                       cmocka_unit_test(any_bytes_survive),
                                       cmocka_unit_test(long_runs_take_no_quadratic_time),
                                       cmocka_unit_test(every_run_has_a_space_before),
                                       cmocka_unit_test(special_tokens),
                                       cmocka_unit_test(wrong_vocabularies_are_refused),
                                       cmocka_unit_test(whole_characters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
