/* Hostile files of all kinds of models: refused with a message, or layers within bounds, of which a
 * plan can be made. */
#include "fuzz/fuzz.h"

#include "eval/gguf_file.h"
#include "eval/plan.h"
#include "model/geometry_reader.h"

#include <string.h>
#include <unistd.h>

const int fuzz_runs = 8000;

static void set_hybrid(gguf_file *file)
{
    const int32_t recurrent[] = {1, 0, 1, 0};
    gguf_file_set_array(file, "attention.recurrent_layers", TKV_GGUF_BOOL, 4, recurrent);
    gguf_file_set(file, "full_attention_interval", 2);
    gguf_file_set(file, "attention.indexer.key_length", 64);
    gguf_file_set(file, "attention.indexer.kpool", 4);
    gguf_file_set_array(file, "attention.indexer.types", TKV_GGUF_INT32, 4, recurrent);
    gguf_file_set(file, "nextn_predict_layers", 1);
    gguf_file_set(file, "ssm.conv_kernel", 4);
    gguf_file_set(file, "ssm.inner_size", 128);
    gguf_file_set(file, "ssm.state_size", 64);
    gguf_file_set(file, "kda.head_dim", 0);
}

static void set_windows(gguf_file *file)
{
    const int32_t pattern[] = {1, 1, 0, 1};
    const int32_t heads[] = {2, 1, 0, 2};
    gguf_file_set(file, "attention.sliding_window", 512);
    gguf_file_set_array(file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 4, pattern);
    gguf_file_set_array(file, "attention.head_count_kv", TKV_GGUF_INT32, 4, heads);
    gguf_file_set(file, "attention.key_length_swa", 32);
    gguf_file_set(file, "attention.shared_kv_layers", 1);
    gguf_file_set(file, "num_loops", 2);
    gguf_file_set(file, "split.count", 2);
    gguf_file_set(file, "split.no", 0);
    gguf_file_add(file, "blk.0.attn_norm.weight", 2, 1);
    gguf_file_add(file, "blk.0.attn_k.weight", 2, 64);
}

static void set_compressed(gguf_file *file)
{
    const int32_t ratios[] = {0, 4, 128, 4};
    gguf_file_set_array(file, "attention.compress_ratios", TKV_GGUF_INT32, 4, ratios);
    gguf_file_set(file, "attention.indexer.key_length", 64);
    gguf_file_set(file, "attention.sliding_window", 128);
}

size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    static const struct {
        const char *architecture;
        void (*set)(gguf_file *file);
    } seeds[] = {{"qwen35", set_hybrid}, {"gemma3n", set_windows}, {"deepseek4", set_compressed}};
    char path[] = "/tmp/tkv-fuzz-XXXXXX";
    gguf_file file;
    if (index >= (int)(sizeof seeds / sizeof *seeds)) {
        return 0;
    }
    gguf_file_init(&file, seeds[index].architecture);
    gguf_file_set(&file, "block_count", 4);
    gguf_file_set(&file, "context_length", 4096);
    gguf_file_set(&file, "embedding_length", 128);
    gguf_file_set(&file, "attention.head_count", 2);
    gguf_file_set(&file, "attention.key_length", 64);
    seeds[index].set(&file);
    gguf_file_write(&file, path);
    const size_t size = fuzz_read_file(path, data);
    unlink(path);
    return size;
}

static void check_rows(const tkv_geometry_rows *rows)
{
    if (rows->width < 0 || rows->width > 3 * TKV_GEOMETRY_MAX_WIDTH ||
        (rows->width > 0 && rows->interval < 1)) {
        fuzz_fail("rows of %d for %d tokens", rows->width, rows->interval);
    }
}

static void check_layers(const tkv_geometry *g)
{
    if (g->n_layers < 1 || g->n_layers > TKV_GEOMETRY_MAX_LAYERS || g->n_files < 1) {
        fuzz_fail("%d layers in %d files", g->n_layers, g->n_files);
    }
    for (int i = 0; i < g->n_layers; i++) {
        const tkv_geometry_layer *layer = &g->layers[i];
        if (layer->n_kv_heads < 0 || layer->n_kv_heads > TKV_GEOMETRY_MAX_HEADS ||
            layer->head_dim_k < 0 || layer->head_dim_k > TKV_GEOMETRY_MAX_WIDTH ||
            layer->head_dim_v < 0 || layer->head_dim_v > TKV_GEOMETRY_MAX_WIDTH ||
            layer->window < 0) {
            fuzz_fail("layer %d: %d heads of %d and %d, window %d", i, layer->n_kv_heads,
                      layer->head_dim_k, layer->head_dim_v, layer->window);
        }
        check_rows(&layer->compressed);
        check_rows(&layer->indexer);
    }
}

static void make_plan(const tkv_geometry *g)
{
    const tkv_policy policy = {.type_k = TKV_TYPE_TURBO4,
                               .type_v = TKV_TYPE_F16,
                               .boundary_layers = 1,
                               .n_sinks = 4,
                               .n_recent = 32};
    const tkv_plan_params params = {.geometry = g, .memory_bytes = UINT64_C(1) << 34};
    const int contexts[] = {1, 4000, TKV_PLAN_MAX_TOKENS};
    uint64_t bytes[3];
    tkv_error error;
    const tkv_status status = tkv_plan_series(&params, &policy, 3, contexts, bytes, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK && (bytes[0] > bytes[1] || bytes[1] > bytes[2])) {
        fuzz_fail("longer contexts take less");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tkv_error error;
    tkv_gguf *gguf = NULL;
    fuzz_write_file(fuzz_file(), data, size);
    tkv_status status = tkv_gguf_open(fuzz_file(), &gguf, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        tkv_geometry geometry;
        status = tkv_geometry_read(gguf, &geometry, &error);
        fuzz_check_error(status, &error);
        if (status == TKV_OK) {
            check_layers(&geometry);
            make_plan(&geometry);
        }
        tkv_geometry_free(&geometry);
        tkv_gguf_close(gguf);
    }
    return 0;
}
