/* The gate of a llama.cpp tree, on small trees that the test writes. */
#include "gate/codebook_error.h"
#include "gate/llama_tree.h"
#include "support/support.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef TKV_HAVE_LIBGIT2
#include <git2.h>
#endif

static char root[] = "/tmp/tkv-llama-XXXXXX";

/* Of the types in these trees. */
static const tkv_words turbo = {.n = 1, .word = {"turbo"}};

/* Codebooks in units of 1/sqrt(128), the last two lines to be filled. */
#define TABLES                                                                                     \
    "constant float turbo_wht_signs1[128] = {1.0f, -1.0f, 1, -1};\n"                               \
    "constant float turbo_centroids_2bit[4] = {-0.133503f, -0.040020f, 0.040020f, 0.133503f};\n"   \
    "constant float turbo_mid_2bit[3] = {-0.0867615f, 0.0f, 0.0867615f};\n"
#define ROTATION                                                                                   \
    "static void turbo_fwht_128(thread float *x) { x[0] = 0; }\n"                                  \
    "kernel void kernel_turbo_wht(device float *x [[buffer(0)]]) { turbo_fwht_128(x); }\n"
#define SET_ROWS                                                                                   \
    "template <typename T> kernel void kernel_set_rows_turbo2(device T *x) { x[0] = 1; }\n"        \
    "template [[host_name(\"kernel_set_rows_turbo2_i32\")]] kernel t "                             \
    "kernel_set_rows_turbo2<int>;\n"
#define DEQUANTISE "kernel void kernel_turbo2_dequant_f16(device half *y) { y[0] = 0; }\n"
#define ATTENTION                                                                                  \
    "template [[host_name(\"kernel_flash_attn_ext_vec_kturbo2_vturbo2_dk128_dv96\")]] kernel t "   \
    "f<128>;\n"
#define TYPES "enum ggml_type {\n    GGML_TYPE_Q8_0 = 8,\n    GGML_TYPE_TURBO2_0 = 43,\n};\n"
#define METAL "ggml/src/ggml-metal/ggml-metal.metal"
#define HEADER "ggml/include/ggml.h"
#define ALL TABLES ROTATION SET_ROWS DEQUANTISE ATTENTION

static int set_up(void **state)
{
    (void)state;
#ifdef TKV_HAVE_LIBGIT2
    git_libgit2_init();
#endif
    return mkdtemp(root) && chmod(root, 0755) == 0 ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
#ifdef TKV_HAVE_LIBGIT2
    git_libgit2_shutdown();
#endif
    snprintf(command, sizeof command, "chmod -R u+rwx %s && rm -rf %s", root, root);
    return system(command);
}

/* The path of a directory of the test's; static storage. */
static const char *in_root(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
}

static void write_bytes(const char *tree, const char *name, const void *bytes, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", root, tree, name);
    make_parents(path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void write_source(const char *tree, const char *name, const char *text)
{
    write_bytes(tree, name, text, strlen(text));
}

static tkv_llama_tree read_tree(const char *name, const char *ref)
{
    tkv_llama_tree tree;
    const tkv_llama_params params = {.path = in_root(name), .ref = ref};
    assert_ok(tkv_llama_tree_read(&params, &tree, &error));
    return tree;
}

static void assert_refused(const char *name, const char *ref, tkv_status status, const char *part)
{
    tkv_llama_tree tree;
    const tkv_llama_params params = {.path = in_root(name), .ref = ref};
    assert_fails(tkv_llama_tree_read(&params, &tree, &error), status, part);
    tkv_llama_tree_free(&tree);
}

static const tkv_llama_snapshot *chosen(const tkv_llama_tree *tree)
{
    return &tree->snapshots[tree->chosen];
}

static const tkv_evidence *find_item(const tkv_source_report *report, tkv_evidence_kind kind,
                                     const char *name)
{
    for (int i = 0; i < report->n_items; i++) {
        if (report->items[i].kind == kind && strcmp(report->items[i].name, name) == 0) {
            return &report->items[i];
        }
    }
    return NULL;
}

static const tkv_llama_backend *find_backend(const tkv_llama_snapshot *snapshot, const char *name)
{
    for (int i = 0; i < snapshot->n_backends; i++) {
        if (strcmp(snapshot->backends[i].name, name) == 0) {
            return &snapshot->backends[i];
        }
    }
    fail_msg("no back end %s", name);
    return NULL;
}

static bool is_said(int n, const char texts[][TKV_LLAMA_TEXT], const char *part)
{
    bool is_there = false;
    for (int i = 0; i < n; i++) {
        is_there = is_there || strstr(texts[i], part);
    }
    return is_there;
}

static void sources_are_read_as_code(void **state)
{
    (void)state;
    static const char text[] =
        "// kernel void kernel_turbo_commented(int x) { }\n"
        "/* turbo\n   TURBO */ int x; // Turbo is not counted\n" ALL
        "const char *s = \"kernel void kernel_turbo_quoted(int x) { }\";\n"
        "void use(void) { const char *e = getenv(\"TURBO_FORCE\"); turbo_called(1); }\n"
        "DECL_FATTN_VEC_CASE( 64, GGML_TYPE_TURBO4_0, GGML_TYPE_Q8_0);\n"
        "static __global__ void __launch_bounds__(64) k_set_rows_turbo4(const float * x) {}\n"
        "if (t == GGML_TYPE_TURBO2_0) { y = other[turbo]; }\n" TYPES "last turbo without newline";
    tkv_source_report r;
    assert_ok(tkv_source_scan(text, sizeof text - 1, &turbo, &r, &error));
    assert_int_equal(r.n_lines, 22);
    assert_int_equal(r.n_mentions, 19);
    assert_null(find_item(&r, TKV_EVIDENCE_KERNEL, "kernel_turbo_commented"));
    assert_null(find_item(&r, TKV_EVIDENCE_KERNEL, "kernel_turbo_quoted"));
    assert_null(find_item(&r, TKV_EVIDENCE_FUNCTION, "turbo_called"));
    assert_non_null(find_item(&r, TKV_EVIDENCE_SWITCH, "TURBO_FORCE"));
    assert_non_null(find_item(&r, TKV_EVIDENCE_TYPE, "turbo2"));
    assert_non_null(find_item(&r, TKV_EVIDENCE_FUNCTION, "turbo_fwht_128"));
    assert_int_equal(find_item(&r, TKV_EVIDENCE_KERNEL, "kernel_turbo_wht")->role,
                     TKV_LLAMA_ROTATE);
    assert_int_equal(find_item(&r, TKV_EVIDENCE_KERNEL, "k_set_rows_turbo4")->role,
                     TKV_LLAMA_SET_ROWS);
    const tkv_evidence *attention =
        find_item(&r, TKV_EVIDENCE_KERNEL, "kernel_flash_attn_ext_vec_kturbo2_vturbo2_dk128_dv96");
    assert_non_null(attention);
    assert_string_equal(attention->type_k, "turbo2");
    assert_int_equal(attention->dim_k, 128);
    assert_int_equal(attention->dim_v, 96);
    attention = find_item(&r, TKV_EVIDENCE_KERNEL, "flash_attn_kturbo4_vq8_0_dk64_dv64");
    assert_non_null(attention);
    assert_string_equal(attention->type_v, "q8_0");
    const tkv_evidence *book = find_item(&r, TKV_EVIDENCE_CODEBOOK, "turbo_centroids_2bit");
    assert_int_equal(book->n_values, 4);
    assert_true(fabsf(book->values[0] + 0.133503f) < 1e-7f);
    assert_int_equal(find_item(&r, TKV_EVIDENCE_MIDPOINTS, "turbo_mid_2bit")->n_values, 3);
    tkv_source_report_free(&r);
}

static void broken_sources_do_no_harm(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "turbo",
                                        "/* turbo",
                                        "\"turbo",
                                        "'turbo",
                                        "turbo(",
                                        "turbo_centroids[",
                                        "turbo_centroids[4] = {",
                                        "turbo_centroids[4] = {1, 2",
                                        "turbo_centroids[4] = {-",
                                        "host_name(\"turbo",
                                        "getenv(\"turbo\\",
                                        "GGML_TYPE_TURBO2_0 =",
                                        "turbo 1e",
                                        "turbo .5e-",
                                        "turbo/",
                                        "turbo/*",
                                        "FATTN(GGML_TYPE_TURBO2_0"};
    tkv_source_report r;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        /* Without a NUL behind it, so that a sanitizer sees a byte too many. */
        const size_t n = strlen(texts[i]);
        char *text = allocate(n + 1);
        memcpy(text, texts[i], n);
        char *exact = n ? realloc(text, n) : text;
        assert_ok(tkv_source_scan(exact, n, &turbo, &r, &error));
        tkv_source_report_free(&r);
        assert_ok(tkv_binary_scan(exact, n, &turbo, &r, &error));
        tkv_source_report_free(&r);
        free(exact);
    }
    /* Brackets without end, and more names than there can be. */
    const size_t n = 1 << 20;
    char *text = allocate(n);
    for (size_t i = 0; i + 12 <= n; i += 12) {
        char name[16];
        snprintf(name, sizeof name, "turbo%05zx%s", i / 12, i < n / 2 ? "((" : "[]");
        memcpy(text + i, name, 12);
    }
    assert_ok(tkv_source_scan(text, n, &turbo, &r, &error));
    tkv_source_report_free(&r);
    free(text);
}

/* Means of n equally likely bins of a Gaussian: where Lloyd's iteration starts, not where it
 * ends. */
static void equiprobable_levels(int n, double *levels)
{
    double low = -8.0;
    for (int i = 0; i < n; i++) {
        double high = i == n - 1 ? 8.0 : 0.0;
        double left = -8.0;
        double right = 8.0;
        for (int k = 0; i < n - 1 && k < 60; k++) {
            high = 0.5 * (left + right);
            *(0.5 * erfc(-high / sqrt(2.0)) < (i + 1.0) / n ? &left : &right) = high;
        }
        levels[i] = n * (exp(-0.5 * low * low) - exp(-0.5 * high * high)) / sqrt(2.0 * acos(-1.0));
        low = high;
    }
}

static void unconverged_tables_are_found(void **state)
{
    (void)state;
    assert_true(fabs(tkv_codebook_best_error(2) - (1.0 - 2.0 / acos(-1.0))) < 1e-9);
    assert_true(fabs(tkv_codebook_best_error(4) - 0.117482) < 1e-5);
    assert_true(fabs(tkv_codebook_best_error(8) - 0.034548) < 1e-5);
    assert_true(fabs(tkv_codebook_best_error(16) - 0.009501) < 1e-5);
    double levels[16];
    equiprobable_levels(16, levels);
    assert_true(fabs(tkv_codebook_error(16, levels) - 0.0203) < 5e-5);

    char table[1024];
    size_t used =
        (size_t)snprintf(table, sizeof table, ALL "constant half turbo_centroids_4bit[16] = {");
    for (int i = 0; i < 16; i++) {
        used +=
            (size_t)snprintf(table + used, sizeof table - used, "%.6fh, ", levels[i] / sqrt(128.0));
    }
    snprintf(table + used, sizeof table - used, "};\nconstant float turbo_mid_2bit_x[1] = {0};\n");
    write_source("tables", METAL, table);
    write_source("tables", HEADER, TYPES);
    tkv_llama_tree tree = read_tree("tables", NULL);
    const tkv_llama_snapshot *s = chosen(&tree);
    assert_true(s->proceeds);
    assert_int_equal(s->n_warnings, 1);
    assert_true(is_said(s->n_warnings, s->warnings, "turbo_centroids_4bit is not converged"));
    assert_true(is_said(s->n_warnings, s->warnings, "0.0203"));
    assert_true(is_said(s->n_warnings, s->warnings, "0.0095"));
    tkv_llama_tree_free(&tree);

    write_source("tables", METAL,
                 "constant float turbo_centroids_1bit[2] = {-0.0705f, 0.0705f};\n"
                 "constant float turbo_mid_1bit[1] = {0.01f};\n");
    tree = read_tree("tables", NULL);
    assert_true(is_said(chosen(&tree)->n_warnings, chosen(&tree)->warnings, "not halfway"));
    tkv_llama_tree_free(&tree);
}

static void a_complete_tree_proceeds(void **state)
{
    (void)state;
    write_source("complete", METAL, ALL);
    write_source("complete", HEADER, TYPES);
    write_source("complete", "ggml/src/ggml-metal/ggml-metal-device.m",
                 "void f(void) { getenv(\"TURBO_SWITCH\"); }\n");
    write_source("complete", "ggml/src/ggml-cpu/ops.cpp", "void plain(void) {}\n");
    write_source("complete", "build/CMakeCache.txt", "");
    write_source("complete", "build/copy.metal", "kernel void kernel_turbo_copy(int x) {}\n");
    tkv_llama_tree tree = read_tree("complete", NULL);
    const tkv_llama_snapshot *s = chosen(&tree);
    assert_int_equal(tree.kind, TKV_LLAMA_SOURCES);
    assert_true(s->proceeds);
    assert_int_equal(s->n_files, 4);
    assert_int_equal(s->n_found, 3);
    assert_int_equal(s->n_missing, 0);
    assert_int_equal(s->n_warnings, 0);
    const tkv_llama_backend *metal = find_backend(s, "metal");
    assert_string_equal(metal->types, "turbo2");
    assert_non_null(find_item(&metal->evidence, TKV_EVIDENCE_SWITCH, "TURBO_SWITCH"));
    assert_false(find_backend(s, "cpu")->is_complete);
    tkv_llama_tree_free(&tree);
}

static void what_is_missing_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *metal;
        const char *header;
        const char *missing;
    } cases[] = {
        {TABLES ROTATION DEQUANTISE ATTENTION, TYPES, "no set-rows kernel"},
        {TABLES SET_ROWS DEQUANTISE ATTENTION, TYPES, "no Walsh-Hadamard rotation"},
        {TABLES ROTATION SET_ROWS ATTENTION, TYPES, "nothing that dequantises"},
        {TABLES ROTATION SET_ROWS DEQUANTISE, TYPES, "no flash attention kernel"},
        {ALL, "enum ggml_type { GGML_TYPE_Q8_0 = 8 };\n", "declares no compressed type"},
        {TABLES ROTATION DEQUANTISE ATTENTION "kernel void kernel_set_rows_turbo3(int x) {}\n",
         TYPES, "both encoded and attended on"},
        {"kernel void kernel_soft_max(int x) {}\n", "enum ggml_type { GGML_TYPE_Q8_0 = 8 };\n",
         "none of 2 files read has a type"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_source("part", METAL, cases[i].metal);
        write_source("part", HEADER, cases[i].header);
        tkv_llama_tree tree = read_tree("part", NULL);
        const tkv_llama_snapshot *s = chosen(&tree);
        assert_false(s->proceeds);
        if (!is_said(s->n_missing, s->missing, cases[i].missing)) {
            fail_msg("case %zu does not say '%s'", i, cases[i].missing);
        }
        tkv_llama_tree_free(&tree);
    }
    /* What the host says of kernels is none. */
    write_source("host", "ggml/src/ggml-metal/ggml-metal-device.m", ALL);
    write_source("host", HEADER, TYPES);
    tkv_llama_tree tree = read_tree("host", NULL);
    assert_false(chosen(&tree)->proceeds);
    tkv_llama_tree_free(&tree);
}

#ifdef TKV_HAVE_LIBGIT2
/* Commits a shader and the header with types to a branch. */
static void commit(git_repository *repository, const char *branch, const char *metal)
{
    git_index *index = NULL;
    git_oid id;
    git_tree *files = NULL;
    git_signature *author = NULL;
    char ref[128];
    const char *const texts[] = {metal, TYPES};
    const char *const paths[] = {METAL, HEADER};
    assert_int_equal(git_repository_index(&index, repository), 0);
    git_index_clear(index);
    for (int i = 0; i < 2; i++) {
        git_index_entry entry = {.mode = GIT_FILEMODE_BLOB, .path = paths[i]};
        assert_int_equal(git_index_add_from_buffer(index, &entry, texts[i], strlen(texts[i])), 0);
    }
    assert_int_equal(git_index_write_tree(&id, index), 0);
    assert_int_equal(git_tree_lookup(&files, repository, &id), 0);
    assert_int_equal(git_signature_new(&author, "a", "a@b.c", 1700000000, 0), 0);
    snprintf(ref, sizeof ref, "refs/%s", branch);
    assert_int_equal(git_commit_create_v(&id, repository, ref, author, author, NULL, "x", files, 0),
                     0);
    git_signature_free(author);
    git_tree_free(files);
    git_index_free(index);
}

static git_repository *make_repository(const char *name, bool is_bare)
{
    git_repository *repository = NULL;
    assert_int_equal(git_repository_init(&repository, in_root(name), is_bare), 0);
    assert_int_equal(git_repository_set_head(repository, "refs/heads/main"), 0);
    return repository;
}

static void every_branch_is_looked_at(void **state)
{
    (void)state;
    git_repository *repository = make_repository("bare.git", true);
    commit(repository, "heads/main", "kernel void kernel_soft_max(int x) {}\n");
    commit(repository, "heads/experiment/turbo", ALL);
    commit(repository, "remotes/origin/old", TABLES);
    commit(repository, "tags/v1", ALL);
    git_repository_free(repository);
    tkv_llama_tree tree = read_tree("bare.git", NULL);
    assert_int_equal(tree.kind, TKV_LLAMA_BARE_REPOSITORY);
    assert_int_equal(tree.n_snapshots, 3);
    assert_string_equal(tree.snapshots[0].name, "main");
    assert_false(tree.snapshots[0].proceeds);
    assert_true(chosen(&tree)->proceeds);
    assert_true(chosen(&tree)->is_experiment);
    assert_string_equal(chosen(&tree)->name, "experiment/turbo");
    assert_int_equal(strlen(chosen(&tree)->commit), 40);
    assert_non_null(chosen(&tree)->found);
    assert_null(tree.snapshots[0].found);
    tkv_llama_tree_free(&tree);

    /* One revision; experiments are still named. */
    tree = read_tree("bare.git", "main");
    assert_false(chosen(&tree)->proceeds);
    assert_int_equal(tree.n_snapshots, 2);
    assert_string_equal(tree.snapshots[1].name, "experiment/turbo");
    assert_int_equal(tree.snapshots[1].n_files, 0);
    tkv_llama_tree_free(&tree);
    tree = read_tree("bare.git", "v1");
    assert_true(chosen(&tree)->proceeds);
    tkv_llama_tree_free(&tree);
    assert_refused("bare.git", "v2", TKV_ERR_INVALID_ARGUMENT, "no revision 'v2'");
    assert_refused("bare.git", "v2", TKV_ERR_INVALID_ARGUMENT, "main, ");
}

static void a_clone_has_a_working_tree(void **state)
{
    (void)state;
    git_repository *repository = make_repository("clone", false);
    assert_refused("clone", NULL, TKV_ERR_FORMAT, "without a commit");
    commit(repository, "heads/main", "kernel void kernel_soft_max(int x) {}\n");
    git_repository_free(repository);
    write_source("clone", METAL, ALL);
    write_source("clone", HEADER, TYPES);
    tkv_llama_tree tree = read_tree("clone", NULL);
    assert_int_equal(tree.kind, TKV_LLAMA_REPOSITORY);
    assert_int_equal(tree.n_snapshots, 2);
    assert_string_equal(chosen(&tree)->name, "working tree");
    assert_true(chosen(&tree)->proceeds);
    tkv_llama_tree_free(&tree);
    tree = read_tree("clone", "HEAD");
    assert_false(chosen(&tree)->proceeds);
    tkv_llama_tree_free(&tree);
    /* Somebody else's repository may be looked at. */
    char command[256];
    if (geteuid() == 0) {
        snprintf(command, sizeof command, "chown -R 65534 %s/clone", root);
        assert_int_equal(system(command), 0);
        tree = read_tree("clone", "main");
        tkv_llama_tree_free(&tree);
    }
    /* Objects that are gone are counted, not believed. */
    snprintf(command, sizeof command, "rm -rf %s/clone/.git/objects/[0-8]*", root);
    assert_int_equal(system(command), 0);
    const tkv_llama_params params = {.path = in_root("clone"), .ref = "HEAD"};
    if (tkv_llama_tree_read(&params, &tree, NULL) == TKV_OK) {
        assert_false(chosen(&tree)->proceeds);
    }
    tkv_llama_tree_free(&tree);
}

static void repositories_of_an_unknown_format_are_refused(void **state)
{
    (void)state;
    git_repository_free(make_repository("strange", false));
    write_source("strange", ".git/config", "[core]\nrepositoryformatversion = 9\n");
    assert_refused("strange", NULL, TKV_ERR_FORMAT, "version");
}
#else
static void without_libgit2_repositories_are_refused(void **state)
{
    (void)state;
    write_source("clone", METAL, ALL);
    write_source("clone", HEADER, TYPES);
    write_source("clone", ".git/HEAD", "ref: refs/heads/main\n");
    assert_refused("clone", NULL, TKV_ERR_UNSUPPORTED, "built without libgit2");
    assert_refused("clone", "main", TKV_ERR_UNSUPPORTED, "install-dependencies git");
    /* A work tree of another repository, or a submodule. */
    write_source("linked", METAL, ALL);
    write_source("linked", ".git", "gitdir: ../clone/.git\n");
    assert_refused("linked", NULL, TKV_ERR_UNSUPPORTED, "is a git repository");
    write_source("bare.git", "HEAD", "ref: refs/heads/main\n");
    write_source("bare.git", "objects/info/packs", "");
    write_source("bare.git", "refs/heads/main", "");
    assert_refused("bare.git", NULL, TKV_ERR_UNSUPPORTED, "is a git repository");
}
#endif

static void directories_without_llama_are_refused(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_root("empty"), 0755), 0);
    assert_refused("empty", NULL, TKV_ERR_FORMAT, "holds nothing of llama.cpp");
    assert_refused("empty", "main", TKV_ERR_INVALID_ARGUMENT, "is not a git repository");
    assert_refused("nowhere", NULL, TKV_ERR_IO, "No such file");
    write_source("empty", "notes.txt", "turbo");
    assert_refused("empty", NULL, TKV_ERR_FORMAT, "holds nothing of llama.cpp");
    assert_refused("empty/notes.txt", NULL, TKV_ERR_IO, "is not a directory");
}

/* As somebody whom permissions bind: root may read everything. */
static void what_cannot_be_read_is_counted(void **state)
{
    (void)state;
    write_source("locked", METAL, ALL);
    write_source("locked", HEADER, TYPES);
    write_source("locked", "ggml/src/ggml-metal/locked.metal", "turbo");
    write_source("locked", "ggml/src/hidden/more.c", "turbo");
    write_source("locked", "ggml/src/huge.c", "turbo");
    write_bytes("locked", "ggml/src/binary.c", "\0\1\2turbo\0(\xff\xfe", 12);
    assert_int_equal(truncate(in_root("locked/ggml/src/huge.c"), TKV_LLAMA_MAX_SOURCE + 1), 0);
    assert_int_equal(mkfifo(in_root("locked/ggml/src/pipe.c"), 0644), 0);
    assert_int_equal(symlink("..", in_root("locked/ggml/src/loop")), 0);
    assert_int_equal(chmod(in_root("locked/ggml/src/ggml-metal/locked.metal"), 0), 0);
    assert_int_equal(chmod(in_root("locked/ggml/src/hidden"), 0), 0);
    const uid_t user = geteuid();
    assert_int_equal(user == 0 ? seteuid(65534) : 0, 0);
    tkv_llama_tree tree = read_tree("locked", NULL);
    assert_int_equal(seteuid(user), 0);
    assert_true(chosen(&tree)->proceeds);
    assert_int_equal(chosen(&tree)->n_unreadable, 2);
    assert_int_equal(chosen(&tree)->n_skipped, 1);
    assert_non_null(strstr(chosen(&tree)->trouble, "ermission denied"));
    tkv_llama_tree_free(&tree);

    assert_int_equal(chmod(in_root("locked"), 0), 0);
    assert_int_equal(user == 0 ? seteuid(65534) : 0, 0);
    assert_refused("locked", NULL, TKV_ERR_IO, "ermission denied");
    assert_int_equal(seteuid(user), 0);
    assert_int_equal(chmod(in_root("locked"), 0755), 0);
}

#define NAMES                                                                                      \
    "\1\2\0kernel_set_rows_turbo2_i32\0kernel_turbo_wht\0kernel_turbo2_dequant_f16\0"              \
    "kernel_flash_attn_ext_kturbo2_vturbo2_dk64_dv64\0TURBO_SPARSE_V\0\3"

static void installations_are_read(void **state)
{
    (void)state;
    static const char mangled[] = "\0_Z17k_set_rows_turbo2IiEvPKf\0_ZN4ggml11k_turbo_whtEv\0";
    write_bytes("prefix", "lib/default.metallib", NAMES, sizeof NAMES);
    write_bytes("prefix", "lib/libggml-cuda.so.0.9.4", mangled, sizeof mangled);
    write_source("prefix", "lib/libother.so", "kernel_set_rows_turbo9_i32");
    write_source("prefix", "include/ggml.h", TYPES);
    tkv_llama_tree tree = read_tree("prefix", NULL);
    const tkv_llama_snapshot *s = chosen(&tree);
    assert_int_equal(tree.kind, TKV_LLAMA_INSTALLATION);
    assert_true(s->proceeds);
    assert_int_equal(s->n_files, 3);
    const tkv_llama_backend *metal = find_backend(s, "metal");
    assert_non_null(find_item(&metal->evidence, TKV_EVIDENCE_SWITCH, "TURBO_SPARSE_V"));
    const tkv_llama_backend *cuda = find_backend(s, "cuda");
    assert_non_null(find_item(&cuda->evidence, TKV_EVIDENCE_KERNEL, "k_set_rows_turbo2"));
    assert_non_null(find_item(&cuda->evidence, TKV_EVIDENCE_KERNEL, "k_turbo_wht"));
    tkv_llama_tree_free(&tree);

    /* A library with its shaders as text in it. */
    char library[8192] = "\177ELF";
    memset(library + 16, ' ', 4000);
    memcpy(library + 100, ALL, sizeof ALL - 1);
    assert_int_equal(unlink(in_root("prefix/lib/default.metallib")), 0);
    write_bytes("prefix", "lib/libggml-metal.dylib", library, sizeof library);
    tree = read_tree("prefix", NULL);
    assert_true(chosen(&tree)->proceeds);
    assert_non_null(find_item(&find_backend(chosen(&tree), "metal")->evidence,
                              TKV_EVIDENCE_CODEBOOK, "turbo_centroids_2bit"));
    tkv_llama_tree_free(&tree);

    write_source("prefix", "lib/libggml-metal.dylib", "kernel_set_rows_q8_0");
    tree = read_tree("prefix", NULL);
    assert_false(chosen(&tree)->proceeds);
    assert_true(is_said(chosen(&tree)->n_missing, chosen(&tree)->missing, "no flash attention"));
    tkv_llama_tree_free(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sources_are_read_as_code),
        cmocka_unit_test(broken_sources_do_no_harm),
        cmocka_unit_test(unconverged_tables_are_found),
        cmocka_unit_test(a_complete_tree_proceeds),
        cmocka_unit_test(what_is_missing_is_named),
#ifdef TKV_HAVE_LIBGIT2
        cmocka_unit_test(every_branch_is_looked_at),
        cmocka_unit_test(a_clone_has_a_working_tree),
        cmocka_unit_test(repositories_of_an_unknown_format_are_refused),
#else
        cmocka_unit_test(without_libgit2_repositories_are_refused),
#endif
        cmocka_unit_test(directories_without_llama_are_refused),
        cmocka_unit_test(what_cannot_be_read_is_counted),
        cmocka_unit_test(installations_are_read),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
