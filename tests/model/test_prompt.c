/* From a file's metadata to a prompt's tokens: end set, begin token, special tokens, chat forms. */
#include "support/support.h"

#include <unistd.h>

#include "model/prompt.h"
#include "model/toy_vocabulary.h"

enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4 };

#define DEEPSEEK_END                                                                               \
    "<\xef\xbd\x9c"                                                                                \
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"

/* Ends of generation of llama.cpp 0.7.0, as its llama-tokenize --verbose lists them, and the last
 * row, which its files name by a key. */
static const char *const ends[] = {"<|eot_id|>",
                                   "<|eom_id|>",
                                   "<|im_end|>",
                                   "<|end|>",
                                   "<|return|>",
                                   "<|call|>",
                                   "<|calls|>",
                                   "<|flush|>",
                                   "<|endoftext|>",
                                   "<|end_of_text|>",
                                   "<end_of_turn>",
                                   "<turn|>",
                                   "<eos>",
                                   "</s>",
                                   "<EOT>",
                                   "_<EOT>",
                                   "[EOT]",
                                   "[EOS]",
                                   "<end_of_utterance>",
                                   "<|tool_response>",
                                   "[e~[",
                                   DEEPSEEK_END,
                                   "<|fim_pad|>",
                                   "<PAD>",
                                   "[PAD]",
                                   "<|fim_repo|>",
                                   "<|repo_name|>",
                                   "<reponame>",
                                   "<|file_sep|>",
                                   "<|end_of_turn|>",
                                   "<|eot|>",
                                   "<|endofturn|>"};
enum { N_ENDS = sizeof ends / sizeof *ends };

/* A file with this vocabulary and metadata, and its tokenizer. */
typedef struct fixture {
    toy_vocabulary vocabulary;
    toy_model model;
    tkv_gguf *gguf;
    tkv_tokenizer *tokenizer;
} fixture;

static void set_up(fixture *f)
{
    const toy_shape shape = {.architecture = "llama",
                             .n_layers = 0,
                             .embedding_length = 4,
                             .vocabulary_size = 1,
                             .n_heads = 1,
                             .n_kv_heads = 1};
    toy_model_init(&f->model, &shape, 1);
    toy_vocabulary_init(&f->vocabulary);
}

static void set_integer(fixture *f, const char *name, int64_t value)
{
    toy_metadata metadata = {.kind = TOY_INTEGER, .integer = value};
    snprintf(metadata.key, sizeof metadata.key, "tokenizer.%s", name);
    toy_model_set(&f->model, &metadata);
}

static void set_text(fixture *f, const char *name, const char *value)
{
    toy_metadata metadata = {.kind = TOY_TEXT, .text = value};
    snprintf(metadata.key, sizeof metadata.key, "tokenizer.%s", name);
    toy_model_set(&f->model, &metadata);
}

/* Writes the file and reads it. */
static tkv_status load(fixture *f, tkv_error *reason)
{
    char path[] = "/tmp/tkv_test_prompt_XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    toy_model_write(&f->model, path);
    assert_ok(tkv_gguf_open(path, &f->gguf, &error));
    unlink(path);
    return tkv_tokenizer_from_gguf(f->gguf, &f->tokenizer, reason);
}

static void unload(fixture *f)
{
    tkv_tokenizer_free(f->tokenizer);
    tkv_gguf_close(f->gguf);
    f->tokenizer = NULL;
    f->gguf = NULL;
}

static void tear_down(fixture *f)
{
    unload(f);
    toy_model_clear(&f->model);
}

/* A file that names these tokens, of one type. */
static void load_named(fixture *f, const char *const *names, int n, int32_t kind)
{
    set_up(f);
    for (int i = 0; i < n; i++) {
        toy_vocabulary_add(&f->vocabulary, names[i], kind);
    }
    toy_vocabulary_set(&f->vocabulary, &f->model);
    assert_ok(load(f, &error));
}

static void expect_tokens(const fixture *f, const char *text, const int32_t *ids, size_t n)
{
    tkv_tokens tokens = {0};
    assert_ok(tkv_prompt_encode(f->tokenizer, text, strlen(text), &tokens, &error));
    assert_int_equal(tokens.n, n);
    assert_memory_equal(tokens.ids, ids, n * sizeof *ids);
    tkv_tokens_free(&tokens);
}

static void names_end_a_text_whatever_their_type(void **state)
{
    (void)state;
    const int32_t kinds[] = {NORMAL, CONTROL, USER_DEFINED};
    for (int i = 0; i < N_ENDS; i++) {
        for (int k = 0; k < 3; k++) {
            fixture f = {.gguf = NULL};
            load_named(&f, &ends[i], 1, kinds[k]);
            if (!tkv_tokenizer_is_end(f.tokenizer, TOY_BYTES)) {
                fail_msg("%s of type %d does not end a text", ends[i], (int)kinds[k]);
            }
            for (int32_t byte = 0; byte < TOY_BYTES; byte++) {
                assert_false(tkv_tokenizer_is_end(f.tokenizer, byte));
            }
            expect_tokens(&f, ends[i], (const int32_t[]){TOY_BYTES}, 1);
            tear_down(&f);
        }
    }
}

static void other_names_end_none(void **state)
{
    (void)state;
    const char *const names[] = {"[/INST]", "<|im_start|>", "<s>", "<think>", "<|im_end|", "<unk>"};
    enum { N = sizeof names / sizeof *names };
    fixture f = {.gguf = NULL};
    load_named(&f, names, N, CONTROL);
    for (int32_t id = 0; id < TOY_BYTES + N; id++) {
        assert_false(tkv_tokenizer_is_end(f.tokenizer, id));
    }
    assert_false(tkv_tokenizer_is_end(f.tokenizer, -1));
    tear_down(&f);
}

static void keys_end_a_text(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool is_end;
    } keys[] = {{"ggml.eos_token_id", true},      {"ggml.eot_token_id", true},
                {"ggml.eom_token_id", true},      {"ggml.fim_pad_token_id", true},
                {"ggml.fim_rep_token_id", true},  {"ggml.fim_sep_token_id", true},
                {"ggml.fim_pre_token_id", false}, {"ggml.padding_token_id", false},
                {"ggml.bos_token_id", false},     {"ggml.unknown_token_id", false}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        fixture f = {.gguf = NULL};
        set_up(&f);
        const int32_t id = toy_vocabulary_add(&f.vocabulary, "<|x|>", CONTROL);
        const int32_t end = toy_vocabulary_add(&f.vocabulary, "<|im_end|>", CONTROL);
        toy_vocabulary_set(&f.vocabulary, &f.model);
        set_integer(&f, keys[i].key, id);
        assert_ok(load(&f, &error));
        assert_int_equal(tkv_tokenizer_is_end(f.tokenizer, id), keys[i].is_end);
        assert_true(tkv_tokenizer_is_end(f.tokenizer, end));
        tear_down(&f);
    }
}

/* Where others end the text, "<|end|>" ends a part of a message and "</s>" is markup. */
static void some_names_depend_on_others(void **state)
{
    (void)state;
    static const struct {
        const char *names[3];
        bool ends_text; /* the last of them */
    } cases[] = {{{"<|return|>", "<|call|>", "<|end|>"}, false},
                 {{"<|flush|>", "<|calls|>", "<|end|>"}, false},
                 {{"<|flush|>", "<|return|>", "<|end|>"}, true},
                 {{"<|im_end|>", "<|call|>", "<|end|>"}, true},
                 {{"<turn|>", "<|tool_response>", "</s>"}, false},
                 {{"<turn|>", "<eos>", "</s>"}, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f = {.gguf = NULL};
        load_named(&f, cases[i].names, 3, CONTROL);
        assert_true(tkv_tokenizer_is_end(f.tokenizer, TOY_BYTES));
        assert_int_equal(tkv_tokenizer_is_end(f.tokenizer, TOY_BYTES + 2), cases[i].ends_text);
        tear_down(&f);
    }
}

/* Without parse_special only user-defined tokens are found in text. */
static void names_in_text_are_tokens(void **state)
{
    (void)state;
    const int32_t kinds[] = {CONTROL, USER_DEFINED};
    const char *const names[] = {"<|im_start|>", "<|im_end|>", "<|im"};
    const char text[] = "<|im_start|>a<|im_end|>\n<|imx";
    const int32_t expected[] = {TOY_BYTES, 'a', TOY_BYTES + 1, '\n', TOY_BYTES + 2, 'x'};
    for (int k = 0; k < 2; k++) {
        fixture f = {.gguf = NULL};
        load_named(&f, names, 3, kinds[k]);
        expect_tokens(&f, text, expected, 6);
        tkv_tokens tokens = {0};
        assert_ok(tkv_tokenizer_encode(f.tokenizer, "<|im_start|>", 12, false, &tokens, &error));
        assert_int_equal(tokens.n, kinds[k] == CONTROL ? 12 : 1);
        tkv_tokens_free(&tokens);
        assert_int_equal(tkv_tokenizer_find_special(f.tokenizer, "<|im"), TOY_BYTES + 2);
        assert_int_equal(tkv_tokenizer_find_special(f.tokenizer, "<|imx"), -1);
        assert_int_equal(tkv_tokenizer_find_special(f.tokenizer, "a"), -1);
        tear_down(&f);
    }
}

static void files_say_whether_a_text_has_a_begin(void **state)
{
    (void)state;
    static const struct {
        const char *pre;
        int flag; /* -1: the file does not say */
        bool begins;
    } cases[] = {{"qwen2", -1, false},  {"qwen2", 1, true},      {"llama-bpe", -1, true},
                 {"llama3", -1, true},  {"llama-bpe", 0, false}, {"tekken", -1, true},
                 {"default", -1, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f = {.gguf = NULL};
        set_up(&f);
        const int32_t begin = toy_vocabulary_add(&f.vocabulary, "<s>", CONTROL);
        toy_vocabulary_set(&f.vocabulary, &f.model);
        set_text(&f, "ggml.pre", cases[i].pre);
        set_integer(&f, "ggml.bos_token_id", begin);
        if (cases[i].flag >= 0) {
            set_integer(&f, "ggml.add_bos_token", cases[i].flag);
        }
        assert_ok(load(&f, &error));
        assert_null(tkv_tokenizer_warning(f.tokenizer, 0));
        assert_int_equal(tkv_tokenizer_begin(f.tokenizer), cases[i].begins ? begin : -1);
        const int32_t expected[] = {begin, 'h', 'i'};
        expect_tokens(&f, "hi", cases[i].begins ? expected : expected + 1, cases[i].begins ? 3 : 2);
        expect_tokens(&f, "", expected, cases[i].begins);
        tear_down(&f);
    }
}

static void a_second_begin_is_noticed(void **state)
{
    (void)state;
    fixture f = {.gguf = NULL};
    set_up(&f);
    const int32_t begin = toy_vocabulary_add(&f.vocabulary, "<s>", CONTROL);
    toy_vocabulary_set(&f.vocabulary, &f.model);
    set_integer(&f, "ggml.bos_token_id", begin);
    for (int wants = 0; wants < 2; wants++) {
        set_integer(&f, "ggml.add_bos_token", wants);
        assert_ok(load(&f, &error));
        const char *const texts[] = {"<s>hi", "hi<s>", "<s>"};
        for (int i = 0; i < 3; i++) {
            tkv_tokens tokens = {0};
            assert_ok(tkv_prompt_encode(f.tokenizer, texts[i], strlen(texts[i]), &tokens, &error));
            assert_int_equal(tkv_prompt_begins_twice(f.tokenizer, &tokens), wants && i != 1);
            assert_int_equal(tokens.n, (i == 2 ? 1 : 3) + wants);
            tkv_tokens_free(&tokens);
        }
        unload(&f);
    }
    tear_down(&f);
}

static void ids_beyond_the_vocabulary_are_warned_of(void **state)
{
    (void)state;
    const int64_t ids[] = {TOY_BYTES + 1, 4294967295, INT64_MAX, -2};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        fixture f = {.gguf = NULL};
        set_up(&f);
        const int32_t end = toy_vocabulary_add(&f.vocabulary, "<|im_end|>", CONTROL);
        toy_vocabulary_set(&f.vocabulary, &f.model);
        set_integer(&f, "ggml.bos_token_id", ids[i]);
        set_integer(&f, "ggml.eos_token_id", ids[i]);
        set_integer(&f, "ggml.unknown_token_id", ids[i]);
        set_integer(&f, "ggml.add_bos_token", 1);
        assert_ok(load(&f, &error));
        const char *const parts[] = {"bos_token_id is ", "names no begin token", "eos_token_id is ",
                                     "unknown_token_id is "};
        for (int w = 0; w < 4; w++) {
            const char *warning = tkv_tokenizer_warning(f.tokenizer, w);
            assert_non_null(warning);
            assert_non_null(strstr(warning, parts[w]));
        }
        assert_null(tkv_tokenizer_warning(f.tokenizer, 4));
        assert_int_equal(tkv_tokenizer_begin(f.tokenizer), -1);
        assert_true(tkv_tokenizer_is_end(f.tokenizer, end));
        tear_down(&f);
    }
}

static void a_missing_pre_tokenizer_is_warned_of(void **state)
{
    (void)state;
    fixture f = {.gguf = NULL};
    set_up(&f);
    toy_vocabulary_set(&f.vocabulary, &f.model);
    toy_model_remove_key(&f.model, "tokenizer.ggml.pre");
    assert_ok(load(&f, &error));
    assert_non_null(strstr(tkv_tokenizer_warning(f.tokenizer, 0), "tokenizer.ggml.pre is missing"));
    unload(&f);
    set_text(&f, "ggml.pre", "default");
    assert_ok(load(&f, &error));
    assert_null(tkv_tokenizer_warning(f.tokenizer, 0));
    unload(&f);
    set_text(&f, "ggml.pre", "unheard-of");
    assert_fails(load(&f, &error), TKV_ERR_UNSUPPORTED, "tokenizer.ggml.pre is 'unheard-of'");
    tear_down(&f);
}

/* The form of a file with this template (NULL: none) and these tokens, or -1. */
static int find_form(const char *template, const char *const *names, int n)
{
    fixture f = {.gguf = NULL};
    set_up(&f);
    for (int i = 0; i < n; i++) {
        toy_vocabulary_add(&f.vocabulary, names[i], i % 2 ? USER_DEFINED : CONTROL);
    }
    toy_vocabulary_set(&f.vocabulary, &f.model);
    if (template) {
        set_text(&f, "chat_template", template);
    }
    tkv_chat_form form = TKV_CHAT_CHATML;
    assert_ok(load(&f, &error));
    tkv_error reason;
    const tkv_status status = tkv_chat_find(f.gguf, f.tokenizer, &form, &reason);
    tear_down(&f);
    if (status != TKV_OK) {
        assert_int_equal(status, TKV_ERR_UNSUPPORTED);
        assert_non_null(strstr(reason.message, "<|im_start|>"));
        assert_non_null(strstr(reason.message, "<start_of_turn>"));
        return -1;
    }
    return (int)form;
}

static void chat_forms_are_recognised(void **state)
{
    (void)state;
    const char *const chatml[] = {"<|im_start|>", "<|im_end|>"};
    const char *const gemma[] = {"<start_of_turn>", "<end_of_turn>"};
    const char *const both[] = {"<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"};
    assert_int_equal(find_form(NULL, chatml, 2), TKV_CHAT_CHATML);
    assert_int_equal(find_form(NULL, gemma, 2), TKV_CHAT_GEMMA);
    assert_int_equal(find_form("{{'<|im_start|>' + role}}", both, 4), TKV_CHAT_CHATML);
    assert_int_equal(find_form("{{'<start_of_turn>' + role}}", both, 4), TKV_CHAT_GEMMA);
    assert_int_equal(find_form("{{'<|im_start|>' + role}}", gemma, 2), -1);
    assert_int_equal(find_form("{{'<|im_start|>' + '<|im_sep|>'}}", chatml, 2), -1);
    assert_int_equal(find_form("{{'[INST]'}}", both, 4), -1);
    assert_int_equal(find_form(NULL, chatml, 1), -1);
    assert_int_equal(find_form(NULL, NULL, 0), -1);
}

static void chats_are_written_in_their_form(void **state)
{
    (void)state;
    static const struct {
        tkv_chat_form form;
        const char *system;
        const char *user;
        const char *chat;
    } cases[] = {{TKV_CHAT_CHATML, NULL, "Hi\n",
                  "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n"},
                 {TKV_CHAT_CHATML, "Be brief.", "Hi",
                  "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                  "<|im_start|>assistant\n"},
                 {TKV_CHAT_GEMMA, NULL, "\n Hi\n",
                  "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"},
                 {TKV_CHAT_GEMMA, "Be brief. ", "Hi",
                  "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *chat = NULL;
        size_t length = 0;
        assert_ok(tkv_chat_write(cases[i].form, cases[i].system, cases[i].user,
                                 strlen(cases[i].user), &chat, &length, &error));
        assert_string_equal(chat, cases[i].chat);
        assert_int_equal(length, strlen(chat));
        free(chat);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_end_a_text_whatever_their_type),
                                       cmocka_unit_test(other_names_end_none),
                                       cmocka_unit_test(keys_end_a_text),
                                       cmocka_unit_test(some_names_depend_on_others),
                                       cmocka_unit_test(names_in_text_are_tokens),
                                       cmocka_unit_test(files_say_whether_a_text_has_a_begin),
                                       cmocka_unit_test(a_second_begin_is_noticed),
                                       cmocka_unit_test(ids_beyond_the_vocabulary_are_warned_of),
                                       cmocka_unit_test(a_missing_pre_tokenizer_is_warned_of),
                                       cmocka_unit_test(chat_forms_are_recognised),
                                       cmocka_unit_test(chats_are_written_in_their_form)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
