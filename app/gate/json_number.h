/* Numbers of a JSON file, which anybody may have edited. */
#ifndef TKV_GATE_JSON_NUMBER_H
#define TKV_GATE_JSON_NUMBER_H

#include "turbokv.h"

#include <cjson/cJSON.h>

/* Reads the number `name` of an object, from low to high. TKV_ERR_FORMAT if it is missing, no
 * number or outside; the message says so. */
tkv_status tkv_json_number(const cJSON *object, const char *name, double low, double high,
                           double *number, tkv_error *error);

/* The same of a whole number. */
tkv_status tkv_json_count(const cJSON *object, const char *name, int low, int high, int *count,
                          tkv_error *error);

#endif
