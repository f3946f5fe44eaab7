/* What the commands make of a prompt, on toy models that say in several ways how a text begins and
 * ends. */
#include "process.h"

#include <unistd.h>

#include "model/toy_vocabulary.h"

enum { CONTROL = 3, N_PREDICT = 8 };

static const toy_shape shape = {.architecture = "llama",
                                .n_layers = 1,
                                .embedding_length = 64,
                                .feed_forward_length = 64,
                                .n_heads = 2,
                                .n_kv_heads = 1,
                                .head_dim_k = 32,
                                .head_dim_v = 32,
                                .vocabulary_size = TOY_BYTES + 4,
                                .rope_dim = 32,
                                .rope_freq_base = 10000.0f,
                                .has_output = true};

/* A file with the bytes and four named tokens. */
typedef struct fixture {
    toy_model model;
    toy_vocabulary vocabulary;
    char path[32];
} fixture;

static void set_up(fixture *f, const char *const names[4])
{
    strcpy(f->path, "/tmp/tkv_test_cli_XXXXXX");
    const int file = mkstemp(f->path);
    assert_true(file >= 0);
    close(file);
    toy_model_init(&f->model, &shape, 5);
    toy_vocabulary_init(&f->vocabulary);
    for (int i = 0; i < 4; i++) {
        toy_vocabulary_add(&f->vocabulary, names[i], CONTROL);
    }
}

static void tear_down(fixture *f)
{
    unlink(f->path);
    toy_model_clear(&f->model);
}

static void set_integer(fixture *f, const char *name, int64_t value)
{
    toy_metadata metadata = {.kind = TOY_INTEGER, .integer = value};
    snprintf(metadata.key, sizeof metadata.key, "tokenizer.ggml.%s", name);
    toy_model_set(&f->model, &metadata);
}

static void write_file(fixture *f)
{
    toy_vocabulary_set(&f->vocabulary, &f->model);
    toy_model_write(&f->model, f->path);
}

static cJSON *generate(const fixture *f, const char *prompt)
{
    return run_json((const char *const[]){"run", "-m", f->path, "-p", prompt, "-n", "8", "--temp",
                                          "0", "-t", "1", "--json", NULL});
}

static int count_tokens(cJSON *json)
{
    const int n = cJSON_GetArraySize(cJSON_GetObjectItem(json, "tokens"));
    cJSON_Delete(json);
    return n;
}

static const char *const plain[] = {"<|a|>", "<|b|>", "<|c|>", "<|d|>"};

/* The third token that the model generates is made an end of text, by a key or by a name. */
static void keys_and_names_end_the_text(void **state)
{
    (void)state;
    fixture f;
    set_up(&f, plain);
    write_file(&f);
    cJSON *json = generate(&f, "Once");
    const cJSON *tokens = cJSON_GetObjectItem(json, "tokens");
    assert_int_equal(cJSON_GetArraySize(tokens), N_PREDICT);
    const int32_t end = (int32_t)cJSON_GetArrayItem(tokens, 2)->valueint;
    int first = 0;
    while (cJSON_GetArrayItem(tokens, first)->valueint != end) {
        first++;
    }
    cJSON_Delete(json);
    const char *const keys[] = {"eos_token_id", "eot_token_id", "eom_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        fixture by_key;
        set_up(&by_key, plain);
        set_integer(&by_key, keys[i], end);
        write_file(&by_key);
        assert_int_equal(count_tokens(generate(&by_key, "Once")), first);
        tear_down(&by_key);
    }
    const char *const names[] = {"<|im_end|>", "<end_of_turn>", "<|eom_id|>", "</s>", "[/INST]"};
    for (int kind = 1; kind <= 4; kind++) {
        for (int i = 0; i < 5 && kind != 2; i++) {
            fixture by_name;
            set_up(&by_name, plain);
            by_name.vocabulary.tokens[end] = names[i];
            by_name.vocabulary.kinds[end] = kind;
            write_file(&by_name);
            assert_int_equal(count_tokens(generate(&by_name, "Once")), i == 4 ? N_PREDICT : first);
            tear_down(&by_name);
        }
    }
    tear_down(&f);
}

static void a_second_begin_is_warned_of(void **state)
{
    (void)state;
    fixture f;
    set_up(&f, plain);
    set_integer(&f, "bos_token_id", TOY_BYTES);
    set_integer(&f, "add_bos_token", 1);
    write_file(&f);
    assert_outcome(run("run", "-m", f.path, "-p", "<|a|>x", "-n", "1", "--temp", "0"), 0, "",
                   "warning: the prompt begins with <|a|>");
    outcome o = run("run", "-m", f.path, "-p", "x<|a|>", "-n", "1", "--temp", "0");
    assert_int_equal(o.status, 0);
    assert_null(strstr(o.err, "warning"));
    done(&o);
    cJSON *json = generate(&f, "<|a|>x");
    assert_int_equal(number_of(json, "prompt_tokens"), 3);
    cJSON_Delete(json);
    tear_down(&f);
}

static void wrong_ids_are_warned_of(void **state)
{
    (void)state;
    fixture f;
    set_up(&f, plain);
    set_integer(&f, "eos_token_id", 99999);
    write_file(&f);
    assert_outcome(run("run", "-m", f.path, "-p", "x", "-n", "1", "--temp", "0"), 0, "",
                   "warning: tokenizer.ggml.eos_token_id is 99999");
    tear_down(&f);
}

static double perplexity(const fixture *f)
{
    cJSON *json = run_json((const char *const[]){
        "eval", "-m", f->path, "-f", TKV_SOURCE_DIR "/README.md", "--bytes", "2000", "-c", "64",
        "--chunks", "4", "-P", "turbo8", "-t", "1", "--json", NULL});
    const double found =
        number_of(cJSON_GetArrayItem(cJSON_GetObjectItem(json, "policies"), 0), "perplexity_f16");
    cJSON_Delete(json);
    return found;
}

static void chunks_of_eval_begin_as_the_model_wants(void **state)
{
    (void)state;
    double found[2];
    for (int wants = 0; wants < 2; wants++) {
        fixture f;
        set_up(&f, plain);
        set_integer(&f, "bos_token_id", TOY_BYTES);
        set_integer(&f, "add_bos_token", wants);
        write_file(&f);
        found[wants] = perplexity(&f);
        tear_down(&f);
    }
    assert_true(found[0] > 1.0 && found[1] > 1.0);
    assert_true(found[0] != found[1]);
}

static void chats_have_a_form(void **state)
{
    (void)state;
    const char *const chatml[] = {"<|im_start|>", "<|im_end|>", "<|c|>", "<|d|>"};
    const char *const gemma[] = {"<start_of_turn>", "<end_of_turn>", "<|c|>", "<|d|>"};
    static const struct {
        const char *system;
        int chatml; /* tokens: three turns' marks and the bytes between them */
        int gemma;
    } cases[] = {{NULL, 3 + 5 + 2 + 1 + 10, 3 + 5 + 2 + 1 + 6},
                 {"abc", 5 + 7 + 3 + 1 + 5 + 2 + 1 + 10, 3 + 5 + 3 + 2 + 2 + 1 + 6}};
    for (int i = 0; i < 4; i++) {
        const char *system = cases[i / 2].system;
        fixture f;
        set_up(&f, i % 2 ? gemma : chatml);
        write_file(&f);
        cJSON *json = run_json((const char *const[]){
            "run", "-m", f.path, "-p", "hi", "--chat", "-n", "1", "--temp", "0", "-t", "1",
            "--json", system ? "--system-prompt" : NULL, system, NULL});
        assert_int_equal(number_of(json, "prompt_tokens"),
                         i % 2 ? cases[i / 2].gemma : cases[i / 2].chatml);
        cJSON_Delete(json);
        tear_down(&f);
    }
    fixture f;
    set_up(&f, plain);
    write_file(&f);
    assert_outcome(run("run", "-m", f.path, "-p", "hi", "--chat"), 1, "", "no chat form is known");
    tear_down(&f);
}

/* Changes the ggml type of a tensor of two dimensions in a file. */
static void set_tensor_type(const char *path, const char *name, uint32_t type)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    char *bytes = allocate(1 << 20);
    const size_t n = fread(bytes, 1, 1 << 20, file);
    const size_t length = strlen(name);
    size_t at = 0;
    while (at + length < n && memcmp(bytes + at, name, length) != 0) {
        at++;
    }
    free(bytes);
    const size_t after_name = sizeof(uint32_t) + 2 * sizeof(uint64_t);
    assert_int_equal(fseek(file, (long)(at + length + after_name), SEEK_SET), 0);
    assert_int_equal(fwrite(&type, sizeof type, 1, file), 1);
    assert_int_equal(fclose(file), 0);
}

static void weights_of_other_types_are_named(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        const char *message;
    } cases[] = {{23, "token_embd.weight is IQ4_XS (ggml type 23)"},
                 {39, "token_embd.weight is MXFP4"},
                 {42, "token_embd.weight is Q2_0"},
                 {99, "token_embd.weight is of an unknown type (ggml type 99)"}};
    fixture f;
    set_up(&f, plain);
    write_file(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set_tensor_type(f.path, "token_embd.weight", cases[i].type);
        assert_outcome(run("run", "-m", f.path, "-p", "x"), 1, "", cases[i].message);
    }
    tear_down(&f);
}

static void values_of_llama_cpp_are_taken(void **state)
{
    (void)state;
    fixture f;
    set_up(&f, plain);
    write_file(&f);
    cJSON *greedy = generate(&f, "Once");
    cJSON *below = run_json((const char *const[]){"run", "-m", f.path, "-p", "Once", "-n", "8",
                                                  "--temp", "-1", "--top-k", "-1", "--min-p", "-1",
                                                  "--top-p", "2", "-t", "1", "--json", NULL});
    assert_true(cJSON_Compare(cJSON_GetObjectItem(greedy, "tokens"),
                              cJSON_GetObjectItem(below, "tokens"), true));
    double seeds[3];
    for (int i = 0; i < 3; i++) {
        cJSON *json = run_json((const char *const[]){"run", "-m", f.path, "-p", "Once", "-n", "1",
                                                     "-s", "-1", "-t", "1", "--json", NULL});
        seeds[i] = number_of(json, "seed");
        cJSON_Delete(json);
    }
    assert_true(seeds[0] != seeds[1] || seeds[1] != seeds[2]);
    cJSON_Delete(greedy);
    cJSON_Delete(below);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(keys_and_names_end_the_text),
                                       cmocka_unit_test(a_second_begin_is_warned_of),
                                       cmocka_unit_test(wrong_ids_are_warned_of),
                                       cmocka_unit_test(chunks_of_eval_begin_as_the_model_wants),
                                       cmocka_unit_test(chats_have_a_form),
                                       cmocka_unit_test(weights_of_other_types_are_named),
                                       cmocka_unit_test(values_of_llama_cpp_are_taken)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
