/* The build without libgit2: repositories are recognised, but not read. */
#include "gate/llama_tree.h"

#include <stdio.h>
#include <sys/stat.h>

static bool has_entry(const char *path, const char *name)
{
    char entry[4096];
    struct stat info;
    snprintf(entry, sizeof entry, "%.4000s/%s", path, name);
    return stat(entry, &info) == 0;
}

tkv_status tkv_llama_find_repository(const char *path, bool *is_repository, bool *is_bare,
                                     tkv_error *error)
{
    const bool has_work_tree = has_entry(path, ".git");
    *is_bare = !has_work_tree && has_entry(path, "HEAD") && has_entry(path, "objects") &&
               has_entry(path, "refs");
    *is_repository = has_work_tree || *is_bare;
    return *is_repository
               ? tkv_fail(error, TKV_ERR_UNSUPPORTED,
                          "%.200s is a git repository, and this turbokv was built without libgit2, "
                          "which reads them: install it (scripts/install-dependencies git) and "
                          "build again, or give a folder of sources without .git",
                          path)
               : TKV_OK;
}

tkv_status tkv_llama_read_repository(const tkv_llama_params *params, tkv_llama_tree *tree,
                                     tkv_error *error)
{
    (void)tree;
    return tkv_fail(error, TKV_ERR_UNSUPPORTED, "%.200s: built without libgit2", params->path);
}
