/* The gate of a llama.cpp tree: whether a source tree, a git repository (every branch of it) or an
 * installation has what it takes to run compressed KV types on Metal. Nothing of the tree is run.
 */
#ifndef TKV_GATE_LLAMA_TREE_H
#define TKV_GATE_LLAMA_TREE_H

#include "gate/evidence.h"

#define TKV_LLAMA_MAX_BACKENDS 16
#define TKV_LLAMA_TEXT 256

/* A file that mentions what is looked for. */
typedef struct tkv_llama_file {
    char *path;
    int n_lines;
    int n_mentions;
} tkv_llama_file;

typedef struct tkv_llama_backend {
    char name[16];              /* "metal", "cuda", ...; "shared": what no back end owns */
    tkv_source_report evidence; /* its n_lines and n_mentions: of all its files together */
    bool has_role[TKV_LLAMA_ROLES];
    bool is_complete;           /* every role, and a type that is encoded and attended on */
    char types[TKV_LLAMA_TEXT]; /* such types, with commas */
} tkv_llama_backend;

/* One state of a tree. */
typedef struct tkv_llama_snapshot {
    char name[128];         /* a branch, a revision, "working tree", "installation" */
    char commit[41];        /* empty if there is none */
    const tkv_words *words; /* of the tree, while this is filled */
    bool is_experiment;
    bool is_installation;
    int n_files;   /* that were read */
    int n_skipped; /* too large */
    int n_unreadable;
    char trouble[TKV_LLAMA_TEXT]; /* the first of these */
    int n_mentions;
    int n_metal_mentions;
    int n_found; /* files that mention it */
    int capacity;
    tkv_llama_file *found; /* [n_found]; NULL once only the summary is kept */
    int n_backends;
    tkv_llama_backend backends[TKV_LLAMA_MAX_BACKENDS];
    bool proceeds;
    int n_missing;
    char missing[8][TKV_LLAMA_TEXT];
    int n_warnings;
    char warnings[16][TKV_LLAMA_TEXT];
} tkv_llama_snapshot;

typedef enum tkv_llama_kind {
    TKV_LLAMA_SOURCES = 0,
    TKV_LLAMA_REPOSITORY,
    TKV_LLAMA_BARE_REPOSITORY,
    TKV_LLAMA_INSTALLATION
} tkv_llama_kind;

typedef struct tkv_llama_tree {
    tkv_llama_kind kind;
    tkv_words words; /* of the compressed types in any of its states */
    int n_snapshots; /* 1, or the working tree if there is one and then every branch */
    int capacity;
    tkv_llama_snapshot *snapshots;
    int chosen; /* the one with the evidence: the first that proceeds, else the first */
} tkv_llama_tree;

typedef struct tkv_llama_params {
    const char *path;
    const char *ref; /* NULL: everything; else only this revision of a repository */
    void (*progress)(void *user, int n_done, int n_steps);
    void *progress_user;
    tkv_source_report *survey; /* of the gate's own: the first of its two looks at a repository */
} tkv_llama_params;

/* "set-rows", "Walsh-Hadamard", ... Static storage. */
const char *tkv_llama_role_name(tkv_llama_role role);

/* "source tree", ... Static storage. */
const char *tkv_llama_kind_name(tkv_llama_kind kind);

/* Looks at a tree and decides. The caller frees it with tkv_llama_tree_free, also after an error.
 * TKV_ERR_IO if the directory cannot be read, TKV_ERR_FORMAT if nothing of llama.cpp is in it,
 * TKV_ERR_INVALID_ARGUMENT for a revision that is not there. */
tkv_status tkv_llama_tree_read(const tkv_llama_params *params, tkv_llama_tree *tree,
                               tkv_error *error);
void tkv_llama_tree_free(tkv_llama_tree *tree);

/* Mean squared error of a codebook on N(0, 1), and the best one's of as many levels; both 0 if the
 * table cannot be judged. */
double tkv_llama_codebook_error(const tkv_llama_backend *backend, const tkv_evidence *item,
                                double *best);

/* ---- For the parts of this gate ------------------------------------------------------------ */

/* Sources of which more than so many bytes are skipped, and binaries. */
#define TKV_LLAMA_MAX_SOURCE (8 << 20)
#define TKV_LLAMA_MAX_BINARY (256 << 20)

/* Whether a file of this name is read: a source, or (of an installation) a library, a shader or a
 * header. */
bool tkv_llama_is_source(const char *path);
bool tkv_llama_is_installed(const char *path, bool *is_binary);

/* Adds what was found in a file. */
tkv_status tkv_llama_snapshot_add(tkv_llama_snapshot *snapshot, const char *path,
                                  const tkv_source_report *report, tkv_error *error);

/* Counts a file that could not be read, or was too large. */
void tkv_llama_snapshot_skip(tkv_llama_snapshot *snapshot, const char *path, bool is_unreadable,
                             const char *reason);

/* Fills what follows from the evidence. */
void tkv_llama_decide(tkv_llama_snapshot *snapshot);

/* Adds a snapshot, which the tree owns from then on, and keeps the evidence of the chosen one. */
tkv_status tkv_llama_tree_add(tkv_llama_tree *tree, tkv_llama_snapshot *snapshot, tkv_error *error);
void tkv_llama_snapshot_free(tkv_llama_snapshot *snapshot);

/* Reads a directory as a snapshot, whose words are set. *n_known: files that only llama.cpp has. */
tkv_status tkv_llama_read_directory(const char *path, bool is_installation,
                                    tkv_llama_snapshot *snapshot, int *n_known, tkv_error *error);

/* Adds the types in it to a survey. */
tkv_status tkv_llama_survey_directory(const char *path, bool is_installation,
                                      tkv_source_report *survey, tkv_error *error);

/* Reads all branches of a repository, or one revision of it. With params->survey nothing is added
 * to the tree, but the types to the survey. */
tkv_status tkv_llama_read_repository(const tkv_llama_params *params, tkv_llama_tree *tree,
                                     tkv_error *error);

/* Whether a directory is a git repository or a work tree of one. TKV_ERR_FORMAT if it is one that
 * cannot be opened. */
tkv_status tkv_llama_find_repository(const char *path, bool *is_repository, bool *is_bare,
                                     tkv_error *error);

#endif
