#include "check/trial.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>

static const float GUARD_VALUE = 12345.0f;
enum { GUARD_FLOATS = 64 };

const int tkv_trial_dims[TKV_TRIAL_DIMS] = {128, 64, 256, 32,  16,  80,  1024,
                                            48,  96, 112, 192, 576, 512, 16 * 61};

bool tkv_trial_is_on(const tkv_trial *trial)
{
    return tkv_check_is_on(trial->check);
}

void tkv_trial_note(tkv_trial *trial, tkv_status status)
{
    if (tkv_trial_is_on(trial)) {
        trial->check->status = status;
    }
}

static void note_no_memory(tkv_trial *trial, size_t bytes)
{
    tkv_trial_note(trial, tkv_fail(trial->check->error, TKV_ERR_OUT_OF_MEMORY,
                                   "no memory for a check (%zu bytes)", bytes));
}

void *tkv_trial_host(tkv_trial *trial, size_t bytes)
{
    const size_t n = (size_t)trial->n_host + 1;
    if (!tkv_trial_is_on(trial)) {
        return NULL;
    }
    void **larger = realloc(trial->host, n * sizeof *larger);
    void *memory = larger ? calloc(1, bytes ? bytes : 1) : NULL;
    trial->host = larger ? larger : trial->host;
    if (!memory) {
        note_no_memory(trial, bytes);
        return NULL;
    }
    trial->host[trial->n_host++] = memory;
    return memory;
}

uint64_t tkv_trial_allocate(tkv_trial *trial, size_t bytes)
{
    const size_t n = (size_t)trial->n_addresses + 1;
    uint64_t address = 0;
    if (!tkv_trial_is_on(trial)) {
        return 0;
    }
    uint64_t *larger = realloc(trial->addresses, n * sizeof *larger);
    if (!larger) {
        note_no_memory(trial, n * sizeof *larger);
        return 0;
    }
    trial->addresses = larger;
    tkv_trial_note(trial,
                   trial->table->allocate(trial->device, bytes, &address, trial->check->error));
    if (tkv_trial_is_on(trial)) {
        trial->addresses[trial->n_addresses++] = address;
    }
    const uint64_t alignment = bytes % 256 ? 16 : 256;
    if (tkv_trial_is_on(trial) && address % alignment != 0) {
        tkv_trial_note(trial, tkv_fail(trial->check->error, TKV_ERR_DEVICE,
                                       "%s: memory of %zu bytes is not aligned to %d bytes",
                                       trial->table->name, bytes, (int)alignment));
    }
    return address;
}

uint64_t tkv_trial_put(tkv_trial *trial, const void *from, size_t bytes)
{
    const uint64_t address = tkv_trial_allocate(trial, bytes);
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(
            trial, trial->table->upload(trial->device, address, from, bytes, trial->check->error));
    }
    return address;
}

void tkv_trial_get(tkv_trial *trial, void *to, uint64_t from, size_t bytes)
{
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial,
                       trial->table->download(trial->device, to, from, bytes, trial->check->error));
    }
}

uint64_t tkv_trial_put_guarded(tkv_trial *trial, size_t n)
{
    float *x = tkv_trial_host(trial, (n + GUARD_FLOATS) * sizeof *x);
    for (size_t i = 0; x && i < n + GUARD_FLOATS; i++) {
        x[i] = i < n ? NAN : GUARD_VALUE;
    }
    return tkv_trial_put(trial, x, (n + GUARD_FLOATS) * sizeof *x);
}

float *tkv_trial_get_guarded(tkv_trial *trial, uint64_t address, size_t n, bool *is_intact)
{
    float *x = tkv_trial_host(trial, (n + GUARD_FLOATS) * sizeof *x);
    tkv_trial_get(trial, x, address, (n + GUARD_FLOATS) * sizeof *x);
    for (size_t i = n; tkv_trial_is_on(trial) && i < n + GUARD_FLOATS; i++) {
        *is_intact = *is_intact && x[i] == GUARD_VALUE;
    }
    return tkv_trial_is_on(trial) ? x : NULL;
}

void tkv_trial_end(tkv_trial *trial)
{
    while (trial->n_host > 0) {
        free(trial->host[--trial->n_host]);
    }
    while (trial->n_addresses > 0) {
        trial->table->release(trial->device, trial->addresses[--trial->n_addresses]);
    }
    free(trial->host);
    free(trial->addresses);
    trial->host = NULL;
    trial->addresses = NULL;
}

void tkv_trial_forget_workspace(tkv_trial *trial)
{
    if (trial->workspace) {
        trial->table->release(trial->device, trial->workspace);
    }
    trial->workspace = 0;
    trial->workspace_bytes = 0;
}
