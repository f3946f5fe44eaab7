/* The report of an evaluation: one HTML file with everything in it. */
#ifndef TKV_CLI_REPORT_H
#define TKV_CLI_REPORT_H

#include "cli/eval.h"

/* Writes the report; `results` loses the order of its divergences. */
tkv_status report_write(const char *path, const loaded_model *loaded, const eval_plan *plan,
                        eval_results *results, tkv_error *error);

#endif
