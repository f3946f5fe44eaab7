/* What is timed: repeated calls of one operation, in turns with others. */
#ifndef TKV_CHECK_SPEED_H
#define TKV_CHECK_SPEED_H

#include "check/check.h"

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
