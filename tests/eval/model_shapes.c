#include "model_shapes.h"

#include "support/support.h"

#define LONG 131072

static void set_pattern(gguf_file *file, const char *key, tkv_gguf_type type, int n, int period,
                        int full, int local)
{
    int32_t values[GGUF_FILE_MAX_ENTRIES];
    for (int i = 0; i < n; i++) {
        values[i] = i % period == period - 1 ? full : local;
    }
    gguf_file_set_array(file, key, type, n, values);
}

static void set_some(gguf_file *file, const char *key, int n, int value, int n_some,
                     const int *some)
{
    int32_t values[GGUF_FILE_MAX_ENTRIES] = {0};
    for (int i = 0; i < n_some; i++) {
        values[some[i]] = value;
    }
    gguf_file_set_array(file, key, TKV_GGUF_INT32, n, values);
}

static void add_interval(gguf_file *file)
{
    gguf_file_set(file, "full_attention_interval", 4);
}

static void add_interval_and_draft(gguf_file *file)
{
    add_interval(file);
    gguf_file_set(file, "nextn_predict_layers", 1);
}

static void add_recurrent(gguf_file *file)
{
    set_pattern(file, "attention.recurrent_layers", TKV_GGUF_BOOL, 64, 4, 0, 1);
}

/* The interval beside it does not count. */
static void add_irregular_recurrent(gguf_file *file)
{
    int32_t values[64];
    for (int i = 0; i < 64; i++) {
        values[i] = i != 5 && i != 11 && i != 23 && i != 63;
    }
    add_interval(file);
    gguf_file_set_array(file, "attention.recurrent_layers", TKV_GGUF_BOOL, 64, values);
}

static void add_window_1024(gguf_file *file)
{
    gguf_file_set(file, "attention.sliding_window", 1024);
}

static void add_window_128(gguf_file *file)
{
    gguf_file_set(file, "attention.sliding_window", 128);
}

static void add_latent(gguf_file *file)
{
    gguf_file_set(file, "attention.key_length_mla", 192);
    gguf_file_set(file, "attention.value_length_mla", 128);
    gguf_file_set(file, "attention.kv_lora_rank", 512);
}

static void add_indexer(gguf_file *file)
{
    add_latent(file);
    gguf_file_set(file, "attention.indexer.head_count", 64);
    gguf_file_set(file, "attention.indexer.key_length", 128);
    gguf_file_set(file, "attention.indexer.top_k", 2048);
}

static void add_indexer_and_draft(gguf_file *file)
{
    add_indexer(file);
    gguf_file_set(file, "nextn_predict_layers", 1);
}

static void add_gemma4(gguf_file *file)
{
    add_window_1024(file);
    set_pattern(file, "attention.head_count_kv", TKV_GGUF_INT32, 48, 6, 1, 8);
    set_pattern(file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 48, 6, 0, 1);
    gguf_file_set(file, "attention.key_length_swa", 256);
    gguf_file_set(file, "attention.value_length_swa", 256);
}

static void add_gemma3n(gguf_file *file)
{
    gguf_file_set(file, "attention.sliding_window", 512);
    set_pattern(file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 35, 5, 0, 1);
    gguf_file_set(file, "attention.shared_kv_layers", 15);
}

static void add_cohere2moe(gguf_file *file)
{
    gguf_file_set(file, "attention.sliding_window", 4096);
    gguf_file_set(file, "attention.sliding_window_pattern", 4);
}

static void add_lfm2(gguf_file *file)
{
    set_some(file, "attention.head_count_kv", 16, 8, 6, (const int[]){2, 5, 8, 10, 12, 14});
}

static void add_nemotron(gguf_file *file)
{
    set_some(file, "attention.head_count_kv", 52, 8, 4, (const int[]){14, 21, 30, 39});
}

static void add_minimax_m3(gguf_file *file)
{
    gguf_file_set(file, "leading_dense_block_count", 3);
    gguf_file_set(file, "attention.indexer.key_length", 128);
    gguf_file_set(file, "attention.indexer.top_k", 16);
}

static void add_glm5_next(gguf_file *file)
{
    add_indexer(file);
    set_pattern(file, "attention.head_count_kv", TKV_GGUF_INT32, 48, 4, 1, 0);
    set_pattern(file, "attention.indexer.types", TKV_GGUF_INT32, 48, 8, 1, 0);
    gguf_file_set(file, "attention.indexer.kpool", 4);
}

static void add_dots3note(gguf_file *file)
{
    add_indexer(file);
    gguf_file_set(file, "attention.sliding_window", 512);
    set_pattern(file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 40, 4, 0, 1);
    set_pattern(file, "attention.indexer.types", TKV_GGUF_INT32, 40, 4, 1, 0);
    gguf_file_set(file, "attention.key_length_swa", 320);
}

/* Two layers of a window only, then those with one key for 4 and for 128 tokens by turns. */
static void add_deepseek4(gguf_file *file)
{
    int32_t ratios[44] = {0};
    for (int i = 2; i < 44; i++) {
        ratios[i] = i % 2 == 0 ? 4 : 128;
    }
    gguf_file_set_array(file, "attention.compress_ratios", TKV_GGUF_INT32, 44, ratios);
    gguf_file_set(file, "attention.indexer.key_length", 128);
    add_window_128(file);
}

static void add_loops(gguf_file *file)
{
    gguf_file_set(file, "num_loops", 3);
}

/* Values of a latent key and of an indexer's. */
#define LATENT 576
#define INDEXER 128

const model_shape model_shapes[] = {
    {"Llama 3.1 8B", "llama", 32, 4096, 32, 8, 0, 0, LONG, NULL, {{32, 8 * 256, 0}}},
    {"Phi 3 mini", "phi3", 32, 3072, 32, 32, 0, 0, LONG, NULL, {{32, 32 * 192, 0}}},
    {"Qwen3.5 27B, interval",
     "qwen35",
     64,
     5120,
     24,
     4,
     256,
     256,
     LONG,
     add_interval,
     {{16, 4 * 512, 0}}},
    {"Qwen3.5 27B, a draft layer",
     "qwen35",
     65,
     5120,
     24,
     4,
     256,
     256,
     LONG,
     add_interval_and_draft,
     {{16, 4 * 512, 0}}},
    {"Qwen3.5 27B, no key", "qwen35", 64, 5120, 24, 4, 256, 256, LONG, NULL, {{16, 4 * 512, 0}}},
    {"Qwen3.5 27B, array",
     "qwen35",
     64,
     5120,
     24,
     4,
     256,
     256,
     LONG,
     add_recurrent,
     {{16, 4 * 512, 0}}},
    {"Qwen3.5, irregular array",
     "qwen35",
     64,
     5120,
     24,
     4,
     256,
     256,
     LONG,
     add_irregular_recurrent,
     {{4, 4 * 512, 0}}},
    {"Qwen3.5 MoE, no key", "qwen35moe", 40, 2048, 16, 2, 256, 256, LONG, NULL, {{10, 2 * 512, 0}}},
    {"Qwen3 Next 80B, no key",
     "qwen3next",
     48,
     2048,
     16,
     2,
     256,
     256,
     LONG,
     NULL,
     {{12, 2 * 512, 0}}},
    {"MiniMax 01, no key", "minimax-01", 80, 6144, 64, 8, 128, 128, LONG, NULL, {{10, 8 * 256, 0}}},
    {"Gemma 3 27B",
     "gemma3",
     62,
     5376,
     32,
     16,
     128,
     128,
     LONG,
     add_window_1024,
     {{10, 16 * 256, 0}, {52, 16 * 256, 1024}}},
    {"gpt-oss 20B",
     "gpt-oss",
     24,
     2880,
     64,
     8,
     64,
     64,
     LONG,
     add_window_128,
     {{12, 8 * 128, 0}, {12, 8 * 128, 128}}},
    {"DeepSeek V3", "deepseek2", 61, 7168, 128, 1, 576, 512, LONG, add_latent, {{61, LATENT, 0}}},
    {"DeepSeek V3.2",
     "deepseek32",
     61,
     7168,
     128,
     1,
     576,
     512,
     LONG,
     add_indexer,
     {{61, LATENT + INDEXER, 0}}},
    {"GLM 5",
     "glm-dsa",
     79,
     6144,
     64,
     1,
     576,
     512,
     202752,
     add_indexer_and_draft,
     {{78, LATENT + INDEXER, 0}}},
    {"GLM 5.2",
     "glm-dsa",
     79,
     6144,
     64,
     1,
     576,
     512,
     1048576,
     add_indexer_and_draft,
     {{57, LATENT, 0}, {21, LATENT + INDEXER, 0}}},
    {"MiniMax M3",
     "minimax-m3",
     60,
     3072,
     48,
     8,
     128,
     128,
     LONG,
     add_minimax_m3,
     {{3, 8 * 256, 0}, {57, 8 * 256 + INDEXER, 0}}},
    {"GLM 5 Next",
     "glm5-next",
     48,
     6144,
     64,
     1,
     576,
     512,
     LONG,
     add_glm5_next,
     {{6, LATENT, 0}, {6, LATENT + 3 * INDEXER, 0}}},
    {"dots3note",
     "dots3note",
     40,
     4096,
     64,
     1,
     576,
     512,
     LONG,
     add_dots3note,
     {{10, LATENT + INDEXER, 0}, {30, 320, 512}}},
    {"DeepSeek V4",
     "deepseek4",
     44,
     4096,
     64,
     1,
     512,
     512,
     1048576,
     add_deepseek4,
     {{44, 512, 128}, {21, (512 + INDEXER) / 4, 0}, {21, 512 / 128, 0}}},
    {"Gemma 4 12B",
     "gemma4",
     48,
     3840,
     16,
     8,
     512,
     512,
     LONG,
     add_gemma4,
     {{8, 1024, 0}, {40, 8 * 512, 1024}}},
    {"Gemma 3n E4B",
     "gemma3n",
     35,
     2048,
     8,
     2,
     256,
     256,
     32768,
     add_gemma3n,
     {{4, 2 * 512, 0}, {16, 2 * 512, 512}}},
    {"Command A MoE",
     "cohere2moe",
     49,
     4096,
     32,
     8,
     128,
     128,
     LONG,
     add_cohere2moe,
     {{13, 8 * 256, 0}, {36, 8 * 256, 4096}}},
    {"LFM2 1.2B", "lfm2", 16, 2048, 32, 8, 0, 0, LONG, add_lfm2, {{6, 8 * 128, 0}}},
    {"Nemotron H", "nemotron_h", 52, 4480, 40, 8, 128, 128, LONG, add_nemotron, {{4, 8 * 256, 0}}},
    {"Nanbeige, three loops", "nanbeige", 8, 1024, 8, 2, 0, 0, LONG, add_loops, {{24, 2 * 256, 0}}},
    {"Granite Switch",
     "graniteswitch",
     40,
     2048,
     32,
     8,
     0,
     0,
     LONG,
     NULL,
     {{40, 8 * 128, 0}, {1, 128, 0}}},
    {"Falcon H1", "falcon-h1", 24, 1024, 8, 2, 64, 64, LONG, NULL, {{24, 2 * 128, 0}}},
    {"Mamba", "mamba", 24, 768, 0, 0, 0, 0, LONG, NULL, {{0, 0, 0}}},
    {"Gemma 4 assistant", "gemma4-assistant", 4, 1024, 4, 1, 256, 256, LONG, NULL, {{0, 0, 0}}},
    {"OpenLLaMA 3B", "llama", 26, 3200, 32, 32, 0, 0, 2048, NULL, {{26, 32 * 224, 0}}},
    {"Danube 3 4B", "llama", 24, 3840, 32, 8, 0, 0, 8192, NULL, {{24, 8 * 256, 0}}},
    {"heads of 72", "llama", 24, 1152, 16, 16, 0, 0, 8192, NULL, {{24, 16 * 160, 0}}},
    {"heads of 40", "llama", 24, 640, 16, 16, 0, 0, 8192, NULL, {{24, 16 * 96, 0}}},
    {"stories 260K", "llama", 5, 64, 8, 4, 0, 0, 2048, NULL, {{5, 4 * 32, 0}}},
};

const int n_model_shapes = sizeof model_shapes / sizeof *model_shapes;

void model_shape_read(const model_shape *shape, tkv_geometry *geometry)
{
    gguf_file file;
    tkv_error error;
    gguf_file_init(&file, shape->architecture);
    gguf_file_set(&file, "block_count", shape->n_layers);
    gguf_file_set(&file, "context_length", shape->context_length);
    gguf_file_set(&file, "embedding_length", shape->embedding_length);
    gguf_file_set(&file, "feed_forward_length", 0);
    gguf_file_set(&file, "attention.head_count", shape->n_heads);
    gguf_file_set(&file, "attention.head_count_kv", shape->n_kv_heads);
    if (shape->head_dim_k > 0) {
        gguf_file_set(&file, "attention.key_length", shape->head_dim_k);
        gguf_file_set(&file, "attention.value_length", shape->head_dim_v);
    }
    if (shape->add) {
        shape->add(&file);
    }
    if (gguf_file_read(&file, geometry, &error) != TKV_OK) {
        fail_msg("%s: %s", shape->name, error.message);
    }
}

uint64_t model_shape_f16_bytes(const model_shape *shape)
{
    uint64_t bytes = 0;
    for (int i = 0; i < 3; i++) {
        const shape_term *term = &shape->terms[i];
        const int most = term->window + TKV_PAGE_TOKENS;
        const int n_tokens =
            term->window > 0 && most < shape->context_length ? most : shape->context_length;
        bytes += 2 * (uint64_t)term->n_layers * (uint64_t)term->n_values * (uint64_t)n_tokens;
    }
    return bytes;
}
