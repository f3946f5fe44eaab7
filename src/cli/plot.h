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
