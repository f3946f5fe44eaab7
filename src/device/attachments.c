/* Objects of callers that live with a context: a list, for there are few. */
#include "base/allocate.h"
#include "device/context.h"

struct tkv_attachment {
    tkv_attachment *earlier;
    const void *key;
    void *value;
    void (*release)(void *value);
};

/* The pointer to the key's attachment, or the NULL at the list's end. */
static tkv_attachment **find(tkv_context *context, const void *key)
{
    tkv_attachment **at = &context->attachments;
    while (*at && (*at)->key != key) {
        at = &(*at)->earlier;
    }
    return at;
}

static void take_out(tkv_context *context, tkv_attachment **at)
{
    tkv_attachment *taken = *at;
    *at = taken->earlier;
    tkv_release(&context->allocator, taken);
}

tkv_status tkv_context_attach(tkv_context *context, const void *key, void *value,
                              void (*release)(void *value), tkv_error *error)
{
    if (!context || !key) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context or key is NULL");
    }
    tkv_attachment **at = find(context, key);
    if (!value) {
        if (*at) {
            take_out(context, at);
        }
        return TKV_OK;
    }
    if (!*at) {
        tkv_attachment *created = tkv_allocate(&context->allocator, sizeof *created);
        if (!created) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for an attachment");
        }
        *created = (tkv_attachment){.earlier = context->attachments, .key = key};
        context->attachments = created;
        at = &context->attachments;
    }
    (*at)->value = value;
    (*at)->release = release;
    return TKV_OK;
}

void *tkv_context_attached(const tkv_context *context, const void *key)
{
    const tkv_attachment *at = context ? context->attachments : NULL;
    while (at && at->key != key) {
        at = at->earlier;
    }
    return at ? at->value : NULL;
}

void tkv_context_release_attachments(tkv_context *context)
{
    while (context->attachments) {
        const tkv_attachment latest = *context->attachments;
        take_out(context, &context->attachments);
        if (latest.release) {
            latest.release(latest.value);
        }
    }
}
