/* Every allocation of loading a model, its tokenizer and running it fails once; each failure must
 * be reported, leak nothing and leave the session as it was. The linker routes the allocation
 * functions of the code under test through this file (--wrap). */
#include "support/support.h"

#include <unistd.h>

#include "model/gguf.h"
#include "model/session.h"
#include "model/tokenizer.h"
#include "model/toy_model.h"

#define MAX_ALLOCATIONS 10000

/* Allocations until one fails; negative: none does. */
static int countdown = -1;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static bool must_fail(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *__wrap_malloc(size_t size)
{
    return must_fail() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return must_fail() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return must_fail() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return must_fail() ? NULL : __real_aligned_alloc(alignment, size);
}

typedef struct fixture {
    toy_model toy;
    char path[64];
    tkv_context *context;
} fixture;

static int setup(void **state)
{
    static const toy_shape shape = {.architecture = "qwen2",
                                    .n_layers = 2,
                                    .embedding_length = 64,
                                    .feed_forward_length = 96,
                                    .n_heads = 4,
                                    .n_kv_heads = 2,
                                    .head_dim_k = 32,
                                    .head_dim_v = 32,
                                    .vocabulary_size = 50,
                                    .rope_dim = 32,
                                    .rope_freq_base = 10000.0f,
                                    .has_biases = true,
                                    .has_rope_factors = true};
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    toy_model_init(&f->toy, &shape, 3);
    snprintf(f->path, sizeof f->path, "/tmp/tkv_test_memory_XXXXXX");
    const int file = mkstemp(f->path);
    assert_true(file >= 0);
    close(file);
    toy_model_write(&f->toy, f->path);
    assert_int_equal(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &f->context, NULL),
                     TKV_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    tkv_context_free(f->context);
    unlink(f->path);
    toy_model_clear(&f->toy);
    free(f);
    return 0;
}

/* Runs step with the first, the second, ... allocation failing, until none is left to fail.
 * Returns how many failed. */
static int fail_each(tkv_status (*step)(void *user, tkv_error *error), void *user)
{
    for (int n = 0; n < MAX_ALLOCATIONS; n++) {
        tkv_error error = {0};
        countdown = n;
        const tkv_status status = step(user, &error);
        const bool has_failed = countdown < 0;
        countdown = -1;
        if (!has_failed) {
            assert_int_equal(status, TKV_OK);
            return n;
        }
        if (status != TKV_ERR_OUT_OF_MEMORY) {
            fail_msg("allocation %d failed, which gave '%s' %s", n, tkv_status_name(status),
                     error.message);
        }
    }
    fail_msg("still failing after %d allocations", MAX_ALLOCATIONS);
    return 0;
}

static tkv_status load_step(void *user, tkv_error *error)
{
    const fixture *f = user;
    tkv_gguf *gguf = NULL;
    tkv_model *model = NULL;
    tkv_status status = tkv_gguf_open(f->path, &gguf, error);
    if (status == TKV_OK) {
        status = tkv_model_create(gguf, &model, error);
    }
    tkv_model_free(model);
    tkv_gguf_close(gguf);
    return status;
}

static void test_load(void **state)
{
    const int n = fail_each(load_step, *state);
    print_message("%d allocations\n", n);
    assert_true(n > 20);
}

typedef struct running {
    const fixture *fixture;
    tkv_model *model;
    tkv_session *session;
} running;

static tkv_status create_step(void *user, tkv_error *error)
{
    const running *r = user;
    tkv_session *session = NULL;
    const tkv_status status = tkv_session_create(
        r->model, r->fixture->context, &(tkv_session_params){.max_tokens = 300, .n_batch = 16},
        &session, error);
    tkv_session_free(session);
    return status;
}

static tkv_status eval_step(void *user, tkv_error *error)
{
    static const int32_t tokens[70] = {1, 2, 3};
    running *r = user;
    const tkv_eval_params params = {.logits_mode = TKV_LOGITS_NONE};
    const int before = tkv_session_length(r->session);
    const tkv_status status = tkv_session_eval(r->session, tokens, 70, &params, error);
    if (status != TKV_OK) {
        assert_int_equal(tkv_session_length(r->session), before);
        for (int layer = 0; layer < 2; layer++) {
            assert_int_equal(tkv_cache_length(tkv_session_cache(r->session), layer), before);
        }
    }
    return status;
}

static void test_session(void **state)
{
    running r = {.fixture = *state};
    tkv_gguf *gguf = NULL;
    assert_int_equal(tkv_gguf_open(r.fixture->path, &gguf, NULL), TKV_OK);
    assert_int_equal(tkv_model_create(gguf, &r.model, NULL), TKV_OK);
    const int n_create = fail_each(create_step, &r);
    assert_true(n_create >= 4);
    const tkv_session_params params = {.max_tokens = 300, .n_batch = 16};
    assert_int_equal(tkv_session_create(r.model, r.fixture->context, &params, &r.session, NULL),
                     TKV_OK);
    const int n_eval = fail_each(eval_step, &r);
    print_message("%d allocations of a session, %d of an evaluation\n", n_create, n_eval);
    assert_true(n_eval >= 4);
    tkv_session_free(r.session);
    tkv_model_free(r.model);
    tkv_gguf_close(gguf);
}

static tkv_status open_step(void *user, tkv_error *error)
{
    tkv_tokenizer *tokenizer = NULL;
    const tkv_status status = tkv_tokenizer_from_gguf(user, &tokenizer, error);
    if (status != TKV_OK) {
        assert_null(tokenizer);
    }
    tkv_tokenizer_free(tokenizer);
    return status;
}

typedef struct encoding {
    const tkv_tokenizer *tokenizer;
    char text[1300];
    tkv_tokens tokens;
} encoding;

static tkv_status encode_step(void *user, tkv_error *error)
{
    encoding *e = user;
    const size_t before = e->tokens.n;
    const tkv_status status =
        tkv_tokenizer_encode(e->tokenizer, e->text, strlen(e->text), true, &e->tokens, error);
    assert_true(status == TKV_OK ? e->tokens.n > before : e->tokens.n == before);
    return status;
}

/* Its tables of tokens and merges, which grow while they are filled, among them. */
static void test_tokenizer(void **state)
{
    (void)state;
    tkv_gguf *gguf = NULL;
    tkv_tokenizer *tokenizer = NULL;
    encoding e = {.text = ""};
    assert_int_equal(tkv_gguf_open(TKV_SOURCE_DIR "/models/tiny-q8_0.gguf", &gguf, NULL), TKV_OK);
    const int n_open = fail_each(open_step, gguf);
    assert_int_equal(tkv_tokenizer_from_gguf(gguf, &tokenizer, NULL), TKV_OK);
    e.tokenizer = tokenizer;
    while (strlen(e.text) + 12 < sizeof e.text) {
        strcat(e.text, "An old tale ");
    }
    const int n_encode = fail_each(encode_step, &e);
    print_message("%d allocations of a tokenizer, %d of a text\n", n_open, n_encode);
    assert_true(n_open >= 12 && n_encode >= 3);
    tkv_tokens_free(&e.tokens);
    tkv_tokenizer_free(tokenizer);
    tkv_gguf_close(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_session, setup, teardown),
        cmocka_unit_test(test_tokenizer),
    };
    return cmocka_run_group_tests_name("out_of_memory", tests, NULL, NULL);
}
