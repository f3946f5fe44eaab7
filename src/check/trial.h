/* What a case of a device works with: memory here and there, sequences of a layer with a copy on
 * the host, and the device. What has failed is in the run's status; calls then do nothing. */
#ifndef TKV_CHECK_TRIAL_H
#define TKV_CHECK_TRIAL_H

#include "check/check.h"
#include "format/codec.h"

enum { TKV_TRIAL_SEQUENCES = 16 };

typedef struct tkv_trial {
    tkv_check *check;
    const tkv_device_table *table;
    tkv_device *device;
    const tkv_kernels *kernels; /* that say what pages should be */
    bool is_small;              /* few and small cases */
    uint64_t workspace;         /* of all plans, one after the other, as a context's is */
    size_t workspace_bytes;

    /* What a case has taken: all of it is given back at its end. */
    void **host;
    int n_host;
    uint64_t *addresses;
    int n_addresses;
} tkv_trial;

/* Whether the case goes on. */
bool tkv_trial_is_on(const tkv_trial *trial);

/* Notes what a call of the device has returned. */
void tkv_trial_note(tkv_trial *trial, tkv_status status);

/* Zeroed memory of the host, NULL if the case is over; of the device. */
void *tkv_trial_host(tkv_trial *trial, size_t bytes);
uint64_t tkv_trial_allocate(tkv_trial *trial, size_t bytes);

/* The device's memory with a copy of `from`. */
uint64_t tkv_trial_put(tkv_trial *trial, const void *from, size_t bytes);

/* Copies from there. */
void tkv_trial_get(tkv_trial *trial, void *to, uint64_t from, size_t bytes);

/* The device's memory for n floats, NaN, before a guard, and a copy of it, NULL if the case is
 * over. *is_intact becomes false if the guard is not what it was. */
uint64_t tkv_trial_put_guarded(tkv_trial *trial, size_t n);
float *tkv_trial_get_guarded(tkv_trial *trial, uint64_t address, size_t n, bool *is_intact);

/* Gives back what the case has taken. */
void tkv_trial_end(tkv_trial *trial);

/* Gives the workspace back, which cases share. */
void tkv_trial_forget_workspace(tkv_trial *trial);

/* One layer of some sequences. */
typedef struct tkv_layer_case {
    tkv_device_layer layer;
    int n_sequences;
    int n_tokens[TKV_TRIAL_SEQUENCES];
    int begin; /* positions before it, and from `end` on, hold no token; end 0: all others do */
    int end;
    bool is_centred;
    int exact_share;   /* of 4 blocks after the sinks so many are exact, chosen at random */
    int n_kinds;       /* of rows: 1: all Gaussian */
    int n_value_kinds; /* of values, if not 0 */
    uint64_t seed;
} tkv_layer_case;

/* A block: its pages on the host as they should be, and on the device. */
typedef struct tkv_trial_block {
    tkv_device_block entry;
    size_t bytes;
    uint8_t *pages;
} tkv_trial_block;

typedef struct tkv_trial_sequence {
    tkv_device_sequence entry;
    tkv_trial_block *blocks;
    float *means[2]; /* keys, values: [n_kv_heads][head_dim]; NULL without centring */
    float *rows[2];  /* keys, values [n_tokens][n_kv_heads][head_dim] as appended */
} tkv_trial_sequence;

typedef struct tkv_trial_layer {
    tkv_trial *trial;
    const tkv_layer_case *params;
    tkv_trial_sequence sequences[TKV_TRIAL_SEQUENCES];
    uint64_t address; /* tkv_device_sequence [n_sequences] */
} tkv_trial_layer;

/* Sequences with memory for their tokens, and rows for them; slots hold any bits. */
void tkv_trial_create_layer(tkv_trial *trial, const tkv_layer_case *params, tkv_trial_layer *layer);

/* Puts one row where the device should have put it. */
void tkv_trial_store_row(tkv_trial_layer *layer, int sequence, int token, int head, int order);

/* Puts all tokens where they belong, on the host, among rows that do not count, and copies the
 * pages to the device. */
void tkv_trial_fill_layer(tkv_trial_layer *layer);

/* What a token decodes to, mean added: x [head_dim]. */
void tkv_trial_load_row(const tkv_trial_layer *layer, int sequence, int token, int head, int order,
                        float *x);

int tkv_trial_head_dim(const tkv_device_layer *layer, int order);
tkv_type tkv_trial_type(const tkv_device_layer *layer, const tkv_trial_block *block, int order);
size_t tkv_trial_page_bytes(const tkv_device_layer *layer, const tkv_trial_block *block, int order);
uint8_t *tkv_trial_page(const tkv_device_layer *layer, const tkv_trial_block *block, int head,
                        int order);

/* Names the case under way, of keys or values. */
void tkv_trial_name(const tkv_trial_layer *layer, tkv_operation operation, int order,
                    const char *what);

/* The tuned ones first. */
enum { TKV_TRIAL_DIMS = 14 };
extern const int tkv_trial_dims[TKV_TRIAL_DIMS];

/* The cases of a device, by operation. */
void tkv_check_device_rotation(tkv_trial *trial);
void tkv_check_device_rows(tkv_trial *trial);
void tkv_check_device_join(tkv_trial *trial);
void tkv_check_device_storing(tkv_trial *trial);
void tkv_check_device_attention(tkv_trial *trial);

/* Some of them, of one shape. */
void tkv_check_device_rotation_shape(tkv_trial *trial, int head_dim);
void tkv_check_device_storing_shape(tkv_trial *trial, tkv_type type, int head_dim);
void tkv_check_device_attention_shape(tkv_trial *trial, tkv_type type, int head_dim);

/* Times the operations of a device. */
void tkv_check_device_speed(tkv_trial *trial);

#endif
