#include "gate/llama_tree.h"

#include "common/try.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *tkv_llama_role_name(tkv_llama_role role)
{
    static const char *const names[] = {"set-rows", "Walsh-Hadamard", "dequantise",
                                        "flash attention", "other"};
    return names[role];
}

const char *tkv_llama_kind_name(tkv_llama_kind kind)
{
    static const char *const names[] = {"source tree", "git repository", "bare git repository",
                                        "installation"};
    return names[kind];
}

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool ends_with(const char *path, const char *const *endings)
{
    const size_t length = strlen(path);
    for (; *endings; endings++) {
        const size_t n = strlen(*endings);
        if (length > n && strcmp(path + length - n, *endings) == 0) {
            return true;
        }
    }
    return false;
}

bool tkv_llama_is_source(const char *path)
{
    static const char *const endings[] = {".c",    ".h",    ".cc", ".cpp",  ".hpp",
                                          ".m",    ".mm",   ".cu", ".cuh",  ".metal",
                                          ".comp", ".glsl", ".cl", ".wgsl", NULL};
    return ends_with(path, endings);
}

bool tkv_llama_is_installed(const char *path, bool *is_binary)
{
    static const char *const libraries[] = {".so", ".dylib", ".a", NULL};
    static const char *const texts[] = {".metal", ".h", NULL};
    static const char *const shaders[] = {".metallib", NULL};
    const char *base = base_of(path);
    const bool is_theirs = strncmp(base, "libggml", 7) == 0 || strncmp(base, "libllama", 8) == 0;
    const bool is_header = strncmp(base, "ggml", 4) == 0 || strncmp(base, "llama", 5) == 0;
    *is_binary = ends_with(path, shaders) ||
                 (is_theirs && (ends_with(path, libraries) || strstr(base, ".so.")));
    return *is_binary || (is_header && ends_with(path, texts));
}

static bool is_backend(const char *name)
{
    static const char *const known[] = {"metal",  "cuda",    "hip",    "musa", "vulkan",
                                        "cpu",    "sycl",    "opencl", "cann", "blas",
                                        "webgpu", "kompute", NULL};
    const char *const *k = known;
    while (*k && strcmp(*k, name) != 0) {
        k++;
    }
    return *k != NULL;
}

/* The back end that a file belongs to, by a folder or file "ggml-NAME", or its ending. */
static void find_backend(const char *path, char name[16])
{
    static const struct {
        const char *ending;
        const char *backend;
    } known[] = {{".metal", "metal"}, {".metallib", "metal"}, {".cu", "cuda"},  {".cuh", "cuda"},
                 {".comp", "vulkan"}, {".glsl", "vulkan"},    {".cl", "opencl"}};
    for (const char *at = path; (at = strstr(at, "ggml-")); at += 5) {
        const size_t length = strspn(at + 5, "abcdefghijklmnopqrstuvwxyz");
        snprintf(name, 16, "%.*s", (int)length, at + 5);
        if (is_backend(name)) {
            return;
        }
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (ends_with(path, (const char *const[]){known[i].ending, NULL})) {
            snprintf(name, 16, "%s", known[i].backend);
            return;
        }
    }
    const char *base = base_of(path);
    const bool is_cpu = strncmp(base, "ggml-", 5) == 0 && strstr(base, "quant");
    snprintf(name, 16, "%s", is_cpu ? "cpu" : "shared");
}

/* What the host side of a GPU back end says of kernels is no kernel. */
static bool is_host_side(const char *path, const char *backend)
{
    static const char *const endings[] = {".c", ".cpp", ".m", ".mm", NULL};
    const bool has_own_language = strcmp(backend, "metal") == 0 || strcmp(backend, "cuda") == 0;
    return has_own_language && ends_with(path, endings);
}

static tkv_llama_backend *find_or_add(tkv_llama_snapshot *snapshot, const char *name)
{
    for (int i = 0; i < snapshot->n_backends; i++) {
        if (strcmp(snapshot->backends[i].name, name) == 0) {
            return &snapshot->backends[i];
        }
    }
    if (snapshot->n_backends == TKV_LLAMA_MAX_BACKENDS) {
        return NULL;
    }
    tkv_llama_backend *backend = &snapshot->backends[snapshot->n_backends++];
    *backend = (tkv_llama_backend){.is_complete = false};
    snprintf(backend->name, sizeof backend->name, "%s", name);
    return backend;
}

static tkv_status add_found(tkv_llama_snapshot *snapshot, const char *path,
                            const tkv_source_report *report, tkv_error *error)
{
    if (snapshot->n_found == snapshot->capacity) {
        const int capacity = snapshot->capacity ? 2 * snapshot->capacity : 64;
        tkv_llama_file *found = realloc(snapshot->found, (size_t)capacity * sizeof *found);
        if (!found) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d files", capacity);
        }
        snapshot->found = found;
        snapshot->capacity = capacity;
    }
    tkv_llama_file *file = &snapshot->found[snapshot->n_found];
    *file = (tkv_llama_file){strdup(path), report->n_lines, report->n_mentions};
    if (!file->path) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a file's name");
    }
    snapshot->n_found++;
    return TKV_OK;
}

/* Everything but what a host says of kernels. */
static tkv_status merge_host_side(const tkv_source_report *report, tkv_source_report *to,
                                  tkv_error *error)
{
    for (int i = 0; i < report->n_items; i++) {
        tkv_source_report one = {.n_items = 1, .items = &report->items[i]};
        const tkv_evidence_kind kind = report->items[i].kind;
        if (kind == TKV_EVIDENCE_SWITCH || kind == TKV_EVIDENCE_TYPE) {
            TKV_TRY(tkv_report_merge(&one, to, error));
        }
    }
    return TKV_OK;
}

/* A shader is a kernel that is named by its file. */
static tkv_status add_shader(const char *path, const tkv_words *words, tkv_source_report *to,
                             tkv_error *error)
{
    tkv_evidence item = {.kind = TKV_EVIDENCE_KERNEL};
    const char *base = base_of(path);
    snprintf(item.name, sizeof item.name, "%.*s", (int)strcspn(base, "."), base);
    item.role = tkv_role_of_name(item.name);
    return tkv_has_any_word(item.name, strlen(item.name), words) ? tkv_report_add(to, &item, error)
                                                                 : TKV_OK;
}

tkv_status tkv_llama_snapshot_add(tkv_llama_snapshot *snapshot, const char *path,
                                  const tkv_source_report *report, tkv_error *error)
{
    char name[16];
    snapshot->n_files++;
    find_backend(path, name);
    tkv_llama_backend *backend = find_or_add(snapshot, name);
    tkv_status status = TKV_OK;
    if (report->n_mentions > 0) {
        snapshot->n_mentions += report->n_mentions;
        snapshot->n_metal_mentions += strcmp(name, "metal") == 0 ? report->n_mentions : 0;
        status = add_found(snapshot, path, report, error);
    }
    if (status != TKV_OK || !backend) {
        return status;
    }
    backend->evidence.n_lines += report->n_lines;
    backend->evidence.n_mentions += report->n_mentions;
    if (ends_with(path, (const char *const[]){".comp", NULL})) {
        status = add_shader(path, snapshot->words, &backend->evidence, error);
    }
    if (status == TKV_OK) {
        status = is_host_side(path, name) ? merge_host_side(report, &backend->evidence, error)
                                          : tkv_report_merge(report, &backend->evidence, error);
    }
    return status;
}

void tkv_llama_snapshot_skip(tkv_llama_snapshot *snapshot, const char *path, bool is_unreadable,
                             const char *reason)
{
    *(is_unreadable ? &snapshot->n_unreadable : &snapshot->n_skipped) += 1;
    if (!snapshot->trouble[0]) {
        snprintf(snapshot->trouble, sizeof snapshot->trouble, "%.160s: %.80s", path, reason);
    }
}

static void free_evidence(tkv_llama_snapshot *snapshot)
{
    for (int i = 0; i < snapshot->n_found; i++) {
        free(snapshot->found[i].path);
    }
    free(snapshot->found);
    snapshot->found = NULL;
    snapshot->n_found = 0;
    snapshot->capacity = 0;
    for (int i = 0; i < snapshot->n_backends; i++) {
        tkv_source_report_free(&snapshot->backends[i].evidence);
    }
}

void tkv_llama_snapshot_free(tkv_llama_snapshot *snapshot)
{
    free_evidence(snapshot);
}

tkv_status tkv_llama_tree_add(tkv_llama_tree *tree, tkv_llama_snapshot *snapshot, tkv_error *error)
{
    if (tree->n_snapshots == tree->capacity) {
        const int capacity = tree->capacity ? 2 * tree->capacity : 8;
        tkv_llama_snapshot *snapshots =
            realloc(tree->snapshots, (size_t)capacity * sizeof *snapshots);
        if (!snapshots) {
            free_evidence(snapshot);
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d branches", capacity);
        }
        tree->snapshots = snapshots;
        tree->capacity = capacity;
    }
    tree->snapshots[tree->n_snapshots] = *snapshot;
    tkv_llama_snapshot *added = &tree->snapshots[tree->n_snapshots];
    added->words = NULL; /* the tree may be copied */
    tkv_llama_snapshot *chosen = &tree->snapshots[tree->chosen];
    if (tree->n_snapshots > 0 && added->proceeds && !chosen->proceeds) {
        free_evidence(chosen);
        tree->chosen = tree->n_snapshots;
    } else if (tree->n_snapshots > 0) {
        free_evidence(added);
    }
    tree->n_snapshots++;
    return TKV_OK;
}

void tkv_llama_tree_free(tkv_llama_tree *tree)
{
    for (int i = 0; i < tree->n_snapshots; i++) {
        free_evidence(&tree->snapshots[i]);
    }
    free(tree->snapshots);
    *tree = (tkv_llama_tree){.n_snapshots = 0};
}

static bool exists(const char *directory, const char *name)
{
    char path[4096];
    struct stat info;
    const int length = snprintf(path, sizeof path, "%s/%s", directory, name);
    return length < (int)sizeof path && stat(path, &info) == 0;
}

/* Sources are built by CMake or make; an installation has neither. */
static bool is_source_tree(const char *path)
{
    static const char *const marks[] = {"ggml/src", "src/ggml-metal",   "CMakeLists.txt",
                                        "Makefile", "ggml-metal.metal", "ggml.c",
                                        NULL};
    const char *const *mark = marks;
    while (*mark && !exists(path, *mark)) {
        mark++;
    }
    return *mark != NULL;
}

static tkv_status add_directory(const tkv_llama_params *params, tkv_llama_tree *tree,
                                const char *name, tkv_error *error)
{
    tkv_llama_snapshot snapshot = {.is_installation = tree->kind == TKV_LLAMA_INSTALLATION,
                                   .words = &tree->words};
    int n_known = 0;
    snprintf(snapshot.name, sizeof snapshot.name, "%s", name);
    tkv_status status = tkv_llama_read_directory(params->path, snapshot.is_installation, &snapshot,
                                                 &n_known, error);
    if (status == TKV_OK && n_known == 0 && tree->kind == TKV_LLAMA_REPOSITORY) {
        free_evidence(&snapshot); /* nothing is checked out */
        return TKV_OK;
    }
    if (status == TKV_OK && n_known == 0) {
        status = tkv_fail(error, TKV_ERR_FORMAT,
                          "%.200s holds nothing of llama.cpp: expected its sources, a git "
                          "repository of it, or an installation (lib/libggml*)",
                          params->path);
    }
    if (status != TKV_OK) {
        free_evidence(&snapshot);
        return status;
    }
    tkv_llama_decide(&snapshot);
    return tkv_llama_tree_add(tree, &snapshot, error);
}

/* The first look: which types of the tree are compressed ones, whatever they are called. */
static tkv_status find_words(const tkv_llama_params *params, tkv_llama_tree *tree, tkv_error *error)
{
    tkv_source_report survey = {0};
    tkv_llama_params first = *params;
    first.survey = &survey;
    tkv_status status = TKV_OK;
    if (tree->kind != TKV_LLAMA_BARE_REPOSITORY && !params->ref) {
        status = tkv_llama_survey_directory(params->path, tree->kind == TKV_LLAMA_INSTALLATION,
                                            &survey, error);
    }
    if (status == TKV_OK &&
        (tree->kind == TKV_LLAMA_REPOSITORY || tree->kind == TKV_LLAMA_BARE_REPOSITORY)) {
        status = tkv_llama_read_repository(&first, tree, error);
    }
    tkv_find_words(&survey, &tree->words);
    tkv_source_report_free(&survey);
    return status;
}

static tkv_status read_repository(const tkv_llama_params *params, tkv_llama_tree *tree,
                                  tkv_error *error)
{
    if (tree->kind == TKV_LLAMA_REPOSITORY && !params->ref) {
        TKV_TRY(add_directory(params, tree, "working tree", error));
    }
    return tkv_llama_read_repository(params, tree, error);
}

tkv_status tkv_llama_tree_read(const tkv_llama_params *params, tkv_llama_tree *tree,
                               tkv_error *error)
{
    struct stat info;
    bool is_bare = false;
    bool is_repository = false;
    *tree = (tkv_llama_tree){.n_snapshots = 0};
    if (stat(params->path, &info) != 0) {
        return tkv_fail(error, TKV_ERR_IO, "%.200s: %s", params->path, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) {
        return tkv_fail(error, TKV_ERR_IO, "%.200s is not a directory", params->path);
    }
    TKV_TRY(tkv_llama_find_repository(params->path, &is_repository, &is_bare, error));
    if (!is_repository && params->ref) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%.200s is not a git repository: a revision can only be had of one",
                        params->path);
    }
    tree->kind = is_repository ? is_bare ? TKV_LLAMA_BARE_REPOSITORY : TKV_LLAMA_REPOSITORY
                 : is_source_tree(params->path) ? TKV_LLAMA_SOURCES
                                                : TKV_LLAMA_INSTALLATION;
    TKV_TRY(find_words(params, tree, error));
    return is_repository
               ? read_repository(params, tree, error)
               : add_directory(params, tree,
                               tree->kind == TKV_LLAMA_SOURCES ? "source tree" : "installation",
                               error);
}
