/* Compressed types in llama.cpp trees: found by what is done with them, whatever they are called.
 */
#include "gate/llama_tree.h"
#include "support/support.h"

#include <ctype.h>
#include <sys/stat.h>

#define METAL "ggml/src/ggml-metal/ggml-metal.metal"
#define HEADER "ggml/include/ggml.h"

static char root[] = "/tmp/tkv-llama-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

static void write_bytes(const char *tree, const char *name, const void *bytes, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", root, tree, name);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void write_source(const char *tree, const char *name, const char *text)
{
    write_bytes(tree, name, text, strlen(text));
}

static tkv_llama_tree read_tree(const char *name)
{
    char path[256];
    tkv_llama_tree tree;
    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_ok(tkv_llama_tree_read(&(tkv_llama_params){.path = path}, &tree, &error));
    return tree;
}

static const tkv_llama_snapshot *chosen(const tkv_llama_tree *tree)
{
    return &tree->snapshots[tree->chosen];
}

static const tkv_llama_backend *find_metal(const tkv_llama_tree *tree)
{
    const tkv_llama_snapshot *snapshot = chosen(tree);
    for (int i = 0; i < snapshot->n_backends; i++) {
        if (strcmp(snapshot->backends[i].name, "metal") == 0) {
            return &snapshot->backends[i];
        }
    }
    fail_msg("no Metal");
    return NULL;
}

static bool is_said(const tkv_llama_tree *tree, const char *part)
{
    const tkv_llama_snapshot *snapshot = chosen(tree);
    bool is_there = false;
    for (int i = 0; i < snapshot->n_missing; i++) {
        is_there = is_there || strstr(snapshot->missing[i], part);
    }
    return is_there;
}

/* What a stock tree has: a type that is stored and attended on, but not rotated. */
#define STOCK                                                                                      \
    "kernel void kernel_set_rows_q4_0_i64(int x) { quantize_q4_0(x); }\n"                          \
    "void quantize_q4_0(int x) { }\n"                                                              \
    "void dequantize_q4_0(int x) { }\n"                                                            \
    "template [[host_name(\"kernel_flash_attn_ext_q4_0_dk128_dv128\")]] kernel t f<128>;\n"
#define STOCK_TYPES                                                                                \
    "enum ggml_type { GGML_TYPE_F32 = 0, GGML_TYPE_F16 = 1, GGML_TYPE_Q4_0 = 2, GGML_TYPE_COUNT "  \
    "= 60 };\n"

/* A type with everything in `pattern`'s places of '@', beside a stock tree. */
static void write_fork(const char *tree, const char *pattern, const char *type)
{
    char metal[4096] = "";
    char header[512];
    char upper[16] = "";
    size_t used = 0;
    for (; *pattern; pattern++) {
        used +=
            (size_t)(*pattern == '@' ? snprintf(metal + used, sizeof metal - used, "%s", type)
                                     : snprintf(metal + used, sizeof metal - used, "%c", *pattern));
    }
    for (size_t i = 0; type[i]; i++) {
        upper[i] = (char)toupper((unsigned char)type[i]);
    }
    snprintf(header, sizeof header, STOCK_TYPES "enum more { GGML_TYPE_%s_0 = 41 };\n", upper);
    write_source(tree, METAL, metal);
    write_source(tree, HEADER, header);
}

#define FORK                                                                                       \
    STOCK "constant float @_centroids_1bit[2] = {-0.798f, 0.798f};\n"                              \
          "static inline void @_fwht_128(thread float *x) { x[0] = 0; }\n"                         \
          "static void quantize_@_0(thread float *x) { @_fwht_128(x); }\n"                         \
          "template <typename t> void dequantize_@_0(device const t *x) { x[0] = 0; }\n"           \
          "kernel void kernel_set_rows_@_i64(int x) { quantize_@_0(x); }\n"                        \
          "template [[host_name(\"kernel_flash_attn_ext_@_0_dk128_dv128\")]] kernel t f<128>;\n"

/* Types are found by what is done with them, whatever a fork calls them. */
static void types_may_have_any_name(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        const char *shown;
    } cases[] = {{"turbo3", "turbo3"}, {"tbq3", "tbq3"}, {"tq3", "tq3"},   {"polar4", "polar4"},
                 {"h3", "h3_0"},       {"wht3", "wht3"}, {"kvq3", "kvq3"}, {"i3x", "i3x_0"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_fork("fork", FORK, cases[i].type);
        tkv_llama_tree tree = read_tree("fork");
        const tkv_llama_snapshot *s = chosen(&tree);
        if (!s->proceeds || s->n_warnings > 0) {
            fail_msg("%s: %s", cases[i].type, s->n_missing ? s->missing[0] : s->warnings[0]);
        }
        assert_string_equal(find_metal(&tree)->types, cases[i].shown);
        assert_int_equal(tree.words.n, 1);
        assert_int_equal(s->n_found, 2);
        tkv_llama_tree_free(&tree);
    }
}

/* A rotation with a name of its own shows in what calls it. */
static void rotations_may_have_any_name(void **state)
{
    (void)state;
    static const char fork[] =
        STOCK "static void hadamard(thread float *x) { x[0] = 0; }\n"
              "static void quantize_@(thread float *x) { hadamard(x); }\n"
              "void dequantize_@(device const t *x) { x[0] = 0; }\n"
              "kernel void kernel_set_rows_@(int x) { quantize_@(x); }\n"
              "kernel void kernel_flash_attn_ext_@(int x) { dequantize_@(x); }\n";
    write_fork("shared", fork, "zq4");
    tkv_llama_tree tree = read_tree("shared");
    assert_true(chosen(&tree)->proceeds);
    assert_string_equal(find_metal(&tree)->types, "zq4");
    tkv_llama_tree_free(&tree);
}

/* Storing, attending and a transform somewhere make no compressed type. */
static void stock_types_are_none(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        STOCK, STOCK "kernel void kernel_fwht_f32(device float *x) { x[0] = 0; }\n",
        STOCK "static void tq_prerotate_q4_0(device float *x) { x[0] = 0; }\n",
        STOCK "kernel void kernel_set_rows_@_i64(int x) { }\n"
              "void dequantize_@_0(int x) { }\n"
              "kernel void kernel_fwht_f32(device float *x) { x[0] = 0; }\n"
              "kernel void kernel_flash_attn_ext_@_0(int x) { }\n"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        write_fork("stock", patterns[i], "nq4");
        tkv_llama_tree tree = read_tree("stock");
        assert_false(chosen(&tree)->proceeds);
        assert_int_equal(tree.words.n, 0);
        assert_int_equal(chosen(&tree)->n_mentions, 0);
        assert_true(is_said(&tree, "no KV compression here"));
        tkv_llama_tree_free(&tree);
    }
}

/* Words begin parts of names and end with them. */
static void words_are_parts_of_names(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *word;
        bool is_there;
    } cases[] = {{"k_set_rows_tq3_0", "tq3", true},
                 {"attn_ktq3_vtq3", "tq3", true},
                 {"SET_ROWS_TQ3", "tq3", true},
                 {"xtq3", "tq3", false},
                 {"tq32", "tq3", false},
                 {"tq3s", "tq3", false},
                 {"use of tq3, once", "tq3", true},
                 {"tbqx", "tbq", false},
                 {"TBQ_FORCE", "tbq", true},
                 {"turboquant", "turbo", true},
                 {"dequantFuncTURBO3", "turbo", true},
                 {"Turbo", "turbo", false},
                 {"", "tq3", false},
                 {"t", "tq3", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = cases[i].text;
        if (tkv_has_word(text, strlen(text), cases[i].word) != cases[i].is_there) {
            fail_msg("'%s' in '%s'", cases[i].word, text);
        }
    }
}

#define TBQ_NAMES                                                                                  \
    "\1\0kernel_set_rows_tbq3_i32\0kernel_tbq3_wht\0dequantize_tbq3_0\0"                           \
    "kernel_flash_attn_ext_tbq3_0_dk64_dv64\0TBQ_SPARSE_V\0\3"

/* Without a header the names of kernels say which types there are. */
static void installations_may_have_any_types(void **state)
{
    (void)state;
    write_bytes("tbq", "lib/ggml-metal.metallib", TBQ_NAMES, sizeof TBQ_NAMES);
    tkv_llama_tree tree = read_tree("tbq");
    const tkv_llama_backend *metal = find_metal(&tree);
    assert_string_equal(metal->types, "tbq3");
    bool has_switch = false;
    for (int i = 0; i < metal->evidence.n_items; i++) {
        has_switch = has_switch || strcmp(metal->evidence.items[i].name, "TBQ_SPARSE_V") == 0;
    }
    assert_true(has_switch);
    assert_true(is_said(&tree, "headers are needed"));
    tkv_llama_tree_free(&tree);
    write_source("tbq", "include/ggml.h", "enum ggml_type { GGML_TYPE_TBQ3_0 = 41 };\n");
    tree = read_tree("tbq");
    assert_true(chosen(&tree)->proceeds);
    tkv_llama_tree_free(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_may_have_any_name), cmocka_unit_test(rotations_may_have_any_name),
        cmocka_unit_test(stock_types_are_none), cmocka_unit_test(words_are_parts_of_names),
        cmocka_unit_test(installations_may_have_any_types)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
