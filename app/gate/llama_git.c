/* Reading the branches of a git repository with libgit2: it runs neither git nor anything that a
 * repository's configuration names, so that a repository need not be trusted to be looked at. */
#include "common/try.h"
#include "gate/llama_tree.h"

#include <git2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* Without memory it leaves an element without a table; its default is to end the process. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#define MAX_NAMES 512

/* What was found in a blob: most branches share most of their files. */
typedef struct known_blob {
    git_oid id;
    bool is_unreadable;
    bool is_large;
    tkv_source_report report;
    UT_hash_handle hh;
} known_blob;

typedef struct repository_walk {
    git_repository *repository;
    git_odb *objects;
    known_blob *blobs;
    const tkv_words *words;
    tkv_source_report *survey;    /* or NULL */
    tkv_llama_snapshot *snapshot; /* NULL in a survey */
    tkv_status status;
    tkv_error *error;
} repository_walk;

static tkv_status fail_with_git(tkv_status status, const char *what, tkv_error *error)
{
    const git_error *last = git_error_last();
    return tkv_fail(error, status, "%.160s: %.160s", what,
                    last ? last->message : "git gave no reason");
}

/* Of this folder only, not of one above it. Reading objects runs nothing, whoever owns them. */
static int open_repository(const char *path, git_repository **repository)
{
    git_libgit2_opts(GIT_OPT_SET_OWNER_VALIDATION, 0);
    return git_repository_open_ext(repository, path, GIT_REPOSITORY_OPEN_NO_SEARCH, NULL);
}

tkv_status tkv_llama_find_repository(const char *path, bool *is_repository, bool *is_bare,
                                     tkv_error *error)
{
    git_repository *repository = NULL;
    char git[4096];
    git_libgit2_init();
    const int code = open_repository(path, &repository);
    *is_repository = code == 0;
    /* A copy of a repository's own folder may not say that it is bare. */
    snprintf(git, sizeof git, "%.4000s/.git", path);
    *is_bare = *is_repository && access(git, F_OK) != 0;
    const tkv_status status =
        code == 0 || code == GIT_ENOTFOUND ? TKV_OK : fail_with_git(TKV_ERR_FORMAT, path, error);
    git_repository_free(repository);
    git_libgit2_shutdown();
    return status;
}

static tkv_status scan_blob(repository_walk *w, known_blob *known)
{
    size_t size = 0;
    git_object_t type;
    git_odb_object *object = NULL;
    tkv_status status = TKV_OK;
    if (git_odb_read_header(&size, &type, w->objects, &known->id) != 0) {
        known->is_unreadable = true;
    } else if (size > TKV_LLAMA_MAX_SOURCE) {
        known->is_large = true;
    } else if (git_odb_read(&object, w->objects, &known->id) != 0) {
        known->is_unreadable = true;
    } else {
        const char *text = git_odb_object_data(object);
        status = w->survey ? tkv_source_survey(text, size, w->survey, w->error)
                           : tkv_source_scan(text, size, w->words, &known->report, w->error);
        git_odb_object_free(object);
    }
    return status;
}

static known_blob *find_blob(repository_walk *w, const git_oid *id)
{
    known_blob *known = NULL;
    HASH_FIND(hh, w->blobs, id, sizeof *id, known);
    if (known) {
        return known;
    }
    known = calloc(1, sizeof *known);
    if (!known) {
        w->status = tkv_fail(w->error, TKV_ERR_OUT_OF_MEMORY, "no memory for a file");
        return NULL;
    }
    git_oid_cpy(&known->id, id);
    w->status = scan_blob(w, known);
    if (w->status != TKV_OK) {
        free(known);
        return NULL;
    }
    HASH_ADD(hh, w->blobs, id, sizeof known->id, known);
    if (!known->hh.tbl) {
        w->status = tkv_fail(w->error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of files");
        tkv_source_report_free(&known->report);
        free(known);
        return NULL;
    }
    return known;
}

static int look_at_entry(const char *folder, const git_tree_entry *entry, void *user)
{
    repository_walk *w = user;
    char path[4096];
    const char *name = git_tree_entry_name(entry);
    if (git_tree_entry_type(entry) != GIT_OBJECT_BLOB || !tkv_llama_is_source(name) ||
        git_tree_entry_filemode(entry) == GIT_FILEMODE_LINK) {
        return 0;
    }
    snprintf(path, sizeof path, "%s%s", folder, name);
    const known_blob *known = find_blob(w, git_tree_entry_id(entry));
    if (!known) {
        return -1;
    }
    if (w->survey) {
        return 0;
    }
    if (known->is_unreadable || known->is_large) {
        tkv_llama_snapshot_skip(w->snapshot, path, known->is_unreadable,
                                known->is_large ? "too large" : "is not in the repository");
    } else {
        w->status = tkv_llama_snapshot_add(w->snapshot, path, &known->report, w->error);
    }
    return w->status == TKV_OK ? 0 : -1;
}

/* Reads what a commit holds and adds it to the tree. */
static tkv_status add_commit(repository_walk *w, git_object *object, const char *name,
                             tkv_llama_tree *tree)
{
    git_object *files = NULL;
    tkv_llama_snapshot snapshot = {.words = w->words};
    char what[256];
    snprintf(snapshot.name, sizeof snapshot.name, "%s", name);
    git_oid_tostr(snapshot.commit, sizeof snapshot.commit, git_object_id(object));
    snapshot.is_experiment = tkv_name_contains(name, "experiment");
    snprintf(what, sizeof what, "cannot read %.200s", name);
    if (git_object_peel(&files, object, GIT_OBJECT_TREE) != 0) {
        return fail_with_git(TKV_ERR_FORMAT, what, w->error);
    }
    w->snapshot = &snapshot;
    w->status = TKV_OK;
    const int code = git_tree_walk((git_tree *)files, GIT_TREEWALK_PRE, look_at_entry, w);
    git_object_free(files);
    if (code != 0) {
        tkv_llama_snapshot_free(&snapshot);
        return w->status != TKV_OK ? w->status : fail_with_git(TKV_ERR_FORMAT, what, w->error);
    }
    if (w->survey) {
        return TKV_OK;
    }
    tkv_llama_decide(&snapshot);
    return tkv_llama_tree_add(tree, &snapshot, w->error);
}

/* Names of all branches, the current one first; the caller frees them with git_strarray_free. */
static tkv_status list_branches(git_repository *repository, char ***names, int *n, tkv_error *error)
{
    git_branch_iterator *iterator = NULL;
    git_reference *branch = NULL;
    git_branch_t type;
    int capacity = 0;
    tkv_status status = TKV_OK;
    if (git_branch_iterator_new(&iterator, repository, GIT_BRANCH_ALL) != 0) {
        return fail_with_git(TKV_ERR_FORMAT, "cannot list the branches", error);
    }
    while (status == TKV_OK && git_branch_next(&branch, &type, iterator) == 0) {
        const bool is_alias = git_reference_type(branch) == GIT_REFERENCE_SYMBOLIC;
        if (!is_alias && *n == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            char **longer = realloc(*names, (size_t)capacity * sizeof **names);
            *names = longer ? longer : *names;
            capacity = longer ? capacity : *n;
        }
        char *name = !is_alias && *n < capacity ? strdup(git_reference_name(branch)) : NULL;
        if (name) {
            (*names)[(*n)++] = name;
            if (git_branch_is_head(branch) == 1) {
                (*names)[*n - 1] = (*names)[0];
                (*names)[0] = name;
            }
        } else if (!is_alias) {
            status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d branches", *n);
        }
        git_reference_free(branch);
    }
    git_branch_iterator_free(iterator);
    return status;
}

static const char *short_name(const char *name)
{
    const bool is_local = strncmp(name, "refs/heads/", 11) == 0;
    const bool is_remote = strncmp(name, "refs/remotes/", 13) == 0;
    return name + (is_local ? 11 : is_remote ? 13 : 0);
}

/* Says which revisions there are. */
static tkv_status fail_without_ref(const char *ref, char **names, int n, tkv_error *error)
{
    char list[MAX_NAMES] = "";
    size_t used = 0;
    for (int i = 0; i < n && used + 64 < 200; i++) {
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%.60s", i ? ", " : "",
                                 short_name(names[i]));
    }
    return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                    "the repository has no revision '%.60s': expected a commit, a tag or one of %d "
                    "branches (%s%s)",
                    ref, n, list, n > 0 && used + 64 >= 200 ? ", ..." : "");
}

static tkv_status add_ref(repository_walk *w, const tkv_llama_params *params, char **names, int n,
                          tkv_llama_tree *tree)
{
    git_object *object = NULL;
    if (git_revparse_single(&object, w->repository, params->ref) != 0) {
        return fail_without_ref(params->ref, names, n, w->error);
    }
    const tkv_status status = add_commit(w, object, params->ref, tree);
    git_object_free(object);
    return status;
}

/* All branches; where none is (a detached HEAD only), what HEAD is at. */
static tkv_status add_branches(repository_walk *w, const tkv_llama_params *params, char **names,
                               int n, tkv_llama_tree *tree)
{
    tkv_status status = TKV_OK;
    git_object *object = NULL;
    for (int i = 0; i < n && status == TKV_OK; i++) {
        if (params->progress) {
            params->progress(params->progress_user, i, n);
        }
        if (git_revparse_single(&object, w->repository, names[i]) == 0) {
            status = add_commit(w, object, short_name(names[i]), tree);
            git_object_free(object);
        } else {
            status = fail_with_git(TKV_ERR_FORMAT, names[i], w->error);
        }
    }
    if (n == 0 && git_revparse_single(&object, w->repository, "HEAD") == 0) {
        status = add_commit(w, object, "HEAD", tree);
        git_object_free(object);
    }
    return status == TKV_OK && tree->n_snapshots == 0 && !w->survey
               ? tkv_fail(w->error, TKV_ERR_FORMAT, "%.200s is a git repository without a commit",
                          params->path)
               : status;
}

/* Experiments are named also where only one revision is looked at. */
static tkv_status name_experiments(char **names, int n, tkv_llama_tree *tree, tkv_error *error)
{
    for (int i = 0; i < n; i++) {
        tkv_llama_snapshot snapshot = {.is_experiment = true, .n_files = 0};
        if (tkv_name_contains(names[i], "experiment")) {
            snprintf(snapshot.name, sizeof snapshot.name, "%s", short_name(names[i]));
            TKV_TRY(tkv_llama_tree_add(tree, &snapshot, error));
        }
    }
    return TKV_OK;
}

static void free_blobs(repository_walk *w)
{
    known_blob *known;
    known_blob *next;
    HASH_ITER(hh, w->blobs, known, next)
    {
        HASH_DEL(w->blobs, known);
        tkv_source_report_free(&known->report);
        free(known);
    }
}

tkv_status tkv_llama_read_repository(const tkv_llama_params *params, tkv_llama_tree *tree,
                                     tkv_error *error)
{
    repository_walk w = {.words = &tree->words, .survey = params->survey, .error = error};
    char **names = NULL;
    int n = 0;
    tkv_status status = TKV_OK;
    git_libgit2_init();
    if (open_repository(params->path, &w.repository) != 0 ||
        git_repository_odb(&w.objects, w.repository) != 0) {
        status = fail_with_git(TKV_ERR_FORMAT, params->path, error);
    }
    if (status == TKV_OK) {
        status = list_branches(w.repository, &names, &n, error);
    }
    if (status == TKV_OK && params->ref) {
        status = add_ref(&w, params, names, n, tree);
        status =
            status == TKV_OK && !params->survey ? name_experiments(names, n, tree, error) : status;
    } else if (status == TKV_OK) {
        status = add_branches(&w, params, names, n, tree);
    }
    for (int i = 0; i < n; i++) {
        free(names[i]);
    }
    free(names);
    free_blobs(&w);
    git_odb_free(w.objects);
    git_repository_free(w.repository);
    git_libgit2_shutdown();
    return status;
}
