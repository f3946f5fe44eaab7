/* Hostile model files: refused with a message, or a model that can be asked for everything and
 * takes a few tokens. */
#include "fuzz/fuzz.h"

#include "model/prompt.h"
#include "model/session.h"
#include "model/toy_model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TENSOR_COUNT_AT 8

const int fuzz_runs = 1500;

static const toy_shape shape = {
    .architecture = "llama",
    .n_layers = 1,
    .embedding_length = 32,
    .feed_forward_length = 32,
    .n_heads = 2,
    .n_kv_heads = 1,
    .head_dim_k = 32,
    .head_dim_v = 32,
    .vocabulary_size = 16,
    .rope_dim = 32,
    .rope_freq_base = 10000.0f,
    .has_output = true,
};

/* A file under construction. */
typedef struct image {
    uint8_t *data;
    size_t size;
} image;

static void put(image *f, const void *bytes, size_t size)
{
    memcpy(f->data + f->size, bytes, size);
    f->size += size;
}

static void put_text(image *f, const char *text)
{
    put(f, &(uint64_t){strlen(text)}, sizeof(uint64_t));
    put(f, text, strlen(text));
}

static void put_string(image *f, const char *key, const char *value)
{
    put_text(f, key);
    put(f, &(uint32_t){TKV_GGUF_STRING}, sizeof(uint32_t));
    put_text(f, value);
}

static void put_array(image *f, const char *key, uint32_t type, uint64_t n)
{
    put_text(f, key);
    put(f, &(uint32_t){TKV_GGUF_ARRAY}, sizeof(uint32_t));
    put(f, &type, sizeof type);
    put(f, &n, sizeof n);
}

/* A tokenizer of few tokens, so that inputs stay short. */
static size_t write_vocabulary(const char *model, uint8_t *data)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>",   "T",  "h",
                                         "e",     "he",  "<0x0A>", "Th", "The"};
    static const char *const merges[] = {"h e", "T h", "T he"};
    static const float scores[] = {0, 0, 0, -9, -9, -9, -1, 0, -2, -1};
    static const int32_t kinds[] = {2, 3, 3, 1, 1, 1, 1, 6, 1, 1};
    const uint64_t n = sizeof tokens / sizeof *tokens;
    image f = {data, 0};
    put(&f, "GGUF", 4);
    put(&f, &(uint32_t){3}, sizeof(uint32_t));
    put(&f, &(uint64_t){0}, sizeof(uint64_t));
    put(&f, &(uint64_t){6}, sizeof(uint64_t));
    put_string(&f, "tokenizer.ggml.model", model);
    put_string(&f, "tokenizer.ggml.pre", "gpt-2");
    put_array(&f, "tokenizer.ggml.tokens", TKV_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) {
        put_text(&f, tokens[i]);
    }
    put_array(&f, "tokenizer.ggml.merges", TKV_GGUF_STRING, 3);
    for (int i = 0; i < 3; i++) {
        put_text(&f, merges[i]);
    }
    put_array(&f, "tokenizer.ggml.scores", TKV_GGUF_FLOAT32, n);
    put(&f, scores, sizeof scores);
    put_array(&f, "tokenizer.ggml.token_type", TKV_GGUF_INT32, n);
    put(&f, kinds, sizeof kinds);
    return f.size;
}

/* A whole small model, the metadata of a real one with its tokenizer, and small tokenizers. */
size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    if (index == 0) {
        toy_model toy;
        toy_model_init(&toy, &shape, 1);
        toy_model_write(&toy, fuzz_file());
        toy_model_clear(&toy);
        return fuzz_read_file(fuzz_file(), data);
    }
    if (index == 1) {
        const size_t size = fuzz_read_file(TKV_SOURCE_DIR "/models/tiny-q8_0.gguf", data);
        memset(data + TENSOR_COUNT_AT, 0, sizeof(uint64_t));
        return size;
    }
    return index == 2   ? write_vocabulary("llama", data)
           : index == 3 ? write_vocabulary("gpt2", data)
                        : 0;
}

static void ask_for_values(const tkv_gguf *gguf)
{
    static const char *const keys[] = {
        "general.architecture",  "llama.block_count",     "llama.context_length",
        "llama.rope.freq_base",  "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges", "general.alignment",     "llama.attention.key_length"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const tkv_gguf_value *value = tkv_gguf_find(gguf, keys[i]);
        const uint64_t n = value ? tkv_gguf_array_length(value) : 0;
        /* The first elements, the last, and one beyond. */
        for (uint64_t at = 0; at <= n; at += at < 4 || n - at < 3 ? 1 : n - at - 2) {
            int64_t integer;
            double number;
            tkv_gguf_text text;
            const int n_forms = value ? tkv_gguf_integer(value, at, &integer) +
                                            tkv_gguf_number(value, at, &number) +
                                            tkv_gguf_text_at(value, at, &text)
                                      : 0;
            if (n_forms > 0 && at == n) {
                fuzz_fail("%s has an element beyond its end", keys[i]);
            }
        }
    }
    const tkv_gguf_tensor *tensor = tkv_gguf_find_tensor(gguf, "output.weight");
    volatile uint8_t last = 0;
    if (tensor && tensor->n_bytes > 0) {
        last = ((const uint8_t *)tensor->data)[tensor->n_bytes - 1];
    }
    (void)last;
}

static void use_tokenizer(const tkv_gguf *gguf)
{
    tkv_error error;
    tkv_tokenizer *tokenizer = NULL;
    tkv_status status = tkv_tokenizer_from_gguf(gguf, &tokenizer, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        static const char text[] = "The secret number is 48213.\n\xff\xc3\xa9 <|end|>";
        tkv_tokens tokens = {0};
        tkv_chat_form form;
        fuzz_check_error(tkv_chat_find(gguf, tokenizer, &form, &error), &error);
        status = tkv_prompt_encode(tokenizer, text, sizeof text - 1, &tokens, &error);
        fuzz_check_error(status, &error);
        for (size_t i = 0; i < tokens.n; i++) {
            tkv_tokenizer_decode(tokenizer, tokens.ids[i]);
            tkv_tokenizer_is_end(tokenizer, tokens.ids[i]);
        }
        tkv_tokens_free(&tokens);
    }
    tkv_tokenizer_free(tokenizer);
}

static void use_model(const tkv_model *model)
{
    tkv_error error;
    tkv_context *context = NULL;
    tkv_session *session = NULL;
    const int32_t tokens[] = {0, 0, 0};
    const tkv_session_params params = {
        .max_tokens = 8,
        .n_batch = 2,
        .policy = {.type_k = TKV_TYPE_TURBO4, .type_v = TKV_TYPE_TURBO3}};
    if (tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error) != TKV_OK) {
        fuzz_fail("%s", error.message);
    }
    tkv_status status = tkv_session_create(model, context, &params, &session, &error);
    fuzz_check_error(status, &error);
    const int n_vocabulary = tkv_model_get_config(model)->vocabulary_size;
    float *logits = malloc((size_t)n_vocabulary * sizeof *logits);
    if (status == TKV_OK && logits) {
        const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST, .logits = logits};
        status = tkv_session_eval(session, tokens, 3, &eval, &error);
        fuzz_check_error(status, &error);
    }
    free(logits);
    tkv_session_free(session);
    tkv_context_free(context);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tkv_error error;
    tkv_gguf *gguf = NULL;
    tkv_model *model = NULL;
    fuzz_write_file(fuzz_file(), data, size);
    tkv_status status = tkv_gguf_open(fuzz_file(), &gguf, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        ask_for_values(gguf);
        use_tokenizer(gguf);
        status = tkv_model_create(gguf, &model, &error);
        fuzz_check_error(status, &error);
        /* Takes far longer than reading: one input of 8. */
        if (status == TKV_OK && size % 8 == 0) {
            use_model(model);
        }
        tkv_model_free(model);
        tkv_gguf_close(gguf);
    }
    return 0;
}
