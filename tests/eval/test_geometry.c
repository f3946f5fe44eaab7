/* What is read from files of many architectures: which layers keep what, by which of the keys. */
#include "gguf_file.h"

#include "support/support.h"

static void begin(gguf_file *file, const char *architecture, int n_layers)
{
    gguf_file_init(file, architecture);
    gguf_file_set(file, "block_count", n_layers);
    gguf_file_set(file, "context_length", 65536);
    gguf_file_set(file, "embedding_length", 1024);
    gguf_file_set(file, "attention.head_count", 8);
    gguf_file_set(file, "attention.head_count_kv", 2);
}

static void read_ok(const gguf_file *file, tkv_geometry *geometry)
{
    tkv_error error;
    if (gguf_file_read(file, geometry, &error) != TKV_OK) {
        fail_msg("%s: %s", file->architecture, error.message);
    }
}

static void read_fails(const gguf_file *file, tkv_status expected, const char *part)
{
    tkv_error error;
    tkv_geometry g;
    assert_int_equal(gguf_file_read(file, &g, &error), expected);
    if (!strstr(error.message, part)) {
        fail_msg("message '%s' lacks '%s'", error.message, part);
    }
    tkv_geometry_free(&g);
}

/* One letter a layer: F sees everything, w has the window, - keeps nothing. */
static void assert_layers(const gguf_file *file, int window, const char *expected)
{
    tkv_geometry g;
    char found[GGUF_FILE_MAX_ENTRIES + 1] = "";
    read_ok(file, &g);
    assert_true(g.n_layers <= GGUF_FILE_MAX_ENTRIES);
    for (int i = 0; i < g.n_layers; i++) {
        const tkv_geometry_layer *layer = &g.layers[i];
        found[i] = layer->n_kv_heads == 0    ? '-'
                   : layer->window == 0      ? 'F'
                   : layer->window == window ? 'w'
                                             : '?';
    }
    if (strcmp(found, expected) != 0) {
        fail_msg("%s: found %s, expected %s", file->architecture, found, expected);
    }
    tkv_geometry_free(&g);
}

static void assert_note(const gguf_file *file, const char *part)
{
    tkv_geometry g;
    read_ok(file, &g);
    if (part ? !strstr(g.assumption, part) : g.assumption[0] != '\0') {
        fail_msg("%s: the note is '%s', expected '%s'", file->architecture, g.assumption,
                 part ? part : "");
    }
    tkv_geometry_free(&g);
}

static void windows_by_architecture(void **state)
{
    (void)state;
    const struct {
        const char *architecture;
        int stated; /* the window in the file; -1: none is */
        int window;
        const char *layers;
    } cases[] = {
        {"gemma2", -1, 4096, "wFwFwFwF"},       {"gemma2", 512, 512, "wFwFwFwF"},
        {"gemma3", 512, 512, "wwwwwFww"},       {"gemma3", -1, 0, "FFFFFFFF"},
        {"gemma3n", 512, 512, "wwwwFwww"},      {"cohere2", 512, 512, "wwwFwwwF"},
        {"cohere2moe", 512, 512, "FwwwFwww"},   {"olmo2", 512, 512, "wwwFwwwF"},
        {"olmo2", -1, 0, "FFFFFFFF"},           {"gpt-oss", 128, 128, "wFwFwFwF"},
        {"plamo3", 512, 512, "wwwwwwwF"},       {"afmoe", 512, 512, "wwwFwwwF"},
        {"llama4", -1, 8192, "wwwFwwwF"},       {"llama4", 512, 8192, "wwwFwwwF"},
        {"llama4", 0, 0, "FFFFFFFF"},           {"exaone-moe", -1, 128, "wwwFwwwF"},
        {"smallthinker", 7, 4096, "FwwwFwww"},  {"smallthinker", -1, 0, "FFFFFFFF"},
        {"laguna", 512, 512, "FwwwFwww"},       {"mellum", 512, 512, "wwwFwwwF"},
        {"muse-glimmer", 512, 512, "wwwFwwwF"}, {"lfm2", 512, 512, "wwwwwwww"},
        {"exaone4", 512, 0, "FFFFFFFF"},        {"unheard-of", 512, 0, "FFFFFFFF"},
        {"phi3", 512, 0, "FFFFFFFF"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gguf_file file;
        begin(&file, cases[i].architecture, 8);
        gguf_file_set(&file, "feed_forward_length", 64);
        if (cases[i].stated >= 0) {
            gguf_file_set(&file, "attention.sliding_window", cases[i].stated);
        }
        assert_layers(&file, cases[i].window, cases[i].layers);
    }
    gguf_file file;
    begin(&file, "exaone4", 64);
    assert_layers(&file, 4096, "wwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwFwwwF");
}

static void a_stated_pattern_counts_first(void **state)
{
    (void)state;
    gguf_file file;
    begin(&file, "gemma3", 8);
    gguf_file_set(&file, "attention.sliding_window", 512);
    gguf_file_set(&file, "attention.sliding_window_pattern", 3);
    assert_layers(&file, 512, "wwFwwFww");
    gguf_file_set(&file, "attention.sliding_window_pattern", 1);
    assert_layers(&file, 512, "FFFFFFFF");
    gguf_file_set(&file, "attention.sliding_window_pattern", 0);
    assert_layers(&file, 512, "wwwwwwww");
    const int32_t some[] = {0, 1, 1, 0, 1, 0, 0, 1};
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 8, some);
    assert_layers(&file, 512, "FwwFwFFw");
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_INT32, 8, some);
    assert_layers(&file, 512, "FwwFwFFw");
    begin(&file, "cohere2moe", 8);
    gguf_file_set(&file, "attention.sliding_window", 512);
    gguf_file_set(&file, "attention.sliding_window_pattern", 3);
    assert_layers(&file, 512, "FwwFwwFw");
    begin(&file, "step35", 8);
    gguf_file_set(&file, "attention.sliding_window", 512);
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 8, some);
    assert_layers(&file, 512, "FwwFwFFw");
    assert_note(&file, NULL);
}

/* An array tells it of every layer; those that only draft it may leave out. */
static void a_short_pattern_is_refused(void **state)
{
    (void)state;
    const int32_t some[] = {0, 1, 1, 0, 1, 0, 0, 1};
    const char *const architectures[] = {"gemma3", "gpt-oss", "llama", "unheard-of"};
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        for (int n = 0; n < 8; n++) {
            char expected[128];
            gguf_file file;
            begin(&file, architectures[i], 8);
            gguf_file_set(&file, "attention.sliding_window", 512);
            gguf_file_set_array(&file, "attention.sliding_window_pattern",
                                n % 2 ? TKV_GGUF_BOOL : TKV_GGUF_INT32, n, some);
            snprintf(expected, sizeof expected,
                     "%s.attention.sliding_window_pattern: expected an array of 8 elements, one "
                     "for each layer, or a period, found an array of %d",
                     architectures[i], n);
            read_fails(&file, TKV_ERR_FORMAT, expected);
        }
    }
    gguf_file file;
    begin(&file, "step35", 8);
    gguf_file_set(&file, "attention.sliding_window", 512);
    gguf_file_set(&file, "nextn_predict_layers", 2);
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 6, some);
    assert_layers(&file, 512, "FwwFwF--");
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 5, some);
    read_fails(&file, TKV_ERR_FORMAT, "expected an array of 6 elements");
}

static void what_nobody_knows_of_windows_is_said(void **state)
{
    (void)state;
    gguf_file file;
    begin(&file, "unheard-of", 8);
    assert_note(&file, NULL);
    gguf_file_set(&file, "attention.sliding_window", 512);
    assert_note(&file, "a window of 512 tokens and does not say of which layers: assumed of none");
    gguf_file_set(&file, "attention.sliding_window_pattern", 4);
    assert_layers(&file, 512, "wwwFwwwF");
    assert_note(&file, "one of every 4 layers has no window, the file does not say which");
    gguf_file_set_array(&file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 8,
                        (const int32_t[]){1, 1, 0, 0, 0, 0, 0, 1});
    assert_layers(&file, 512, "wwFFFFFw");
    assert_note(&file, NULL);
    begin(&file, "gemma3", 8);
    gguf_file_set(&file, "attention.sliding_window", 512);
    assert_note(&file, NULL);
}

/* The array, then the interval, then the architecture. */
static void recurrent_layers_by_several_keys(void **state)
{
    (void)state;
    gguf_file file;
    const char *const fourths[] = {"qwen3next", "qwen35", "qwen35moe", "qwen4exp"};
    for (int i = 0; i < 4; i++) {
        begin(&file, fourths[i], 8);
        assert_layers(&file, 0, "---F---F");
    }
    gguf_file_set(&file, "full_attention_interval", 3);
    assert_layers(&file, 0, "--F--F--");
    const int32_t recurrent[] = {1, 0, 0, 1, 1, 1, 0, 1};
    gguf_file_set_array(&file, "attention.recurrent_layers", TKV_GGUF_BOOL, 8, recurrent);
    assert_layers(&file, 0, "-FF---F-");
    gguf_file_set(&file, "attention.recurrent_layers", 0);
    assert_layers(&file, 0, "FFFFFFFF");
    gguf_file_set_array(&file, "attention.recurrent_layers", TKV_GGUF_BOOL, 7, recurrent);
    read_fails(&file, TKV_ERR_FORMAT, "attention.recurrent_layers, layer 7");
    begin(&file, "minimax-01", 8);
    assert_layers(&file, 0, "-------F");
    begin(&file, "unheard-of", 8);
    gguf_file_set(&file, "full_attention_interval", 2);
    assert_layers(&file, 0, "-F-F-F-F");
    gguf_file_set_array(&file, "attention.recurrent_layers", TKV_GGUF_INT32, 8, recurrent);
    assert_layers(&file, 0, "-FF---F-");
}

static void recurrent_layers_by_heads_and_lists(void **state)
{
    (void)state;
    gguf_file file;
    const int32_t heads[] = {0, 2, 0, 2, 0, 0, 2, 0};
    begin(&file, "qwen35", 8);
    gguf_file_set_array(&file, "attention.head_count_kv", TKV_GGUF_INT32, 8, heads);
    assert_layers(&file, 0, "-F-F--F-");
    gguf_file_set(&file, "full_attention_interval", 4);
    assert_layers(&file, 0, "---F----");
    begin(&file, "granitehybrid", 8);
    gguf_file_set_array(&file, "attention.layer_indices", TKV_GGUF_INT32, 2,
                        (const int32_t[]){1, 6});
    assert_layers(&file, 0, "-F----F-");
}

static void add_tensor(gguf_file *file, int layer, const char *part, int rows)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, part);
    gguf_file_add(file, name, 2, rows);
}

/* Recurrent layers have the three projections in one too; the file's tensors tell where nothing
 * else does. */
static void recurrent_layers_by_tensors(void **state)
{
    (void)state;
    gguf_file file;
    const char *const architectures[] = {"qwen35", "qwen3next", "unheard-of"};
    for (int a = 0; a < 3; a++) {
        begin(&file, architectures[a], 8);
        for (int i = 0; i < 8; i++) {
            add_tensor(&file, i, "attn_norm", 1);
            if (i % 4 == 3) {
                add_tensor(&file, i, "attn_k", 256);
                add_tensor(&file, i, "attn_v", 256);
            } else if (i % 4 == 0) {
                add_tensor(&file, i, "ssm_in", 64);
            } else {
                add_tensor(&file, i, "attn_qkv", 64);
                add_tensor(&file, i, "ssm_conv1d", 64);
            }
        }
        assert_layers(&file, 0, "---F---F");
    }
    begin(&file, "unheard-of", 2);
    add_tensor(&file, 0, "attn_norm", 1);
    add_tensor(&file, 0, "attn_qkv", 64);
    add_tensor(&file, 1, "attn_norm", 1);
    add_tensor(&file, 1, "ssm_conv1d", 1);
    add_tensor(&file, 1, "attn_k", 256);
    assert_layers(&file, 0, "FF");
}

static void set_state_keys(gguf_file *file)
{
    gguf_file_set(file, "ssm.conv_kernel", 4);
    gguf_file_set(file, "ssm.inner_size", 2048);
    gguf_file_set(file, "ssm.state_size", 128);
    gguf_file_set(file, "ssm.group_count", 16);
}

/* Floats of each layer's state. */
static void assert_states(const gguf_file *file, const uint64_t *floats)
{
    tkv_geometry g;
    read_ok(file, &g);
    for (int i = 0; i < g.n_layers; i++) {
        if (g.layers[i].state_bytes != floats[i] * sizeof(float)) {
            fail_msg("%s, layer %d: a state of %llu bytes, expected %llu floats",
                     file->architecture, i, (unsigned long long)g.layers[i].state_bytes,
                     (unsigned long long)floats[i]);
        }
    }
    tkv_geometry_free(&g);
}

static void recurrent_states(void **state)
{
    (void)state;
    const uint64_t ssm = 3 * (2048 + 2 * 16 * 128) + 128 * 2048;
    gguf_file file;
    begin(&file, "qwen35", 5);
    set_state_keys(&file);
    gguf_file_set(&file, "nextn_predict_layers", 1);
    assert_states(&file, (const uint64_t[]){ssm, ssm, ssm, 0, 0});
    begin(&file, "falcon-h1", 2);
    set_state_keys(&file);
    assert_layers(&file, 0, "FF");
    assert_states(&file, (const uint64_t[]){ssm, ssm});
    begin(&file, "jamba", 3);
    set_state_keys(&file);
    gguf_file_set(&file, "ssm.group_count", 0);
    gguf_file_set_array(&file, "attention.head_count_kv", TKV_GGUF_INT32, 3,
                        (const int32_t[]){0, 2, 0});
    assert_layers(&file, 0, "-F-");
    assert_states(&file, (const uint64_t[]){3 * 2048 + 128 * 2048, 0, 3 * 2048 + 128 * 2048});
    begin(&file, "nemotron_h_moe", 3);
    set_state_keys(&file);
    gguf_file_set_array(&file, "attention.head_count_kv", TKV_GGUF_INT32, 3,
                        (const int32_t[]){0, 2, 0});
    gguf_file_set_array(&file, "feed_forward_length", TKV_GGUF_INT32, 3,
                        (const int32_t[]){0, 0, 4096});
    assert_states(&file, (const uint64_t[]){ssm, 0, 0});
    begin(&file, "lfm2", 2);
    gguf_file_set(&file, "shortconv.l_cache", 3);
    gguf_file_set_array(&file, "attention.head_count_kv", TKV_GGUF_INT32, 2,
                        (const int32_t[]){0, 2});
    assert_states(&file, (const uint64_t[]){2 * 1024, 0});
    begin(&file, "kimi-linear", 2);
    gguf_file_set(&file, "ssm.conv_kernel", 4);
    gguf_file_set(&file, "kda.head_dim", 128);
    gguf_file_set_array(&file, "attention.head_count_kv", TKV_GGUF_INT32, 2,
                        (const int32_t[]){0, 1});
    assert_states(&file, (const uint64_t[]){3 * 3 * 8 * 128 + 8 * 128 * 128, 0});
    begin(&file, "minimax-01", 8);
    const uint64_t la = 8 * 128 * 128;
    assert_states(&file, (const uint64_t[]){la, la, la, la, la, la, la, 0});
    begin(&file, "rwkv7", 2);
    gguf_file_set(&file, "attention.head_count", 0);
    gguf_file_set(&file, "wkv.head_size", 64);
    assert_layers(&file, 0, "--");
    assert_states(&file, (const uint64_t[]){66 * 1024, 66 * 1024});
    gguf_file_set(&file, "token_shift_count", 1);
    assert_states(&file, (const uint64_t[]){65 * 1024, 65 * 1024});
    /* Without a state's keys there is none. */
    begin(&file, "llama", 2);
    assert_states(&file, (const uint64_t[]){0, 0});
    /* What makes the compressed keys. */
    begin(&file, "deepseek4", 3);
    gguf_file_set(&file, "attention.head_count_kv", 1);
    gguf_file_set(&file, "attention.key_length", 512);
    gguf_file_set(&file, "attention.indexer.key_length", 128);
    gguf_file_set_array(&file, "attention.compress_ratios", TKV_GGUF_INT32, 3,
                        (const int32_t[]){0, 4, 128});
    assert_states(&file, (const uint64_t[]){0, 2 * 8 * 2 * (512 + 128), 2 * 128 * 512});
}

/* A model without heads is read without their keys; others must state them. */
static void heads_are_needed_where_there_is_attention(void **state)
{
    (void)state;
    gguf_file file;
    gguf_file_init(&file, "mamba2");
    gguf_file_set(&file, "block_count", 2);
    gguf_file_set(&file, "embedding_length", 1024);
    assert_layers(&file, 0, "--");
    gguf_file_init(&file, "qwen35");
    gguf_file_set(&file, "block_count", 2);
    gguf_file_set(&file, "embedding_length", 1024);
    read_fails(&file, TKV_ERR_FORMAT, "qwen35.attention.head_count is missing");
}

static void set_gemma4(gguf_file *file, bool has_tensors)
{
    int32_t heads[12];
    int32_t pattern[12];
    begin(file, "gemma4", 12);
    for (int i = 0; i < 12; i++) {
        const bool is_full = i % 6 == 5;
        heads[i] = is_full ? 1 : 8;
        pattern[i] = !is_full;
        if (has_tensors) {
            add_tensor(file, i, "attn_norm", 1);
            add_tensor(file, i, "attn_k", is_full ? 512 : 2048);
            if (!is_full) {
                add_tensor(file, i, "attn_v", 2048);
            }
        }
    }
    gguf_file_set_array(file, "attention.head_count_kv", TKV_GGUF_INT32, 12, heads);
    gguf_file_set_array(file, "attention.sliding_window_pattern", TKV_GGUF_BOOL, 12, pattern);
    gguf_file_set(file, "attention.sliding_window", 1024);
    gguf_file_set(file, "attention.key_length", 512);
    gguf_file_set(file, "attention.value_length", 512);
    gguf_file_set(file, "attention.key_length_swa", 256);
    gguf_file_set(file, "attention.value_length_swa", 256);
    gguf_file_set(file, "vocab_size", 3000);
    if (has_tensors) {
        gguf_file_add(file, "token_embd.weight", 2, 3000);
    }
}

/* The first of several files may have no tensors at all: it says as much as the whole. */
static void a_first_file_without_tensors_is_as_the_whole(void **state)
{
    (void)state;
    gguf_file whole;
    gguf_file first;
    tkv_geometry g[2];
    set_gemma4(&whole, true);
    set_gemma4(&first, false);
    gguf_file_set(&first, "split.count", 2);
    gguf_file_set(&first, "split.no", 0);
    read_ok(&whole, &g[0]);
    read_ok(&first, &g[1]);
    assert_int_equal(g[1].n_files, 2);
    assert_int_equal(g[0].n_files, 1);
    assert_int_equal(g[0].layers[0].head_dim_k, 256);
    assert_int_equal(g[0].layers[0].window, 1024);
    assert_int_equal(g[0].layers[5].head_dim_v, 512);
    assert_int_equal(g[0].layers[5].window, 0);
    assert_int_equal(g[0].vocabulary_size, 3000);
    assert_memory_equal(g[0].layers, g[1].layers, 12 * sizeof *g[0].layers);
    assert_int_equal(g[1].vocabulary_size, 3000);
    assert_true(g[0].batch_width == g[1].batch_width);
    tkv_geometry_free(&g[0]);
    tkv_geometry_free(&g[1]);
}

/* It has no architecture, as llama.cpp's tool writes it. */
static void other_files_are_refused(void **state)
{
    (void)state;
    gguf_file file;
    gguf_file_init(&file, NULL);
    gguf_file_set(&file, "split.count", 3);
    gguf_file_set(&file, "split.no", 1);
    read_fails(&file, TKV_ERR_INVALID_ARGUMENT,
               "this is file 2 of 3 of a model: expected the first");
    gguf_file_init(&file, "gemma4");
    gguf_file_set(&file, "split.count", 2);
    gguf_file_set(&file, "split.no", 1);
    read_fails(&file, TKV_ERR_INVALID_ARGUMENT, "this is file 2 of 2");
}

static void indexers(void **state)
{
    (void)state;
    gguf_file file;
    tkv_geometry g;
    begin(&file, "deepseek32", 2);
    gguf_file_set(&file, "attention.key_length_mla", 192);
    gguf_file_set(&file, "attention.indexer.key_length", 128);
    read_ok(&file, &g);
    assert_int_equal(g.layers[1].indexer.width, 128);
    assert_int_equal(g.layers[1].indexer.interval, 1);
    assert_int_equal(g.layers[1].head_dim_v, 0);
    tkv_geometry_free(&g);
    /* The file's types count before what is usual. */
    begin(&file, "glm-dsa", 4);
    gguf_file_set(&file, "context_length", 1 << 20);
    gguf_file_set(&file, "attention.indexer.key_length", 128);
    const int usual[] = {128, 128, 128, 0};
    read_ok(&file, &g);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g.layers[i].indexer.width, usual[i]);
    }
    tkv_geometry_free(&g);
    gguf_file_set_array(&file, "attention.indexer.types", TKV_GGUF_INT32, 4,
                        (const int32_t[]){1, 0, 0, 1});
    read_ok(&file, &g);
    assert_int_equal(g.layers[1].indexer.width, 0);
    assert_int_equal(g.layers[3].indexer.width, 128);
    tkv_geometry_free(&g);
    /* One that chooses nothing is not there. */
    gguf_file_set(&file, "attention.indexer.top_k", 0);
    read_ok(&file, &g);
    assert_int_equal(g.layers[0].indexer.width, 0);
    tkv_geometry_free(&g);
    /* Layers that keep nothing have none. */
    begin(&file, "qwen4exp", 4);
    gguf_file_set(&file, "attention.indexer.key_length", 64);
    read_ok(&file, &g);
    assert_int_equal(g.layers[0].indexer.width, 0);
    assert_int_equal(g.layers[3].indexer.width, 64);
    tkv_geometry_free(&g);
}

static void layers_that_draft_or_borrow(void **state)
{
    (void)state;
    gguf_file file;
    begin(&file, "glm4moe", 4);
    gguf_file_set(&file, "nextn_predict_layers", 1);
    assert_layers(&file, 0, "FFF-");
    /* A model that does nothing else. */
    gguf_file_set(&file, "nextn_predict_layers", 4);
    assert_layers(&file, 0, "FFFF");
    begin(&file, "gemma3n", 22);
    gguf_file_set(&file, "attention.sliding_window_pattern", 1);
    assert_layers(&file, 0, "FFFFFFFFFFFFFFFFFFFF--");
    gguf_file_set(&file, "attention.shared_kv_layers", 4);
    assert_layers(&file, 0, "FFFFFFFFFFFFFFFFFF----");
    begin(&file, "nanbeige", 2);
    gguf_file_set(&file, "num_loops", 4096);
    read_fails(&file, TKV_ERR_FORMAT, "nanbeige.block_count is 2, in 4096 loops");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_by_architecture),
        cmocka_unit_test(a_stated_pattern_counts_first),
        cmocka_unit_test(a_short_pattern_is_refused),
        cmocka_unit_test(what_nobody_knows_of_windows_is_said),
        cmocka_unit_test(recurrent_layers_by_several_keys),
        cmocka_unit_test(recurrent_layers_by_heads_and_lists),
        cmocka_unit_test(recurrent_layers_by_tensors),
        cmocka_unit_test(recurrent_states),
        cmocka_unit_test(heads_are_needed_where_there_is_attention),
        cmocka_unit_test(a_first_file_without_tensors_is_as_the_whole),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(indexers),
        cmocka_unit_test(layers_that_draft_or_borrow)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
