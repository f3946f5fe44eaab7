#include "gate/json_number.h"

#include "common/try.h"

#include <math.h>
#include <stdio.h>

tkv_status tkv_json_number(const cJSON *object, const char *name, double low, double high,
                           double *number, tkv_error *error)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    if (cJSON_IsNumber(item) && item->valuedouble >= low && item->valuedouble <= high) {
        *number = item->valuedouble;
        return TKV_OK;
    }
    char found[48] = "missing";
    if (cJSON_IsNumber(item)) {
        snprintf(found, sizeof found, "%.17g", item->valuedouble);
    } else if (item) {
        snprintf(found, sizeof found, "no number");
    }
    return tkv_fail(error, TKV_ERR_FORMAT, "'%.40s' is %s: expected a number from %.17g to %.17g",
                    name, found, low, high);
}

tkv_status tkv_json_count(const cJSON *object, const char *name, int low, int high, int *count,
                          tkv_error *error)
{
    double number = 0.0;
    TKV_TRY(tkv_json_number(object, name, (double)low, (double)high, &number, error));
    if (number != floor(number)) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "'%.40s' is %.17g: expected a whole number from %d to %d", name, number,
                        low, high);
    }
    *count = (int)number;
    return TKV_OK;
}
