/* A progress bar on stderr if that is a terminal; else a line now and then, for who waits long. */
#ifndef TKV_CLI_PROGRESS_H
#define TKV_CLI_PROGRESS_H

#include <stdbool.h>

typedef struct progress {
    const char *label;
    bool is_bar;
    double start;
    double last_shown;
} progress;

void progress_begin(progress *bar, const char *label);
void progress_update(progress *bar, double done, double total);

/* A part is done: without a terminal this prints a line, "eval: chunk 2 of 6 done, 7 min left". */
void progress_line(progress *bar, const char *part, double done, double total);

/* Removes the bar. */
void progress_end(progress *bar);

#endif
