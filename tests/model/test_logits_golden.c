/* Logits and greedy continuations of trained models against llama.cpp's, from golden files that
 * tools/make_logits_golden.py wrote. Models that the repository does not carry are looked for in
 * the folder named by TKV_TEST_MODELS, or in ../shared/models beside it, and skipped if absent. */
#include "support/support.h"

#include "model/gguf.h"
#include "model/session.h"

/* The golden rows differ by at most 0.005 from the same weights evaluated in float64. */
#define LOGIT_TOLERANCE (test_device() ? 0.04 : 0.01) /* devices multiply in halves */
#define MAX_PROMPTS 4
#define MAX_ROWS 8
#define MAX_ENTRIES 256
#define MAX_TOKENS 1024
#define TURBO8_TOKENS 32
/* turbo8 moves a few logits of these small models by 0.25: closer choices are not tested with it.
 */
#define TURBO8_MARGIN 0.25f

typedef struct golden_row {
    int position;
    int n_entries;
    int ids[MAX_ENTRIES];
    float logits[MAX_ENTRIES];
} golden_row;

typedef struct golden_prompt {
    char name[32];
    int n_tokens;
    int32_t tokens[MAX_TOKENS];
    float margin; /* least lead of a greedy choice over the next best, exact weights */
    int n_greedy;
    int32_t greedy[MAX_TOKENS];
    int n_rows;
    golden_row rows[MAX_ROWS];
} golden_prompt;

typedef struct golden {
    int vocabulary_size;
    int n_prompts;
    golden_prompt prompts[MAX_PROMPTS];
} golden;

typedef struct loaded_model {
    golden *golden;
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_context *context;
} loaded_model;

/* ---- Golden files ------------------------------------------------------------------------- */

static void read_ids(FILE *file, int n, int32_t *ids)
{
    assert_in_range(n, 1, MAX_TOKENS);
    for (int i = 0; i < n; i++) {
        int id = 0;
        assert_int_equal(fscanf(file, "%d", &id), 1);
        ids[i] = id;
    }
}

static void read_row(FILE *file, golden_row *row)
{
    assert_int_equal(fscanf(file, " row %d %d", &row->position, &row->n_entries), 2);
    assert_in_range(row->n_entries, 1, MAX_ENTRIES);
    for (int i = 0; i < row->n_entries; i++) {
        assert_int_equal(fscanf(file, "%d:%f", &row->ids[i], &row->logits[i]), 2);
    }
}

static void read_prompt(FILE *file, golden_prompt *prompt)
{
    assert_int_equal(fscanf(file, " prompt %31s %d", prompt->name, &prompt->n_tokens), 2);
    read_ids(file, prompt->n_tokens, prompt->tokens);
    assert_int_equal(fscanf(file, " greedy %d %f %*f", &prompt->n_greedy, &prompt->margin), 2);
    read_ids(file, prompt->n_greedy, prompt->greedy);
    assert_int_equal(fscanf(file, " rows %d", &prompt->n_rows), 1);
    assert_in_range(prompt->n_rows, 1, MAX_ROWS);
    for (int i = 0; i < prompt->n_rows; i++) {
        read_row(file, &prompt->rows[i]);
    }
}

static golden *read_golden(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/model/data/logits_golden_%s.txt", TKV_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    golden *result = calloc(1, sizeof *result);
    assert_non_null(result);
    while (fscanf(file, "#%*[^\n]\n") != EOF &&
           fscanf(file, "vocabulary %d prompts %d", &result->vocabulary_size, &result->n_prompts) !=
               2) {
    }
    assert_in_range(result->n_prompts, 1, MAX_PROMPTS);
    for (int i = 0; i < result->n_prompts; i++) {
        read_prompt(file, &result->prompts[i]);
    }
    fclose(file);
    return result;
}

/* ---- Models ------------------------------------------------------------------------------- */

static bool find_model(const char *name, char *path, size_t size)
{
    const char *folders[] = {TKV_SOURCE_DIR "/models", getenv("TKV_TEST_MODELS"),
                             TKV_SOURCE_DIR "/../shared/models"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (!folders[i]) {
            continue;
        }
        snprintf(path, size, "%s/%s.gguf", folders[i], name);
        FILE *file = fopen(path, "rb");
        if (file) {
            fclose(file);
            return true;
        }
    }
    return false;
}

/* Skips the running test if the model is not there. */
static loaded_model load(const char *name)
{
    char path[1024];
    if (!find_model(name, path, sizeof path)) {
        print_message("%s.gguf is not here: set TKV_TEST_MODELS to its folder\n", name);
        skip();
    }
    loaded_model loaded = {.golden = read_golden(name)};
    assert_ok(tkv_gguf_open(path, &loaded.gguf, &error));
    assert_ok(tkv_model_create(loaded.gguf, &loaded.model, &error));
    /* One thread: on a busy machine, threads that wait for each other take many times longer. */
    const tkv_context_params params = {.n_threads = 1, .device = test_device()};
    assert_ok(tkv_context_create(&params, &loaded.context, &error));
    assert_int_equal(tkv_model_get_config(loaded.model)->vocabulary_size,
                     loaded.golden->vocabulary_size);
    return loaded;
}

static void unload(loaded_model *loaded)
{
    tkv_context_free(loaded->context);
    tkv_model_free(loaded->model);
    tkv_gguf_close(loaded->gguf);
    free(loaded->golden);
}

static tkv_session *start(const loaded_model *loaded, tkv_type type)
{
    const tkv_session_params params = {
        .max_tokens = MAX_TOKENS, .n_batch = 128, .policy = {.type_k = type, .type_v = type}};
    tkv_session *session = NULL;
    assert_ok(tkv_session_create(loaded->model, loaded->context, &params, &session, &error));
    return session;
}

static void eval(tkv_session *session, const int32_t *tokens, int n_tokens, tkv_logits_mode mode,
                 float *logits)
{
    const tkv_eval_params params = {.logits_mode = mode, .logits = logits};
    assert_ok(tkv_session_eval(session, tokens, n_tokens, &params, &error));
}

/* ---- Checks ------------------------------------------------------------------------------- */

static void check_rows(const loaded_model *loaded, const golden_prompt *prompt)
{
    const size_t width = (size_t)loaded->golden->vocabulary_size;
    float *logits = malloc((size_t)prompt->n_tokens * width * sizeof *logits);
    assert_non_null(logits);
    tkv_session *session = start(loaded, TKV_TYPE_F16);
    eval(session, prompt->tokens, prompt->n_tokens, TKV_LOGITS_ALL, logits);
    float largest = 0.0f;
    for (int i = 0; i < prompt->n_rows; i++) {
        const golden_row *row = &prompt->rows[i];
        for (int j = 0; j < row->n_entries; j++) {
            const float found = logits[(size_t)row->position * width + (size_t)row->ids[j]];
            const float difference = found - row->logits[j];
            largest = difference > largest ? difference : largest;
            largest = -difference > largest ? -difference : largest;
            assert_float_equal(found, row->logits[j], LOGIT_TOLERANCE);
        }
    }
    print_message("%s: largest difference of a logit %.5f\n", prompt->name, (double)largest);
    tkv_session_free(session);
    free(logits);
}

static int32_t largest_of(const float *logits, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

static void check_greedy(const loaded_model *loaded, const golden_prompt *prompt, tkv_type type,
                         int n_tokens)
{
    const int vocabulary_size = loaded->golden->vocabulary_size;
    float *logits = malloc((size_t)vocabulary_size * sizeof *logits);
    assert_non_null(logits);
    tkv_session *session = start(loaded, type);
    eval(session, prompt->tokens, prompt->n_tokens, TKV_LOGITS_LAST, logits);
    for (int i = 0; i < n_tokens; i++) {
        const int32_t token = largest_of(logits, vocabulary_size);
        if (token != prompt->greedy[i]) {
            fail_msg("%s, generated token %d: expected %d, found %d", prompt->name, i,
                     (int)prompt->greedy[i], (int)token);
        }
        eval(session, &token, 1, TKV_LOGITS_LAST, logits);
    }
    tkv_session_free(session);
    free(logits);
}

static void test_logits(void **state)
{
    loaded_model loaded = load(*state);
    for (int i = 0; i < loaded.golden->n_prompts; i++) {
        check_rows(&loaded, &loaded.golden->prompts[i]);
    }
    unload(&loaded);
}

static void test_greedy_f16(void **state)
{
    loaded_model loaded = load(*state);
    for (int i = 0; i < loaded.golden->n_prompts; i++) {
        const golden_prompt *prompt = &loaded.golden->prompts[i];
        check_greedy(&loaded, prompt, TKV_TYPE_F16, prompt->n_greedy);
    }
    unload(&loaded);
}

static void test_greedy_turbo8(void **state)
{
    loaded_model loaded = load(*state);
    int n_checked = 0;
    for (int i = 0; i < loaded.golden->n_prompts; i++) {
        const golden_prompt *prompt = &loaded.golden->prompts[i];
        if (prompt->margin >= TURBO8_MARGIN) {
            check_greedy(&loaded, prompt, TKV_TYPE_TURBO8, TURBO8_TOKENS);
            n_checked++;
        }
    }
    assert_true(n_checked >= 2);
    unload(&loaded);
}

#define MODEL_TESTS(name)                                                                          \
    {"logits " name, test_logits, NULL, NULL, name},                                               \
        {"greedy, f16 KV " name, test_greedy_f16, NULL, NULL, name},                               \
    {                                                                                              \
        "greedy, turbo8 KV " name, test_greedy_turbo8, NULL, NULL, name                            \
    }

int main(void)
{
    if (test_device_is_missing()) {
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        MODEL_TESTS("tiny-q8_0"),
        MODEL_TESTS("tiny-f16"),
        MODEL_TESTS("small-q8_0"),
    };
    return cmocka_run_group_tests_name("logits_golden", tests, NULL, NULL);
}
