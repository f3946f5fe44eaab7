/* All cases of a device. */
#include "base/error.h"
#include "check/trial.h"

static bool is_complete(const tkv_device_table *t)
{
    return t->open && t->close && t->allocate && t->release && t->upload && t->download &&
           t->copy && t->wait && t->rotate && t->move_rows && t->join && t->store && t->load &&
           t->plan && t->attend;
}

/* What says how pages should be: for the known answers the reference itself; otherwise, since it
 * takes milliseconds for a row of a trellis, the fastest of this machine's kernels, which other
 * checks hold equal to it. */
static const tkv_kernels *kernels_for(tkv_check_mode mode)
{
    const tkv_kernels *kernels = &tkv_kernels_scalar;
    const tkv_kernels *better;
    for (int i = 0; mode != TKV_CHECK_ANSWERS && (better = tkv_kernels_available(i)); i++) {
        kernels = better;
    }
    return kernels;
}

static void check_all(tkv_trial *trial)
{
    if (trial->check->params->mode == TKV_CHECK_SPEED) {
        tkv_check_device_speed(trial);
        return;
    }
    tkv_check_device_rotation(trial);
    tkv_check_device_rows(trial);
    tkv_check_device_join(trial);
    tkv_check_device_storing(trial);
    tkv_check_device_attention(trial);
}

tkv_status tkv_check_device(tkv_device *device, const tkv_check_params *params,
                            tkv_check_report report, void *user, tkv_error *error)
{
    const tkv_device_table *table = device->table;
    tkv_check check = {.params = params, .report = report, .user = user, .error = error};
    tkv_trial trial = {.check = &check,
                       .table = table,
                       .device = device,
                       .kernels = kernels_for(params->mode),
                       .is_small = params->mode == TKV_CHECK_SAMPLE};
    if (!is_complete(table)) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "the table of '%s' is not complete",
                        table->name);
    }
    check.result.kernels = table->name;
    check_all(&trial);
    tkv_trial_end(&trial);
    tkv_trial_forget_workspace(&trial);
    return check.status;
}
