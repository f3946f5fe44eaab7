#include "gate/probe.h"

#include "eval/attention_speed.h"
#include "eval/clock.h"

enum { MAX_TOKENS = 16384 };

/* To fill the cache of one type, and to time it. */
static const double FILL_SECONDS = 0.6;
static const double TIME_SECONDS = 0.3;

static const int MIN_CALLS = 3;

static tkv_attention_shape shape_of(tkv_type type, int n_tokens)
{
    return (tkv_attention_shape){.type_k = type,
                                 .type_v = type,
                                 .head_dim = TKV_PROBE_HEAD_DIM,
                                 .n_kv_heads = TKV_PROBE_KV_HEADS,
                                 .group = TKV_PROBE_GROUP,
                                 .n_tokens = n_tokens,
                                 .n_queries = 1};
}

/* As many tokens as the type that is slowest to encode allows. */
static tkv_status choose_length(tkv_context *context, int *n_tokens, tkv_error *error)
{
    double slowest = 0.0;
    tkv_status status = TKV_OK;
    for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
        const tkv_attention_shape shape = shape_of((tkv_type)type, TKV_PAGE_TOKENS);
        tkv_attention_work *work = NULL;
        const double start = tkv_clock();
        status = tkv_attention_work_create(context, &shape, &work, error);
        const double seconds = tkv_clock() - start;
        slowest = seconds > slowest ? seconds : slowest;
        tkv_attention_work_free(work);
    }
    const double n_pages = slowest > 0.0 ? FILL_SECONDS / slowest : MAX_TOKENS;
    *n_tokens =
        n_pages >= MAX_TOKENS / TKV_PAGE_TOKENS ? MAX_TOKENS : TKV_PAGE_TOKENS * (1 + (int)n_pages);
    return status;
}

/* The fastest of as many calls as there is time for: others use the machine too. */
static tkv_status time_calls(tkv_attention_work *work, double *microseconds, tkv_error *error)
{
    const double begin = tkv_clock();
    double best = 1e9;
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && (i < MIN_CALLS || tkv_clock() - begin < TIME_SECONDS);
         i++) {
        double seconds;
        status = tkv_attention_work_run(work, &seconds, error);
        best = seconds < best ? seconds : best;
    }
    *microseconds = 1e6 * best;
    return status;
}

tkv_status tkv_probe_run(tkv_context *context, tkv_probe *probe, tkv_error *error)
{
    *probe = (tkv_probe){.n_threads = tkv_context_threads(context)};
    tkv_status status = choose_length(context, &probe->n_tokens, error);
    for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
        const tkv_attention_shape shape = shape_of((tkv_type)type, probe->n_tokens);
        tkv_attention_work *work = NULL;
        status = tkv_attention_work_create(context, &shape, &work, error);
        if (status == TKV_OK) {
            status = time_calls(work, &probe->microseconds[type], error);
        }
        tkv_attention_work_free(work);
    }
    return status;
}

static void note(void *user, const tkv_check_result *result)
{
    tkv_probe *probe = user;
    probe->microseconds[result->type] = 1e6 * result->seconds;
}

tkv_status tkv_probe_run_on_device(tkv_context *context, int n_tokens, tkv_probe *probe,
                                   tkv_error *error)
{
    static const int head_dim = TKV_PROBE_HEAD_DIM;
    const tkv_check_params params = {.mode = TKV_CHECK_SPEED,
                                     .operations = 1u << TKV_OPERATION_ATTEND,
                                     .head_dims = &head_dim,
                                     .n_head_dims = 1,
                                     .n_tokens = n_tokens,
                                     .n_kv_heads = TKV_PROBE_KV_HEADS,
                                     .effort = TKV_EFFORT_FAST,
                                     .seconds = TIME_SECONDS};
    *probe = (tkv_probe){.n_tokens = n_tokens};
    return tkv_check_run(context, &params, note, probe, error);
}
