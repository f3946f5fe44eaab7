/* What a source file, or the text inside a binary, shows of compressed KV types: the evidence on
 * which the gate of a llama.cpp tree decides. */
#ifndef TKV_GATE_EVIDENCE_H
#define TKV_GATE_EVIDENCE_H

#include "turbokv.h"

/* What a compressed KV path is made of. */
typedef enum tkv_llama_role {
    TKV_LLAMA_SET_ROWS = 0, /* encodes rows into the cache */
    TKV_LLAMA_ROTATE,       /* Walsh-Hadamard transform with signs */
    TKV_LLAMA_DEQUANTISE,
    TKV_LLAMA_ATTENTION, /* flash attention on the codes; on a CPU their inner product */
    TKV_LLAMA_ROLES,
    TKV_LLAMA_NO_ROLE = TKV_LLAMA_ROLES
} tkv_llama_role;

typedef enum tkv_evidence_kind {
    TKV_EVIDENCE_KERNEL = 0,
    TKV_EVIDENCE_FUNCTION,
    TKV_EVIDENCE_CODEBOOK,
    TKV_EVIDENCE_MAGNITUDES, /* the positive half of a symmetric codebook */
    TKV_EVIDENCE_MIDPOINTS,
    TKV_EVIDENCE_SIGNS,
    TKV_EVIDENCE_SWITCH, /* an environment variable */
    TKV_EVIDENCE_TYPE,   /* a ggml type, in small letters: "turbo4" */
    TKV_EVIDENCE_KINDS
} tkv_evidence_kind;

typedef struct tkv_evidence {
    tkv_evidence_kind kind;
    tkv_llama_role role; /* of kernels and functions; of a type that only a kernel's name shows */
    bool rotates;        /* its body calls a rotation; of a survey's functions */
    int line;            /* from 1; 0 in a binary */
    char name[96];
    char type_k[16]; /* of attention: "turbo4", "q8_0"; empty: unknown */
    char type_v[16];
    int dim_k; /* head size; 0: unknown */
    int dim_v;
    int n_values;  /* of a table */
    float *values; /* [n_values], or NULL if they are too many or are no numbers */
} tkv_evidence;

typedef struct tkv_source_report {
    int n_lines;
    int n_mentions; /* lines with one of the words */
    int n_items;
    int capacity;
    tkv_evidence *items; /* [n_items], each name once for each kind */
} tkv_source_report;

#define TKV_MAX_WORDS 32

/* What names of compressed types have in them: "turbo", "tq3". Forks call their types what they
 * like, so a survey of a tree finds them by what is done with them. */
typedef struct tkv_words {
    int n;
    char word[TKV_MAX_WORDS][16];
} tkv_words;

/* Reads a source text of any of C, C++, CUDA, Metal and GLSL for what concerns types with these
 * words. The caller frees the report. */
tkv_status tkv_source_scan(const char *text, size_t size, const tkv_words *words,
                           tkv_source_report *report, tkv_error *error);

/* Reads the names, and the sources if they are embedded, in a library or a compiled shader. */
tkv_status tkv_binary_scan(const char *bytes, size_t size, const tkv_words *words,
                           tkv_source_report *report, tkv_error *error);

/* The first look, at all types: adds those that are declared or encoded, every rotation, codebook,
 * and function that encodes, to a report that the caller frees. */
tkv_status tkv_source_survey(const char *text, size_t size, tkv_source_report *report,
                             tkv_error *error);
tkv_status tkv_binary_survey(const char *bytes, size_t size, tkv_source_report *report,
                             tkv_error *error);

/* The words of those types in a survey that are rotated, or have a codebook. */
void tkv_find_words(const tkv_source_report *survey, tkv_words *words);

/* Whether a text has a word (or one of them), in small or capital letters, at the beginning of a
 * name's part: "tq3" is in "k_set_rows_tq3_0" and "attn_ktq3", but not in "xtq3" or "tq32". */
bool tkv_has_word(const char *text, size_t length, const char *word);
bool tkv_has_any_word(const char *text, size_t length, const tkv_words *words);

/* A type without what ggml puts behind its name: "turbo3_0" and "turbo3" are the same. */
void tkv_type_stem(const char *type, char stem[16]);

/* The type that a name says it encodes, "turbo3" of "kernel_set_rows_turbo3_i32"; empty: none. */
void tkv_encoded_type(const char *name, char type[16]);

/* Adds an item unless the report has one of this kind and name; *item loses its values to the
 * report either way. */
tkv_status tkv_report_add(tkv_source_report *report, tkv_evidence *item, tkv_error *error);

/* Adds what is in one report to another. */
tkv_status tkv_report_merge(const tkv_source_report *from, tkv_source_report *to, tkv_error *error);

void tkv_source_report_free(tkv_source_report *report);

/* Whether a part is in a name, in small or capital letters. */
bool tkv_name_contains(const char *name, const char *part);

/* What a name says of its role. */
tkv_llama_role tkv_role_of_name(const char *name);

/* The whole number at the beginning of a part of a name; 0: none, or above what any size is. */
#define TKV_MAX_NAMED_NUMBER 1000000
int tkv_number_of_name(const char *digits);

/* Fills the types and head sizes of an attention kernel from its name:
 * "..._kturbo4_vq8_0_dk128_dv128". */
void tkv_read_attention_name(tkv_evidence *item);

/* "turbo4_0" as people say it: "turbo4". */
void tkv_short_type_name(const char *name, size_t length, char type[16]);

#endif
