/* The parts of reading a geometry: heads (geometry.c), windows (geometry_window.c), recurrent
 * layers and what is kept beside keys and values (geometry_state.c). */
#ifndef TKV_MODEL_GEOMETRY_READER_H
#define TKV_MODEL_GEOMETRY_READER_H

#include "model/geometry.h"

#include <string.h>

#define TKV_GEOMETRY_MAX_LAYERS 4096
#define TKV_GEOMETRY_MAX_HEADS 4096
#define TKV_GEOMETRY_MAX_WIDTH (1 << 20)

/* Reads "<architecture>.<name>". It keeps its first failure and then reads nothing more. */
typedef struct tkv_geometry_reader {
    const tkv_gguf *gguf;
    tkv_geometry *geometry;
    int n_blocks; /* in the file: layers of a model that loops over them share one */
    int n_trunk;  /* of these, all but those at the end that only draft */
    int n_heads;  /* of the first block that has any */
    int embedding_length;
    tkv_status status;
    tkv_error *error;
} tkv_geometry_reader;

static inline bool tkv_geometry_is(const tkv_geometry_reader *r, const char *architecture)
{
    return strcmp(r->geometry->architecture, architecture) == 0;
}

const tkv_gguf_value *tkv_geometry_find(tkv_geometry_reader *r, const char *name);

/* The count of a layer: a scalar is every layer's. Absent: fallback; -1 makes that an error. */
int tkv_geometry_count(tkv_geometry_reader *r, const char *name, int layer, int fallback, int max);

/* A tensor of a layer; NULL if this file does not hold it. */
const tkv_gguf_tensor *tkv_geometry_tensor(tkv_geometry_reader *r, int layer, const char *part);

typedef struct tkv_geometry_window {
    bool is_local; /* the layer is of the kind that has a window */
    int n_tokens;  /* 0: none */
} tkv_geometry_window;

tkv_geometry_window tkv_geometry_read_window(tkv_geometry_reader *r, int layer);

/* Says in the geometry what was assumed of windows. */
void tkv_geometry_note_windows(tkv_geometry_reader *r);

/* Whether no layer of the architecture has attention. */
bool tkv_geometry_never_attends(const tkv_geometry_reader *r);

/* Whether the layer keeps a recurrent state instead of keys and values. */
bool tkv_geometry_is_recurrent(tkv_geometry_reader *r, int layer);

/* Bytes of the recurrent state of a layer, if it has one. n_kv_heads: of the layer. */
uint64_t tkv_geometry_state_bytes(tkv_geometry_reader *r, int layer, int n_kv_heads);

/* What a layer that keeps keys has beside them: compressed, indexer and the compressor's state. */
void tkv_geometry_read_rows(tkv_geometry_reader *r, int layer, tkv_geometry_layer *result);

#endif
