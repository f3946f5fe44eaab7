/* Small random models in a file, for the tests of the forward pass and of sessions. */
#ifndef TKV_TESTS_MODEL_SESSION_FIXTURE_H
#define TKV_TESTS_MODEL_SESSION_FIXTURE_H

#include "support/support.h"

#include "model/gguf.h"
#include "model/session.h"
#include "model/toy_model.h"

#define SEED 20261123u
#define VOCABULARY 50
#define N_TOKENS 37
#define MAX_TOKENS 64
/* Logits are of the order of 5; the f16 cache rounds keys and values by 2^-11 of their size. */
#define TOLERANCE (0.02 * ROUNDING)
/* Between batch sizes only float sums differ. */
#define BATCH_TOLERANCE (0.005 * ROUNDING)
/* Devices multiply in halves. */
#define ROUNDING (test_device() ? 4.0 : 1.0)

extern const toy_shape llama_shape;

/* Five layers with a window and one without; the longest batch is longer than the window. */
extern const toy_shape gemma3_shape;

typedef struct fixture {
    toy_model toy;
    char path[64];
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_context *context;
} fixture;

/* Writes f->toy to a file and opens it. */
void open_fixture(fixture *f);
void make_fixture(fixture *f, const toy_shape *shape);
void close_fixture(fixture *f);

/* n_batch: 0 for the usual one. */
tkv_session *start(const fixture *f, int n_batch);

void fill_tokens(int32_t tokens[N_TOKENS]);

tkv_status eval(tkv_session *session, const int32_t *tokens, int n_tokens, tkv_logits_mode mode,
                float *logits, tkv_error *error);

void check_near(const float *found, const double *expected, size_t n, double tolerance);

#endif
