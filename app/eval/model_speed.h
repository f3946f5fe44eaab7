/* A model at work on a cache of one policy, for the benchmarks of prefill and decode. */
#ifndef TKV_EVAL_MODEL_SPEED_H
#define TKV_EVAL_MODEL_SPEED_H

#include "model/model.h"
#include "model/tokenizer.h"
#include "turbokv.h"

typedef struct tkv_model_work tkv_model_work;

/* An empty sequence with room for max_tokens, of arbitrary tokens after the begin token that the
 * tokenizer may want: the same for every policy. Model and context must outlive it; free with
 * tkv_model_work_free. */
tkv_status tkv_model_work_create(const tkv_model *model, const tkv_tokenizer *tokenizer,
                                 tkv_context *context, const tkv_policy *policy, int max_tokens,
                                 tkv_model_work **work, tkv_error *error);
void tkv_model_work_free(tkv_model_work *work);

/* Extends the sequence to `depth` tokens; progress (NULL: none) hears of those of this call that
 * are done. */
tkv_status tkv_model_work_fill(tkv_model_work *work, int depth,
                               void (*progress)(void *user, int n_done), void *progress_user,
                               tkv_error *error);

/* Seconds to pass n_tokens through the model after the sequence, at once (prefill, with the logits
 * of the last) or one by one with the logits of each (decode), in a copy that has warmed up. The
 * sequence stays as it was. */
tkv_status tkv_model_work_prefill(const tkv_model_work *work, int n_tokens, double *seconds,
                                  tkv_error *error);
tkv_status tkv_model_work_decode(const tkv_model_work *work, int n_tokens, double *seconds,
                                 tkv_error *error);

/* Bytes of the cache, and bits a value in it; 0 while it is empty. */
size_t tkv_model_work_bytes(const tkv_model_work *work);
double tkv_model_work_bits(const tkv_model_work *work);

#endif
