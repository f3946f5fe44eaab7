/* Plots as inline SVG in an HTML page. */
#ifndef TKV_CLI_PLOT_H
#define TKV_CLI_PLOT_H

#include <stdbool.h>
#include <stdio.h>

/* Text with the characters that HTML reserves written as entities. */
void plot_write_text(FILE *file, const char *text);

typedef struct plot_point {
    double x;
    double y;
    const char *label;
} plot_point;

typedef struct plot_axes {
    const char *title;
    const char *x_label;
    const char *y_label;
    bool is_y_logarithmic; /* points with y <= 0 are left out */
} plot_axes;

/* Labelled points. */
void plot_scatter(FILE *file, const plot_axes *axes, const plot_point *points, int n_points);

/* A curve [n_points] over the x values that all curves share. */
typedef struct plot_curve {
    const double *values;
    const char *label;
    int colour; /* curves of equal number have equal colour */
} plot_curve;

/* Curves over x [n_points], both axes logarithmic, x marked with names at its values; a limit is a
 * horizontal line (0: none). Values <= 0 are left out. */
typedef struct plot_curves {
    const char *title;
    const char *x_label;
    const char *y_label;
    int n_points;
    const double *x;
    const char *const *x_names;
    int n_curves; /* at most PLOT_MAX_CURVES are drawn */
    const plot_curve *curves;
    double limit;
    const char *limit_label;
} plot_curves;

#define PLOT_MAX_CURVES 32

void plot_write_curves(FILE *file, const plot_curves *curves);

/* Shares from 0 to 1 [n_rows][n_columns] as coloured cells with their percentages. */
typedef struct plot_cells {
    const char *title;
    const char *row_label;
    const char *column_label;
    int n_rows;
    int n_columns;
    const double *values;
    const char *const *row_names;
    const char *const *column_names;
} plot_cells;

void plot_heat_map(FILE *file, const plot_cells *cells);

#endif
