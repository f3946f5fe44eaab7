#include "cli/progress.h"

#include "eval/clock.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define WIDTH 30
#define INTERVAL 0.1       /* seconds between redraws */
#define LINE_INTERVAL 60.0 /* seconds between lines where there is no terminal */

/* "42 s", "7 min", "3 h 20 min". */
static void format_time(double seconds, char *text, size_t size)
{
    const long minutes = lround(seconds / 60.0);
    if (seconds < 100.0) {
        snprintf(text, size, "%.0f s", seconds);
    } else if (minutes < 100) {
        snprintf(text, size, "%ld min", minutes);
    } else {
        snprintf(text, size, "%ld h %ld min", minutes / 60, minutes % 60);
    }
}

/* What is left at the pace so far. */
static void format_left(const progress *bar, double share, char *text, size_t size)
{
    const double left = share > 0.0 ? (tkv_clock() - bar->start) * (1.0 - share) / share : 0.0;
    format_time(left, text, size);
}

void progress_begin(progress *bar, const char *label)
{
    const double now = tkv_clock();
    *bar = (progress){label, isatty(STDERR_FILENO) != 0, now, 0.0};
    bar->last_shown = bar->is_bar ? 0.0 : now;
}

static void draw(const progress *bar, double share)
{
    const int filled = (int)(share * WIDTH);
    char cells[WIDTH + 1];
    memset(cells, ' ', WIDTH);
    memset(cells, '#', (size_t)(filled < WIDTH ? filled : WIDTH));
    cells[WIDTH] = '\0';
    char time[32];
    format_left(bar, share, time, sizeof time);
    fprintf(stderr, "\r%s [%s] %3.0f %%, %s left\x1b[K", bar->label, cells, 100.0 * share, time);
    fflush(stderr);
}

void progress_update(progress *bar, double done, double total)
{
    const double now = tkv_clock();
    const double share = total > 0.0 ? done / total : 1.0;
    const bool is_last = bar->is_bar && done >= total;
    if (!is_last && now - bar->last_shown < (bar->is_bar ? INTERVAL : LINE_INTERVAL)) {
        return;
    }
    bar->last_shown = now;
    if (bar->is_bar) {
        draw(bar, share);
    } else {
        char time[32];
        format_left(bar, share, time, sizeof time);
        fprintf(stderr, "%s: %.0f %%, %s left\n", bar->label, 100.0 * share, time);
    }
}

void progress_line(progress *bar, const char *part, double done, double total)
{
    if (bar->is_bar) {
        return;
    }
    char time[32];
    const double share = total > 0.0 ? done / total : 1.0;
    format_left(bar, share < 1.0 ? share : 1.0, time, sizeof time);
    fprintf(stderr, "%s: %s done, %s left\n", bar->label, part, time);
    bar->last_shown = tkv_clock();
}

void progress_end(progress *bar)
{
    if (bar->is_bar) {
        fputs("\r\x1b[K", stderr);
        fflush(stderr);
    }
}
