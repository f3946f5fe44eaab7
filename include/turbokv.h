/* TurboKV: compressed KV caches for large language models and attention computed on the
 * compressed form. This is the one public header (C11, usable from C++). It goes from what
 * everyone needs to what few do: a context, a cache, attention; policies; parts of a sequence;
 * batches; devices and graphs; the codec by itself; and what bridges to other programs build on.
 *
 * Conventions
 * - Arrays are row-major; a shape [a][b] names the slowest index first.
 * - Functions that can fail return a tkv_status and take a `tkv_error *error`, which may be NULL.
 *   On failure it receives a message that says what was expected, what was found and where;
 *   outputs are then unspecified unless the function says otherwise, and objects keep the state
 *   that they had before the call.
 * - NULL where an object or an array is needed is TKV_ERR_INVALID_ARGUMENT of functions that return
 *   a tkv_status. Of NULL, getters answer 0 or "none", and tkv_*_free and tkv_cache_clear do
 *   nothing.
 * - The library never prints, never exits and has no mutable global state.
 * - Threads: functions without a context or cache may be called by any number of threads at a time.
 *   So may those that only read a cache on the CPU (a const tkv_cache *), also of the same cache,
 *   and those that change it, of different caches, one context or several: a fork and its origin
 *   are different caches. While one thread changes a cache or frees it, no other may use it.
 *
 * Compatibility
 * - A program runs with every library of the TKV_API_VERSION that it was compiled with, older or
 *   newer; shared libraries are named after that number (libturbokv.so.1), which changes only when
 *   something here is removed or means something else.
 * - Structs that callers fill in begin as zeros ({0}, or named fields as in {.n_threads = 2}); 0 is
 *   the default of every field that has one. They end in zeros, `reserved`, from which later
 *   versions take fields, so that sizes never change. What an older library finds there is a field
 *   that it does not know: TKV_ERR_INVALID_ARGUMENT. Structs without such an end stay as they are;
 *   tkv_type_info, which only the library makes, grows at its end.
 * - Enumerations grow at their ends, and what ends in _COUNT with them. */
#ifndef TURBOKV_H
#define TURBOKV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* On Windows users of the DLL define TKV_SHARED (the package's targets do). */
#if !defined(_WIN32)
#define TKV_API __attribute__((visibility("default")))
#elif defined(TKV_BUILDING)
#define TKV_API __declspec(dllexport)
#elif defined(TKV_SHARED)
#define TKV_API __declspec(dllimport)
#else
#define TKV_API
#endif

#if defined(__GNUC__)
#define TKV_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define TKV_PRINTF(text, first)
#endif

/* ---- Versions ----------------------------------------------------------------------------- */

#define TKV_VERSION_MAJOR 0
#define TKV_VERSION_MINOR 1
#define TKV_VERSION_PATCH 0
#define TKV_VERSION_NUMBER (TKV_VERSION_MAJOR * 10000 + TKV_VERSION_MINOR * 100 + TKV_VERSION_PATCH)

/* Version of this interface: see above. */
#define TKV_API_VERSION 1

/* Version of the bit format of rows and pages (docs/FORMAT.md). */
#define TKV_FORMAT_VERSION 1

/* "MAJOR.MINOR.PATCH", TKV_VERSION_NUMBER and TKV_API_VERSION of the library that is running.
 * Static storage. */
TKV_API const char *tkv_version(void);
TKV_API int tkv_version_number(void);
TKV_API int tkv_api_version(void);

/* ---- Errors ------------------------------------------------------------------------------- */

typedef enum tkv_status {
    TKV_OK = 0,
    TKV_ERR_INVALID_ARGUMENT, /* an argument outside its documented range */
    TKV_ERR_UNSUPPORTED,      /* valid, but this build or machine cannot do it */
    TKV_ERR_OUT_OF_MEMORY,
    TKV_ERR_NOT_FINITE, /* NaN or infinity where finite numbers are required */
    TKV_ERR_IO,         /* a file could not be opened or read */
    TKV_ERR_FORMAT,     /* a file's content is not what its format promises */
    TKV_ERR_DEVICE,     /* a GPU reported an error */
    TKV_ERR_INTERRUPTED /* the context's is_stopped said so */
} tkv_status;

typedef struct tkv_error {
    tkv_status status;
    char message[384]; /* UTF-8, NUL-terminated, no newline */
} tkv_error;

/* Short lower-case name of a status, for example "out of memory". Static storage. */
TKV_API const char *tkv_status_name(tkv_status status);

/* Writes the message (controls in it become '?') and the status into *error, which may be NULL, and
 * returns the status: for bridges and bindings whose functions fail as those here do. */
TKV_API tkv_status tkv_fail(tkv_error *error, tkv_status status, const char *format, ...)
    TKV_PRINTF(3, 4);

/* ---- KV types ----------------------------------------------------------------------------- */

typedef enum tkv_type {
    TKV_TYPE_F16 = 0,
    TKV_TYPE_TURBO8,
    TKV_TYPE_TURBO4,
    TKV_TYPE_TURBO3,
    TKV_TYPE_TURBO2,
    TKV_TYPE_TRELLIS3,
    TKV_TYPE_TRELLIS2,
    TKV_TYPE_TURBO4Q,
    TKV_TYPE_TURBO3Q,
    TKV_TYPE_COUNT
} tkv_type;

/* What the codes of a type stand for (docs/FORMAT.md). */
typedef enum tkv_coding {
    TKV_CODING_HALF = 0, /* nothing: the values are there as halves */
    TKV_CODING_UNIFORM,  /* equal steps up to the row's largest value */
    TKV_CODING_CODEBOOK, /* levels of tkv_type_codebook */
    TKV_CODING_TRELLIS,  /* levels of a trellis code */
    TKV_CODING_SKETCH    /* levels of tkv_type_codebook, and signs of what they leave */
} tkv_coding;

typedef struct tkv_type_info {
    const char *name;        /* as on the command line: "turbo4" */
    const char *description; /* one line for people */
    int code_bits;           /* bits of one code; 16 for f16 */
    int side_fields;         /* 16-bit fields stored with each row (scale, ...) */
    double expected_nmse;    /* E|x-x'|^2 / E|x|^2 on Gaussian rows, head_dim 128 */
    tkv_coding coding;
} tkv_type_info;

/* Facts about a type; NULL if `type` is not one. Static storage. */
TKV_API const tkv_type_info *tkv_type_get_info(tkv_type type);

/* Looks a type up by name. On failure the message lists the valid names. */
TKV_API tkv_status tkv_type_from_name(const char *name, tkv_type *type, tkv_error *error);

/* head_dim must be even, from TKV_MIN_HEAD_DIM to TKV_MAX_HEAD_DIM. Rows are padded with zeros to a
 * multiple of 16 coordinates, which is what they cost. */
#define TKV_MIN_HEAD_DIM 2
#define TKV_MAX_HEAD_DIM 1024
TKV_API tkv_status tkv_check_head_dim(tkv_type type, int head_dim, tkv_error *error);

/* Tokens in a page. */
#define TKV_PAGE_TOKENS 64

/* Bytes of one coded row, of one page (64 rows of one KV head), and bits a value, side fields
 * included. 0 if the type or head_dim is not valid. */
TKV_API size_t tkv_row_bytes(tkv_type type, int head_dim);
TKV_API size_t tkv_page_bytes(tkv_type type, int head_dim);
TKV_API double tkv_bits_per_value(tkv_type type, int head_dim);

/* How long the encoder of the trellis types searches. The format does not depend on it. */
typedef enum tkv_effort {
    TKV_EFFORT_DEFAULT = 0, /* the best path (Viterbi) */
    TKV_EFFORT_FAST,        /* the best of few survivors */
    TKV_EFFORT_BEST,        /* the best path at several gains */
    TKV_EFFORT_COUNT
} tkv_effort;

/* ---- Context: the kernels in use, how many threads, and on which device ------------------- */

typedef struct tkv_context tkv_context;

/* The host's memory for what belongs to a context: itself, its caches, scratch. */
typedef struct tkv_allocator {
    /* `bytes` (at least 1) aligned to `alignment`, a power of two from 16 to 256; NULL: none left.
     * Both may be called by several threads at a time. */
    void *(*allocate)(void *user, size_t bytes, size_t alignment);
    void (*release)(void *user, void *memory); /* never NULL */
    void *user;
} tkv_allocator;

typedef struct tkv_context_params {
    int n_threads;      /* 0: as many as the machine has cores */
    tkv_effort effort;  /* of encoding */
    const char *device; /* NULL or "cpu"; "cuda" or "cuda:1" (the second one), "metal" */
    void *stream;       /* of the device: where its work is enqueued (CUDA: a cudaStream_t, which
                           must outlive the context); NULL: one of its own */
    /* NULL, or asked now and then in what may take long on the CPU (tkv_attend), by any thread that
     * works for the context, also by several at a time; once true, it stays true: the call ends
     * soon with TKV_ERR_INTERRUPTED, and what it should have written is not to be used. */
    bool (*is_stopped)(void *user);
    void *stop_user;
    const char *kernels; /* NULL, or which kernels the CPU uses: scalar, avx2, avx512, neon,
                            dotprod, i8mm. NULL: what the environment variable TKV_CPU names,
                            without it the best that the machine has */
    const tkv_allocator *allocator; /* NULL: the C library's; copied */
    /* NULL, or told, a line at a time, what the context chose and what it got over without an
     * error; by any thread that uses the context. */
    void (*log)(void *user, const char *message);
    void *log_user;
    uint64_t reserved[8];
} tkv_context_params;

/* params may be NULL for the defaults. The caller frees the context with tkv_context_free, after
 * the caches that were created with it. A device or kernels that this build or machine lacks are
 * TKV_ERR_UNSUPPORTED, with the reason.
 *
 * Several threads may use a context on the CPU at a time. Its own threads work for one of them, the
 * calls of the others run on the thread that makes them; results do not depend on which.
 *
 * A context on a device keeps the pages of its caches in the device's memory, and the arrays of
 * floats that tkv_cache_append, tkv_cache_read and tkv_attend (q, out, sinks, stats, log_sums) take
 * are addresses there: on CUDA plain device pointers, also of memory that the caller has from
 * elsewhere. Calls are enqueued on the stream in order and return before they are done, but for
 * those that say that they wait. Errors of the device may show up in a later call. One thread at a
 * time uses a context on a device and its caches. NaN and infinity are not reported there: a row
 * that holds them decodes to NaN. */
TKV_API tkv_status tkv_context_create(const tkv_context_params *params, tkv_context **context,
                                      tkv_error *error);
TKV_API void tkv_context_free(tkv_context *context);

/* Where a context computes. */
typedef enum tkv_device_kind {
    TKV_DEVICE_CPU = 0,
    TKV_DEVICE_CUDA,
    TKV_DEVICE_METAL,
    TKV_DEVICE_OTHER /* of a table that is not in this library */
} tkv_device_kind;
TKV_API tkv_device_kind tkv_context_device_kind(const tkv_context *context);

/* For people: where it computes, "cpu" or "NVIDIA H200, sm_90"; the kernels in use there, for
 * example "avx2", or the kind of device, "cuda". Both live as long as the context. */
TKV_API const char *tkv_context_device(const tkv_context *context);
TKV_API const char *tkv_context_kernels(const tkv_context *context);

TKV_API int tkv_context_threads(const tkv_context *context);
TKV_API tkv_effort tkv_context_effort(const tkv_context *context);

/* ---- Cache -------------------------------------------------------------------------------- */

/* Rotary position embedding as it was applied to the keys: pair i of a key at position p was turned
 * by p * frequencies[i] radians. */
typedef struct tkv_rope {
    bool is_interleaved;      /* pairs (2i, 2i+1); otherwise (i, i + n_rotated/2) */
    int n_rotated;            /* coordinates that take part, from the first on */
    const float *frequencies; /* [n_rotated/2] */
} tkv_rope;

/* One layer of a cache whose layers differ. */
typedef struct tkv_layer_shape {
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v; /* 0: keys only, and values are their first coordinates (latent attention); on
                       the CPU: a cache on a device is refused, TKV_ERR_UNSUPPORTED */
    int window; /* 0: none; w: a query at position p sees only positions > p-w, and pages that no
                   coming query sees are given back */
    const tkv_rope *rope; /* NULL: that of the cache; over 0 coordinates: keys carry no positions */
    uint64_t reserved[4];
} tkv_layer_shape;

typedef struct tkv_cache tkv_cache;

typedef struct tkv_cache_params {
    int n_layers;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;          /* 0: keys only, as in tkv_layer_shape */
    int max_tokens;          /* append beyond it fails; memory is taken as needed */
    const tkv_type *types_k; /* [n_layers] */
    const tkv_type *types_v; /* [n_layers]; of layers of keys only not looked at */
    int n_sinks;       /* first tokens that stay exact (f16), rounded up to a multiple of 16 */
    int n_recent;      /* tokens before a query that are exact; older ones are coded in pages of 64,
                          a page when all of its tokens are old. 0: tokens are coded as they come */
    int centre_tokens; /* 0: none; n: keys and values of each head are coded relative to the mean of
                          the first n tokens after the sinks, which stay exact */
    const tkv_rope *rope; /* NULL, or how keys carry positions: only coordinates that turn by less
                             than a radian over max_tokens have a lasting mean, so only these are
                             centred; copied */
    const tkv_layer_shape *shapes; /* NULL: all layers alike, or [n_layers], and n_kv_heads,
                                      head_dim_k and head_dim_v above are not looked at; copied */
    uint64_t reserved[8];
} tkv_cache_params;

/* Creates an empty cache. The arrays in params are copied. The context must outlive the cache. */
TKV_API tkv_status tkv_cache_create(tkv_context *context, const tkv_cache_params *params,
                                    tkv_cache **cache, tkv_error *error);
TKV_API void tkv_cache_free(tkv_cache *cache);

/* Appends n_tokens to one layer. k: [n_tokens][n_kv_heads][head_dim_k], v: [n_tokens][n_kv_heads]
 * [head_dim_v], after RoPE and before any rotation of ours. On any error (cache full, NaN or
 * infinity, out of memory) the layer is as it was. A cache has one writer at a time. v is not
 * looked at for a layer of keys only. On a device the append after which tokens are first coded
 * relative to their means waits for these to be estimated.
 *
 * With a recent window the tokens of one append stay exact until the next one (their own queries
 * may see them all), so a prefill holds, beside what it would hold token by token, up to one batch
 * in f16. */
TKV_API tkv_status tkv_cache_append(tkv_cache *cache, int layer, int n_tokens, const float *k,
                                    const float *v, tkv_error *error);

/* Decodes tokens first .. first+n_tokens-1 of one layer: k [n_tokens][n_kv_heads][head_dim_k]
 * and v [n_tokens][n_kv_heads][head_dim_v]; either may be NULL. Fails for tokens that a layer with
 * a window has given back. On the CPU several threads may read a cache at a time. */
TKV_API tkv_status tkv_cache_read(const tkv_cache *cache, int layer, int first, int n_tokens,
                                  float *k, float *v, tkv_error *error);

/* Tokens that a layer holds; 0 for a layer that does not exist. */
TKV_API int tkv_cache_length(const tkv_cache *cache, int layer);

/* tkv_cache_params.max_tokens. */
TKV_API int tkv_cache_max_tokens(const tkv_cache *cache);

/* Bytes of memory that the cache holds now: every page that is allocated (a coded page that is
 * partly filled counts whole, an exact one up to a multiple of 16 tokens, on a device whole), page
 * tables and the object itself. There is nothing else. */
TKV_API size_t tkv_cache_bytes(const tkv_cache *cache);

/* Drops all tokens and returns the memory of the pages. */
TKV_API void tkv_cache_clear(tkv_cache *cache);

/* ---- Attention ---------------------------------------------------------------------------- */

/* How many softmax weights there were and how many values were skipped for them (sparse_v). */
typedef struct tkv_attend_stats {
    int64_t n_weights;
    int64_t n_skipped;
} tkv_attend_stats;

typedef struct tkv_attend_params {
    int n_queries;      /* query tokens */
    int n_heads;        /* query heads; a multiple of n_kv_heads (grouped-query attention) */
    int first_position; /* position of query 0; query i sees positions 0 .. first_position+i,
                           which must be in the cache */
    float scale;        /* of the logits; 0: 1/sqrt(head_dim_k) */
    int window;         /* 0: that of the layer; w: query at position p sees only positions > p-w */
    float logit_softcap; /* 0: none; c: logit := c*tanh(logit/c) */
    const float *sinks;  /* NULL, or [n_heads] learned logits that join the softmax's sum only */
    float sparse_v;      /* 0: off; t: values whose weight is below t times the largest so far
                            are skipped, while the softmax's sum stays exact */
    tkv_attend_stats *stats; /* NULL, or counters to add to (only with sparse_v) */
    int n_value_dims; /* of a layer of keys only: its values are the first so many coordinates of
                         its keys, and out is [n_queries][n_heads][n_value_dims]; otherwise 0 */
    float *log_sums;  /* NULL, or [n_queries][n_heads] to write: the logarithm of the softmax's sum
                         of exponentials. Outputs over parts of a context, weighed by the
                         exponentials of theirs, add up to that over the whole (flash decoding) */
    uint64_t reserved[8];
} tkv_attend_params;

/* Causal attention of queries q [n_queries][n_heads][head_dim_k] (after RoPE, not rotated by us)
 * over one layer of the cache, straight from the codes: out [n_queries][n_heads][head_dim_v].
 * Softmax is computed online (Milakov and Gimelshein, arXiv 1805.02867) and the context is split
 * over the context's threads with a merge (flash decoding). Only reads the cache: on the CPU
 * several threads may attend to it at a time, each with its own params->stats. */
TKV_API tkv_status tkv_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                              const float *q, float *out, tkv_error *error);

/* ---- Policies: which tokens and layers are kept how ---------------------------------------- */

#define TKV_POLICY_MAX_RANGES 16

/* Layers first .. last (from 0) that have types of their own. */
typedef struct tkv_layer_range {
    int first;
    int last;
    tkv_type type_k;
    tkv_type type_v;
} tkv_layer_range;

/* Functions that take a policy refuse counts below 0, types that do not exist and more ranges than
 * there is room for. */
typedef struct tkv_policy {
    tkv_type type_k;
    tkv_type type_v;
    int n_sinks;         /* as in tkv_cache_params */
    int n_recent;        /* likewise */
    int centre_tokens;   /* likewise */
    int boundary_layers; /* the first and the last so many layers have the boundary types */
    tkv_type boundary_k;
    tkv_type boundary_v;
    int n_ranges; /* ranges override the boundary */
    tkv_layer_range ranges[TKV_POLICY_MAX_RANGES];
    float sparse_v; /* as in tkv_attend_params */
    uint64_t reserved[8];
} tkv_policy;

/* The policy for a budget: "f16", "8bit", "4bit", "3bit" or "2bit" (docs/RESULTS.md has what they
 * were chosen by). */
TKV_API tkv_status tkv_policy_preset(const char *name, tkv_policy *policy, tkv_error *error);

/* Names of the presets by index from 0; NULL beyond the last. Static storage. */
TKV_API const char *tkv_policy_preset_name(int index);

/* Changes *policy as `text` says: words as on the command line, "--sinks 4 --recent 64", with or
 * without the dashes, one or many a line, "#" begins a comment. Keys: kv PRESET, k TYPE, v TYPE,
 * sinks N, recent N, centre N, boundary N:TYPE or N:TYPE_K/TYPE_V, layers FIRST-LAST:TYPE_K/TYPE_V,
 * sparse-v off|auto|THRESHOLD. On error *policy is as it was. */
TKV_API tkv_status tkv_policy_parse(const char *text, tkv_policy *policy, tkv_error *error);

/* Writes a policy as text that tkv_policy_parse turns back into it, starting from an all-zero
 * policy: "k=turbo4 v=turbo4 sinks=4". Fails if it does not fit `size` bytes; 1024 always do. */
TKV_API tkv_status tkv_policy_format(const tkv_policy *policy, char *text, size_t size,
                                     tkv_error *error);

/* The types of each layer: types_k and types_v [n_layers]. */
TKV_API tkv_status tkv_policy_layer_types(const tkv_policy *policy, int n_layers, tkv_type *types_k,
                                          tkv_type *types_v, tkv_error *error);

/* Bits a value that a cache with this policy holds at n_tokens, exact tokens, scales, means and
 * unused slots included; 0 if the arguments are not valid. */
TKV_API double tkv_policy_bits(const tkv_policy *policy, int n_layers, int n_kv_heads,
                               int head_dim_k, int head_dim_v, int n_tokens);

/* Bytes that one layer of a cache on the CPU holds at n_tokens of which the newest n_batch were one
 * append, without the frequencies of its rope: what tkv_cache_bytes would say, less
 * tkv_policy_object_bytes for the cache itself. 0 if the arguments are not valid. */
TKV_API size_t tkv_policy_layer_bytes(const tkv_policy *policy, tkv_type type_k, tkv_type type_v,
                                      const tkv_layer_shape *shape, int n_tokens, int n_batch);
TKV_API size_t tkv_policy_object_bytes(void);

/* tkv_cache_create with what a policy says in place of types, sinks, recent tokens and tokens for
 * the means, which params must leave 0. */
TKV_API tkv_status tkv_policy_create_cache(tkv_context *context, const tkv_cache_params *params,
                                           const tkv_policy *policy, tkv_cache **cache,
                                           tkv_error *error);

/* ---- Parts of a sequence: taking back, sharing, shifting ---------------------------------- */

/* Drops all tokens of all layers from position n_tokens on. Layers that are shorter stay. What is
 * appended then is coded as if the dropped tokens had never been there; tokens that stay and are
 * coded already stay so. Fails, and changes nothing, if a layer with a window has given back
 * tokens that queries from n_tokens on would see; 0 always works. */
TKV_API tkv_status tkv_cache_truncate(tkv_cache *cache, int n_tokens, tkv_error *error);

/* A second cache, of the same context, types and policy, that starts with the first n_tokens of
 * this one. Both share the memory of these tokens until one of them writes there. The caller frees
 * it with tkv_cache_free, in any order. */
TKV_API tkv_status tkv_cache_fork(const tkv_cache *cache, int n_tokens, tkv_cache **fork,
                                  tkv_error *error);

/* Context shift: drops tokens first .. first+n_drop-1 of all layers and moves the later ones down
 * by n_drop positions, as if their keys had been made there (rope NULL: keys carry no positions; a
 * layer whose shape has a rope is turned by that, whatever is given here; the same rope in all
 * shifts of a cache). Nothing is coded again, however many shifts there are: queries and later keys
 * are turned instead. Pages are given back when all of their tokens are dropped. Tokens that a
 * layer with a window has given back do not return when they come to lie within windows again. On
 * error the cache is as it was. */
TKV_API tkv_status tkv_cache_shift(tkv_cache *cache, int first, int n_drop, const tkv_rope *rope,
                                   tkv_error *error);

/* Bytes of these that other caches hold too (tkv_cache_fork). */
TKV_API size_t tkv_cache_shared_bytes(const tkv_cache *cache);

/* ---- Batches: one layer of several sequences ---------------------------------------------- */

/* tkv_cache_append to n_caches caches of one context, with the same shape, types and sinks: k
 * [n_caches][n_tokens][n_kv_heads][head_dim_k], v likewise. On error, caches before the one that
 * failed may have taken their tokens: their lengths tell. */
TKV_API tkv_status tkv_cache_append_batch(tkv_cache *const *caches, int n_caches, int layer,
                                          int n_tokens, const float *k, const float *v,
                                          tkv_error *error);

/* tkv_attend over each of n_caches such caches, whose lengths may differ, with their last n_queries
 * tokens as queries (params->first_position is not looked at): q [n_caches][n_queries][n_heads]
 * [head_dim_k], out likewise. On a device one call for all. Both functions can be captured as part
 * of a step for which every cache has its reservation (tkv_cache_reserve). */
TKV_API tkv_status tkv_attend_batch(const tkv_cache *const *caches, int n_caches, int layer,
                                    const tkv_attend_params *params, const float *q, float *out,
                                    tkv_error *error);

/* ---- Devices: their memory, and steps that are captured in graphs ------------------------- */

/* Waits until everything that was enqueued on the context's device is done; at once on the CPU. */
TKV_API tkv_status tkv_context_wait(tkv_context *context, tkv_error *error);

/* Memory where the context computes, so that callers need not know where that is: zeroed, aligned
 * to 256 bytes, freed with tkv_memory_free before the context is, with the same context. */
TKV_API tkv_status tkv_memory_allocate(tkv_context *context, size_t bytes, void **memory,
                                       tkv_error *error);
TKV_API void tkv_memory_free(tkv_context *context, void *memory);

/* Copies between this memory (any address in it) and the host's. After an upload `from` may be
 * reused at once; a download waits. */
TKV_API tkv_status tkv_memory_upload(tkv_context *context, void *to, const void *from, size_t bytes,
                                     tkv_error *error);
TKV_API tkv_status tkv_memory_download(tkv_context *context, void *to, const void *from,
                                       size_t bytes, tkv_error *error);

/* Copies within this memory; enqueued. */
TKV_API tkv_status tkv_memory_copy(tkv_context *context, void *to, const void *from, size_t bytes,
                                   tkv_error *error);

/* For callers with kernels of their own there: the number of the context's device among those of
 * its kind, as in "cuda:1" (0 on the CPU), and where its work is enqueued (CUDA: a cudaStream_t;
 * NULL elsewhere). */
TKV_API int tkv_context_device_index(const tkv_context *context);
TKV_API void *tkv_context_stream(const tkv_context *context);

/* Makes a step capturable in a graph of the device (CUDA). Between tkv_cache_reserve and
 * tkv_cache_commit, tkv_cache_append takes exactly n_tokens for every layer and tkv_attend their
 * queries (first_position: the length before), and both only enqueue kernels that read on the
 * device how long the sequence is. So one decode step is
 *
 *     tkv_cache_reserve   codes what has left the recent window; memory for n_tokens more in all
 *                         layers, and their descriptors on the device
 *     append, attend, ... captured, or the replay of a graph that was captured so before
 *     tkv_cache_commit    the tokens count; means are estimated if it is time (their first use is
 *                         the next step)
 *
 * A captured graph is good for every later step of n_tokens, also after a truncation, as long as
 * the sequence with them is no longer than max_length (0: the cache's max_tokens), which kernels
 * are planned for, and tkv_cache_generation is the same. Run the step once without capturing it, so
 * that workspaces are there. All layers must be equally long. On error the cache is as it was.
 * tkv_cache_truncate gives a reservation back. */
TKV_API tkv_status tkv_cache_reserve(tkv_cache *cache, int n_tokens, int max_length,
                                     tkv_error *error);
TKV_API tkv_status tkv_cache_commit(tkv_cache *cache, tkv_error *error);

/* A number that changes when graphs that were captured before must be captured anew: after a
 * context shift, and now and then as long as there are tokens from before one. To be asked after
 * tkv_cache_reserve. 0 if cache is NULL. */
TKV_API int64_t tkv_cache_generation(const tkv_cache *cache);

/* ---- Store: pages addressed by slot ------------------------------------------------------- */

/* Keys and values of one layer in slots that the caller numbers, for engines with a table of their
 * own of which token lies where (cells, block tables). A store knows no positions and no sequences:
 * a slot holds a row of keys and a row of values of all KV heads, or nothing; slots lie in pages of
 * 64, which take memory when they are written. A row is exact (f16), or coded in the store's types
 * at once or when it ages. Rows are not centred.
 *
 * Stores need a context on the CPU: others are TKV_ERR_UNSUPPORTED. Arrays are the host's. Several
 * threads may read a store and attend to it at a time, while none changes it. */
typedef struct tkv_store tkv_store;

typedef struct tkv_store_params {
    int64_t n_slots;
    int64_t n_regions; /* 0: one; equal runs of slots, for example of streams, each with exact rows
                          of its own; several have a multiple of 64 slots each */
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v; /* 0: keys only, as in tkv_layer_shape */
    tkv_type type_k;
    tkv_type type_v;
    int64_t n_exact;       /* rows written to a region last that are exact; a page's exact rows are
                              coded when all of them are older. 0: rows are coded as they come */
    int64_t n_exact_first; /* first slots of a region whose rows are exact for good */
    const tkv_rope *rope;  /* NULL, or how keys carry positions, for tkv_store_shift; copied */
    uint64_t reserved[8];
} tkv_store_params;

/* Creates an empty store. The context must outlive it. */
TKV_API tkv_status tkv_store_create(tkv_context *context, const tkv_store_params *params,
                                    tkv_store **store, tkv_error *error);
TKV_API void tkv_store_free(tkv_store *store);

/* Numbers in the caller's arrays. */
typedef enum tkv_element {
    TKV_ELEMENT_F32 = 0,
    TKV_ELEMENT_F16,
    TKV_ELEMENT_BF16,
    TKV_ELEMENT_COUNT
} tkv_element;

/* Where rows lie in an array: how many elements further the next stream, row (slot, query) and head
 * begin. 0: where they would if all followed each other as in [stream][row][head][coordinate]. */
typedef struct tkv_layout {
    tkv_element element;
    size_t stream_stride;
    size_t row_stride;
    size_t head_stride;
} tkv_layout;

/* Writes row i of k and of v into slot slots[i], whatever that holds; of a slot that is named more
 * than once the last row counts. One of k and v may be NULL (v must be where keys only are kept): a
 * slot is seen by attention once it holds both. Layouts NULL: floats, one after the other. On any
 * error (NaN or infinity, out of memory) slots hold what they held. */
TKV_API tkv_status tkv_store_write(tkv_store *store, int64_t n_rows, const int64_t *slots,
                                   const void *k, const tkv_layout *layout_k, const void *v,
                                   const tkv_layout *layout_v, tkv_error *error);

/* Reads what slots hold, zeros of those that hold nothing; k or v may be NULL. */
TKV_API tkv_status tkv_store_read(const tkv_store *store, int64_t n_rows, const int64_t *slots,
                                  void *k, const tkv_layout *layout_k, void *v,
                                  const tkv_layout *layout_v, tkv_error *error);

/* Slots first .. first+n_slots-1 hold nothing any more. Memory of pages that hold nothing is given
 * back. */
TKV_API tkv_status tkv_store_clear(tkv_store *store, int64_t first, int64_t n_slots,
                                   tkv_error *error);

/* Codes exact rows of these slots, those of n_exact_first excepted. */
TKV_API tkv_status tkv_store_age(tkv_store *store, int64_t first, int64_t n_slots,
                                 tkv_error *error);

/* What n_slots slots of `from` hold from from_first on, nothing included, is in `to` from to_first
 * on as well: bit for bit, coded rows as codes, exact ones as the newest of their new region. Both
 * are stores of one context with the same shape, types and rope, or one; ranges that overlap are as
 * if copied at once. Whole pages that do not overlap share memory until one of both is written. On
 * error slots hold what they held. */
TKV_API tkv_status tkv_store_copy(tkv_store *to, int64_t to_first, const tkv_store *from,
                                  int64_t from_first, int64_t n_slots, tkv_error *error);

/* Moves the keys of slots first .. first+n_slots-1 by deltas[0] .. positions, as if they had been
 * made there, where the slot holds a key; needs the store's rope. Nothing is coded again, however
 * often: the store notes the distance, and queries are turned by it. */
TKV_API tkv_status tkv_store_shift(tkv_store *store, int64_t first, int64_t n_slots,
                                   const int32_t *deltas, tkv_error *error);

/* Bytes that the store holds, and of these, those of pages that it shares. */
TKV_API size_t tkv_store_bytes(const tkv_store *store);
TKV_API size_t tkv_store_shared_bytes(const tkv_store *store);

/* Slots first .. end-1. */
typedef struct tkv_slot_range {
    int64_t first;
    int64_t end;
} tkv_slot_range;

/* What a query sees: the slots of n_ranges ranges from first_range on, in their order. */
typedef struct tkv_slot_view {
    int64_t first_range;
    int64_t n_ranges; /* 0: it sees nothing */
    int64_t n_seen;   /* 0: all of these slots; n: only the first n */
} tkv_slot_view;

typedef struct tkv_store_attend_params {
    int n_streams; /* 0: one; each with n_queries queries */
    int n_queries;
    int n_heads;
    float scale; /* as in tkv_attend_params, like the following */
    float logit_softcap;
    const float *sinks;
    float sparse_v;
    tkv_attend_stats *stats;
    int n_value_dims;
    float *log_sums; /* [n_streams][n_queries][n_heads] */

    /* What is seen, of slots that hold something. Either by ranges: */
    const tkv_slot_view *views;   /* [n_streams][n_queries] */
    const tkv_slot_range *ranges; /* [n_ranges], that views may share */
    int64_t n_ranges;
    int64_t window; /* 0: none; w: of these slots a query sees the last w */

    /* or by a mask that is added to the logits, 0, a number, or minus infinity: not seen. */
    const void *mask; /* [n_streams][n_queries][n_mask_slots]; NULL: views */
    tkv_element mask_element;
    int64_t n_mask_slots;
    size_t mask_stream_stride; /* elements; 0: one after the other */
    size_t mask_row_stride;
    const int64_t *mask_first; /* NULL: all 0, or [n_streams] slots of the mask's first column */
    const float *mask_slopes;  /* NULL, or [n_heads] factors of the mask (ALiBi) */

    tkv_layout q;
    tkv_layout out;
    uint64_t reserved[8];
} tkv_store_attend_params;

/* Attention of queries q [n_streams][n_queries][n_heads][head_dim_k] over the slots that they see:
 * out [n_streams][n_queries][n_heads][head_dim_v]. A query that sees nothing has the output 0 and
 * the log-sum minus infinity (with a sink, that of the sink). */
TKV_API tkv_status tkv_attend_store(const tkv_store *store, const tkv_store_attend_params *params,
                                    const void *q, void *out, tkv_error *error);

/* ---- Codec: rows and pages (docs/FORMAT.md) ----------------------------------------------- */

/* Which way the code words of a page run: along the coordinates of a token (for keys: scores
 * contract over coordinates) or along the tokens of a coordinate (for values). */
typedef enum tkv_page_order { TKV_ORDER_KEY = 0, TKV_ORDER_VALUE = 1 } tkv_page_order;

/* All arrays here are the host's. The kernels on the CPU and the effort are those of the context;
 * NULL is the reference, at default effort. Kernels are equal to the bit. */

/* Rotates n_rows vectors in place into the domain in which codes live, or back: two rounds of
 * sign flips and an orthonormal fast Walsh-Hadamard transform (docs/FORMAT.md section 3).
 * x: [n_rows][head_dim]. */
TKV_API tkv_status tkv_rotate(const tkv_context *context, int head_dim, size_t n_rows, float *x,
                              tkv_error *error);
TKV_API tkv_status tkv_unrotate(const tkv_context *context, int head_dim, size_t n_rows, float *x,
                                tkv_error *error);

/* Encodes n_rows vectors x [n_rows][head_dim] (not rotated) into consecutive row records of
 * tkv_row_bytes each. Values beyond the range of fp16 saturate. A row that holds
 * NaN or infinity becomes the record that decodes to NaN (of f16: keeps these values) and the call
 * returns TKV_ERR_NOT_FINITE naming the first such value; all rows are written. */
TKV_API tkv_status tkv_encode_rows(const tkv_context *context, tkv_type type, int head_dim,
                                   size_t n_rows, const float *x, void *rows, tkv_error *error);

/* Decodes n_rows records to x [n_rows][head_dim], rotated back to the original domain. */
TKV_API tkv_status tkv_decode_rows(const tkv_context *context, tkv_type type, int head_dim,
                                   size_t n_rows, const void *rows, float *x, tkv_error *error);

/* Encodes n_rows vectors x [n_rows][head_dim] into slots first_slot .. first_slot+n_rows-1 of a
 * page of tkv_page_bytes, aligned to 4 bytes; the other slots keep their content. Large values, NaN
 * and infinity as for rows. */
TKV_API tkv_status tkv_encode_page(const tkv_context *context, tkv_type type, tkv_page_order order,
                                   int head_dim, int first_slot, int n_rows, const float *x,
                                   void *page, tkv_error *error);

/* Decodes slots of a page to x [n_rows][head_dim], in the original domain. */
TKV_API tkv_status tkv_decode_page(const tkv_context *context, tkv_type type, tkv_page_order order,
                                   int head_dim, int first_slot, int n_rows, const void *page,
                                   float *x, tkv_error *error);

/* IEEE 754 binary16, rounded to the nearest even; finite values beyond its range become the largest
 * half, as in f16 rows. */
TKV_API void tkv_floats_to_halves(size_t n, const float *x, uint16_t *halves);
TKV_API void tkv_halves_to_floats(size_t n, const uint16_t *halves, float *x);

/* ---- For bridges: work and objects beside a context's own --------------------------------- */

/* Works on one item; `thread` is from 0 to n_threads - 1, and no two calls at a time have the same
 * within a job. */
typedef void (*tkv_item_work)(void *argument, int item, int thread);

/* Works on items 0 to n_items - 1, in any order, with up to n_threads of the context's threads (0:
 * all; NULL as context: the caller alone), and returns when all are done. Several threads may call
 * it at a time: one gets the others' help. An item must not call it with the same context. */
TKV_API void tkv_context_run(const tkv_context *context, int n_threads, int n_items,
                             tkv_item_work work, void *argument);

/* Whether the context's is_stopped says so: for work of the caller's that may take long. */
TKV_API bool tkv_context_is_stopped(const tkv_context *context);

/* Keeps an object of the caller's with a context, under a key that is an address of the caller's:
 * what several parts of a program share that use it. It replaces the key's object before, which is
 * not released; NULL as value: there is none then. tkv_context_free calls release (NULL: nothing to
 * do) on what is left, the latest first, while the context can still be used. */
TKV_API tkv_status tkv_context_attach(tkv_context *context, const void *key, void *value,
                                      void (*release)(void *value), tkv_error *error);
TKV_API void *tkv_context_attached(const tkv_context *context, const void *key);

/* For kernels of the caller's on rows of the format (docs/FORMAT.md). */

/* A scalar quantiser on unit-variance coordinates: code = number of thresholds below z. */
typedef struct tkv_codebook {
    int n_levels;
    const int8_t *levels;    /* [n_levels] ascending, antisymmetric, outermost +-127 */
    const float *thresholds; /* [n_levels - 1] ascending */
} tkv_codebook;

/* That of a type; NULL if it has none. Static storage. */
TKV_API const tkv_codebook *tkv_type_codebook(tkv_type type);

/* Signs of rotation round 0 or 1: bit j%32 of word j/32 set = coordinate j is negated. NULL of
 * other rounds; [TKV_MAX_HEAD_DIM/32], static storage. */
TKV_API const uint32_t *tkv_rotation_sign_words(int round);

/* The codes of n_rows records (not of f16) and their side fields: codes [n_rows][head_dim, rounded
 * up to a multiple of 16], sides [n_rows][side_fields]. */
TKV_API tkv_status tkv_unpack_codes(tkv_type type, int head_dim, size_t n_rows, const void *rows,
                                    uint8_t *codes, uint16_t *sides, tkv_error *error);

/* ---- Checks: whether this machine computes rightly, and how fast --------------------------- */

/* What there is. Kernel sets of this build by index from 0, the reference first and the best last,
 * as tkv_context_params.kernels takes them; *can_run, unless that is NULL: this machine has what
 * they need. Kinds of devices beside the CPU, as tkv_context_params.device takes them. NULL beyond
 * the last; static storage. */
TKV_API const char *tkv_kernels_name(int index, bool *can_run);
TKV_API const char *tkv_device_name(int index);

/* How many devices of a kind there are; reason [size] receives why there is none. */
TKV_API int tkv_device_count(const char *name, char *reason, size_t size);

/* What is checked and timed: on the CPU kernels on one page, on a device operations on a layer. */
typedef enum tkv_operation {
    TKV_OPERATION_ROTATE = 0,
    TKV_OPERATION_UNROTATE,
    TKV_OPERATION_SOFTMAX,         /* of the scores of a page; CPU */
    TKV_OPERATION_MOVE_ROWS,       /* rows padded, cut off and turned by RoPE; device */
    TKV_OPERATION_JOIN,            /* of attention over parts of a context; device */
    TKV_OPERATION_ENCODE,          /* this one and the later ones: of each type; CPU */
    TKV_OPERATION_DECODE,          /* CPU */
    TKV_OPERATION_STORE,           /* encoding of a layer's rows; device */
    TKV_OPERATION_LOAD,            /* decoding of a layer's rows; device */
    TKV_OPERATION_PREPARE_QUERIES, /* CPU; wrong if scores are */
    TKV_OPERATION_SCORES,          /* of queries with a page of keys; CPU */
    TKV_OPERATION_ACCUMULATE,      /* of a page of values, weighed; CPU */
    TKV_OPERATION_ATTEND,          /* device */
    TKV_OPERATION_COUNT
} tkv_operation;

/* "rotate", "prepare_queries"; static storage. Whether it is done on types. */
TKV_API const char *tkv_operation_name(tkv_operation operation);
TKV_API bool tkv_operation_has_types(tkv_operation operation);

typedef enum tkv_check_mode {
    TKV_CHECK_ANSWERS =
        0,            /* every operation, type and common size, and the known answers: seconds */
    TKV_CHECK_SAMPLE, /* a few small cases of all, for emulators and checkers of memory */
    TKV_CHECK_ALL,    /* all cases: minutes */
    TKV_CHECK_SPEED   /* times, of shapes that are checked first */
} tkv_check_mode;

/* All zero: the answers of what the context computes with. */
typedef struct tkv_check_params {
    tkv_check_mode mode;
    bool every_set;      /* of a context on the CPU: all kernel sets that this machine can run, the
                            reference first, and not the context's alone; timed in turns */
    uint32_t operations; /* which: 1u << TKV_OPERATION_SCORES | ...; 0: all that there are */
    int max_head_dim;    /* leaves out larger ones (and, of answers, known digests); 0: none */
    uint64_t seed;       /* of rows that have no known answers */

    /* What is timed. */
    const tkv_type *types; /* [n_types]; NULL: all */
    int n_types;
    const int *head_dims; /* [n_head_dims], multiples of 16; NULL: 64, 80, 96, 128 and 256 */
    int n_head_dims;
    int n_tokens;      /* of a layer; 0: 8192 */
    int n_kv_heads;    /* of a layer, with four query heads each; 0: 8 */
    tkv_effort effort; /* of encoding */
    double seconds;    /* for each measurement; 0: 0.02 */
    uint64_t reserved[8];
} tkv_check_params;

/* What a measured time is set beside: copying as many bytes as an operation must read and write. */
typedef enum tkv_limit {
    TKV_LIMIT_NONE = 0, /* not timed */
    TKV_LIMIT_MEMORY,   /* within memory, beyond the caches */
    TKV_LIMIT_CACHE     /* within a first-level cache */
} tkv_limit;

/* One case, made by the library and grown at its end. Texts live as long as the call that reports
 * it. */
typedef struct tkv_check_result {
    tkv_operation operation;
    const char *kernels;  /* the set, as tkv_context_kernels names it */
    tkv_type type;        /* TKV_TYPE_COUNT: the operation has none */
    int head_dim;         /* 0: likewise */
    const char *text;     /* the case in words, with what repeats it; empty if timed */
    const char *fault;    /* NULL: it is right; otherwise what is wrong */
    double error;         /* the largest that was found, in units that are the operation's own */
    double bound;         /* what it may be. 0: bits are fixed, and errors are bytes that differ */
    double seconds;       /* of a call, the median of turns; 0: not timed */
    double bytes;         /* that a call must read and write */
    tkv_limit limit;      /* what copies them */
    double limit_seconds; /* how long a copy takes */
} tkv_check_result;

typedef void (*tkv_check_report)(void *user, const tkv_check_result *result);

/* Checks, or times, the operations of a context and reports each case as it is done; a fault is no
 * error of the call. Takes some memory of its own, where the context computes, and one thread. */
TKV_API tkv_status tkv_check_run(tkv_context *context, const tkv_check_params *params,
                                 tkv_check_report report, void *user, tkv_error *error);

#ifdef __cplusplus
}
#endif

#endif
