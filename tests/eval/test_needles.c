/* The needle test on the shipped model. */
#include "eval/needles.h"
#include "support/support.h"

typedef struct fixture {
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_tokenizer *tokenizer;
    tkv_context *context;
    tkv_tokens filler;
} fixture;

static const char paragraph[] =
    "In the year of the great flood a stranger stayed at the inn for eleven days. He paid in "
    "silver and asked for nothing but paper. On the last morning he was seen upon the hill with a "
    "small brass instrument, measuring the valley from one end to the other.\n";

static const tkv_policy exact = {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16};

static int set_up(void **state)
{
    fixture *f = allocate(sizeof *f);
    assert_ok(tkv_gguf_open(TKV_SOURCE_DIR "/models/tiny-q8_0.gguf", &f->gguf, &error));
    assert_ok(tkv_model_create(f->gguf, &f->model, &error));
    assert_ok(tkv_tokenizer_from_gguf(f->gguf, &f->tokenizer, &error));
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &f->context, &error));
    for (int i = 0; i < 20; i++) {
        assert_ok(tkv_tokenizer_encode(f->tokenizer, paragraph, strlen(paragraph), false,
                                       &f->filler, &error));
    }
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    tkv_tokens_free(&f->filler);
    tkv_context_free(f->context);
    tkv_tokenizer_free(f->tokenizer);
    tkv_model_free(f->model);
    tkv_gguf_close(f->gguf);
    free(f);
    return 0;
}

static tkv_needles_params prompt_of(const fixture *f, int length, int n_facts, uint64_t seed)
{
    return (tkv_needles_params){.filler = f->filler.ids,
                                .n_filler = f->filler.n,
                                .length = length,
                                .n_facts = n_facts,
                                .seed = seed};
}

static int count_found(const fixture *f, const tkv_policy *policy, int n_prompts)
{
    int n_found = 0;
    for (int i = 0; i < n_prompts; i++) {
        const tkv_needles_params params = prompt_of(f, 700, 4, 100 + (uint64_t)i);
        tkv_needles_result result;
        assert_ok(
            tkv_needles_ask(f->model, f->tokenizer, f->context, &params, policy, &result, &error));
        assert_true(result.kv_bytes > 0 && result.n_cached > 600 && result.seconds > 0.0);
        for (int k = 0; k < params.n_facts; k++) {
            n_found += result.is_found[k];
        }
    }
    return n_found;
}

/* With exact keys and values the model answers nearly all, with the coarsest ones hardly any. */
static void exact_caches_find_and_ruined_ones_do_not(void **state)
{
    const fixture *f = *state;
    const tkv_policy coarse = {.type_k = TKV_TYPE_TURBO2, .type_v = TKV_TYPE_TURBO2};
    const int n_exact = count_found(f, &exact, 4);
    const int n_coarse = count_found(f, &coarse, 4);
    print_message("of 16 facts f16 finds %d, turbo2 without exact tokens %d\n", n_exact, n_coarse);
    assert_true(n_exact >= 12);
    assert_true(n_coarse <= 4);
}

static void one_fact_lies_in_the_middle(void **state)
{
    (void)state;
    assert_float_equal(tkv_needles_depth(1, 0), 0.5, 0.0);
    assert_float_equal(tkv_needles_depth(5, 0), 0.0, 0.0);
    assert_float_equal(tkv_needles_depth(5, 1), 0.25, 0.0);
    assert_float_equal(tkv_needles_depth(5, 4), 1.0, 0.0);
}

static void the_seed_decides(void **state)
{
    const fixture *f = *state;
    const tkv_needles_params params = prompt_of(f, 300, 2, 5);
    tkv_needles_result first, second;
    assert_ok(tkv_needles_ask(f->model, f->tokenizer, f->context, &params, &exact, &first, &error));
    assert_ok(
        tkv_needles_ask(f->model, f->tokenizer, f->context, &params, &exact, &second, &error));
    assert_memory_equal(first.is_found, second.is_found, sizeof first.is_found);
    assert_int_equal(first.kv_bytes, second.kv_bytes);
}

static void impossible_prompts_are_errors(void **state)
{
    const fixture *f = *state;
    tkv_needles_result result;
    const struct {
        int length;
        int n_facts;
        const char *message;
    } wrong[] = {
        {300, 0, "300 tokens with 0 facts: expected at least 1 token and 1 to 32 facts"},
        {300, 33, "1 to 32 facts"},
        {0, 1, "a prompt of 0 tokens"},
        {50, 4, "the facts and a question alone are"},
        {100000, 4, "a prompt of 100000 needs"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const tkv_needles_params params = prompt_of(f, wrong[i].length, wrong[i].n_facts, 1);
        assert_fails(
            tkv_needles_ask(f->model, f->tokenizer, f->context, &params, &exact, &result, &error),
            TKV_ERR_INVALID_ARGUMENT, wrong[i].message);
    }
    const tkv_needles_params params = prompt_of(f, 300, 2, 1);
    const tkv_policy impossible = {.n_sinks = 1000};
    assert_fails(
        tkv_needles_ask(f->model, f->tokenizer, f->context, &params, &impossible, &result, &error),
        TKV_ERR_INVALID_ARGUMENT, "1000 sinks");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_caches_find_and_ruined_ones_do_not),
        cmocka_unit_test(one_fact_lies_in_the_middle),
        cmocka_unit_test(the_seed_decides),
        cmocka_unit_test(impossible_prompts_are_errors),
    };
    return cmocka_run_group_tests_name("needles", tests, set_up, tear_down);
}
