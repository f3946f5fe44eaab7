/* What is timed: repeated calls of one operation, in turns with others. */
#ifndef TKV_CHECK_SPEED_H
#define TKV_CHECK_SPEED_H

#include "check/check.h"

/* What checking a shape came to before it is timed: the largest error, and the first fault. */
typedef struct tkv_verdict {
    double error;
    double bound;
    char fault[200]; /* empty: none */
} tkv_verdict;

/* A tkv_check_report; `user` is a verdict. */
void tkv_verdict_note(void *user, const tkv_check_result *result);

/* Reports a time with its verdict. */
void tkv_check_tell_time(tkv_check *check, const tkv_verdict *verdict, tkv_check_result result);

/* Turns of which the median counts. */
enum { TKV_CHECK_TURNS = 5 };

/* Seconds that the calls of one turn take together. */
double tkv_check_turn_seconds(const tkv_check_params *params);

/* How many calls take that long, of which one takes `seconds`. */
int tkv_check_calls(const tkv_check_params *params, double seconds);

/* The median of the turns; sorts them. */
double tkv_check_median(double turns[TKV_CHECK_TURNS]);

/* Bytes a second, read and written, of copies within memory [bytes], at the best of several. */
double tkv_check_copy_speed(uint8_t *memory, size_t bytes);

#endif
