/* A progress bar on stderr, shown only if that is a terminal. */
#ifndef TKV_CLI_PROGRESS_H
#define TKV_CLI_PROGRESS_H

#include <stdbool.h>

typedef struct progress {
    const char *label;
    bool is_shown;
    double start;
    double last_shown;
} progress;

void progress_begin(progress *bar, const char *label);
void progress_update(progress *bar, double done, double total);

/* Removes the bar. */
void progress_end(progress *bar);

#endif
