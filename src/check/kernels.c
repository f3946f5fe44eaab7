/* All cases of tables of kernels. */
#include "base/error.h"
#include "check/check.h"

static bool is_complete(const tkv_kernels *k)
{
    return k->rotate && k->unrotate && k->encode && k->decode && k->query_bytes &&
           k->prepare_queries && k->scratch_bytes && k->scores && k->softmax && k->accumulate;
}

void tkv_check_shape(tkv_check *check, const tkv_kernels *kernels, tkv_operation operation,
                     tkv_type type, int head_dim)
{
    switch (operation) {
    case TKV_OPERATION_ROTATE:
    case TKV_OPERATION_UNROTATE: tkv_check_rotation_shape(check, kernels, head_dim); break;
    case TKV_OPERATION_SOFTMAX: tkv_check_softmax_shape(check, kernels); break;
    case TKV_OPERATION_ENCODE:
    case TKV_OPERATION_DECODE: tkv_check_coding_shape(check, kernels, type, head_dim); break;
    case TKV_OPERATION_PREPARE_QUERIES:
    case TKV_OPERATION_SCORES:
    case TKV_OPERATION_ACCUMULATE: tkv_check_products_shape(check, kernels, type, head_dim); break;
    case TKV_OPERATION_MOVE_ROWS: /* of devices */
    case TKV_OPERATION_JOIN:
    case TKV_OPERATION_STORE:
    case TKV_OPERATION_LOAD:
    case TKV_OPERATION_ATTEND:
    case TKV_OPERATION_COUNT: break;
    }
}

static void check_table(tkv_check *check, const tkv_kernels *kernels)
{
    check->result.kernels = kernels->name;
    tkv_check_rotation(check, kernels);
    tkv_check_softmax(check, kernels);
    tkv_check_coding(check, kernels);
    tkv_check_products(check, kernels);
    tkv_check_errors(check, kernels);
    tkv_check_hostile_pages(check, kernels);
}

tkv_status tkv_check_kernels(const tkv_kernels *const *tables, int n_tables,
                             const tkv_check_params *params, tkv_check_report report, void *user,
                             tkv_error *error)
{
    tkv_check check = {.params = params, .report = report, .user = user, .error = error};
    for (int i = 0; i < n_tables; i++) {
        if (!is_complete(tables[i])) {
            return tkv_fail(error, TKV_ERR_UNSUPPORTED, "kernels '%s' are not complete",
                            tables[i]->name);
        }
    }
    if (params->mode == TKV_CHECK_SPEED) {
        tkv_check_speed(&check, tables, n_tables);
        return check.status;
    }
    for (int i = 0; i < n_tables && tkv_check_is_on(&check); i++) {
        check_table(&check, tables[i]);
    }
    return check.status;
}
