/* A report: one HTML file with everything in it. */
#ifndef TKV_CLI_PAGE_H
#define TKV_CLI_PAGE_H

#include "turbokv.h"

#include <stdio.h>

/* Whether a report can be written there, in place of no other file than a report; to be asked
 * before what it tells is measured. */
tkv_status page_check(const char *path, tkv_error *error);

/* Opens a file and writes what comes before the content. */
tkv_status page_open(const char *path, const char *title, FILE **file, tkv_error *error);

/* Writes a last note and the end, and closes. */
tkv_status page_close(FILE *file, const char *path, const char *note, tkv_error *error);

/* A cell of a table. */
void page_write_cell(FILE *file, const char *text);

#endif
