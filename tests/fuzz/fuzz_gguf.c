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

/* A whole small model, and the metadata of a real one with its tokenizer. */
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
    return 0;
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
        if (status == TKV_OK) {
            use_model(model);
        }
        tkv_model_free(model);
        tkv_gguf_close(gguf);
    }
    return 0;
}
