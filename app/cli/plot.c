#include "cli/plot.h"

#include <math.h>
#include <string.h>

#define WIDTH 720
#define HEIGHT 420
#define LEFT 76
#define RIGHT 110
#define WIDE_RIGHT 190 /* beside curves, for their names */
#define TOP 40
#define BOTTOM 54
#define MAX_TICKS 12
#define MAX_LABELS 64
#define LABEL_CHARACTERS 26
#define CHARACTER_WIDTH 6.6 /* about, of the labels */
#define LINE_HEIGHT 13.0

void plot_write_text(FILE *file, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&': fputs("&amp;", file); break;
        case '<': fputs("&lt;", file); break;
        case '>': fputs("&gt;", file); break;
        case '"': fputs("&quot;", file); break;
        default: fputc(*text, file);
        }
    }
}

/* A range of values along one side of the plot. */
typedef struct axis {
    double low;
    double high;
    bool is_logarithmic;
    double extent; /* in the picture */
    double ticks[MAX_TICKS];
    int n_ticks;
} axis;

static double share_of(const axis *a, double value)
{
    return a->is_logarithmic ? log(value / a->low) / log(a->high / a->low)
                             : (value - a->low) / (a->high - a->low);
}

static double x_of(const axis *a, double value)
{
    return LEFT + share_of(a, value) * a->extent;
}

static double y_of(const axis *a, double value)
{
    return HEIGHT - BOTTOM - share_of(a, value) * a->extent;
}

/* 1, 2 or 5 times a power of ten: at most MAX_TICKS steps from low to high. */
static double choose_step(double span)
{
    const double rough = span / 7.0;
    const double power = pow(10.0, floor(log10(rough)));
    const double digit = rough / power;
    return power * (digit <= 1.0 ? 1.0 : digit <= 2.0 ? 2.0 : digit <= 5.0 ? 5.0 : 10.0);
}

static axis linear_axis(double low, double high, double extent)
{
    const double span = high > low ? high - low : 1.0;
    const double step = choose_step(1.1 * span);
    axis a = {.low = low - 0.05 * span, .high = high + 0.05 * span, .extent = extent};
    for (double tick = ceil(a.low / step) * step; tick <= a.high && a.n_ticks < MAX_TICKS;
         tick += step) {
        a.ticks[a.n_ticks++] = fabs(tick) < 1e-9 * step ? 0.0 : tick;
    }
    return a;
}

/* Whole powers of ten around the values. */
static axis logarithmic_axis(double low, double high, double extent)
{
    const int first = (int)floor(log10(low) - 1e-9);
    const int last = (int)ceil(log10(high) + 1e-9);
    axis a = {
        .low = pow(10.0, first), .high = pow(10.0, last), .is_logarithmic = true, .extent = extent};
    for (int power = first; power <= last && a.n_ticks < MAX_TICKS; power++) {
        a.ticks[a.n_ticks++] = pow(10.0, power);
    }
    return a;
}

static void begin_figure(FILE *file, int height, const char *title)
{
    fprintf(file, "<svg viewBox=\"0 0 %d %d\" width=\"%d\" role=\"img\">\n", WIDTH, height, WIDTH);
    fprintf(file, "<title>");
    plot_write_text(file, title);
    fprintf(file, "</title>\n<text x=\"%d\" y=\"22\" class=\"title\">", LEFT);
    plot_write_text(file, title);
    fprintf(file, "</text>\n");
}

static void write_label(FILE *file, double x, double y, const char *anchor, const char *text)
{
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    plot_write_text(file, text);
    fprintf(file, "</text>\n");
}

/* x_names: of the ticks of x, or NULL for their numbers. */
static void draw_axes(FILE *file, const plot_axes *axes, const axis *x, const axis *y,
                      const char *const *x_names)
{
    char text[32];
    for (int i = 0; i < x->n_ticks; i++) {
        const double at = x_of(x, x->ticks[i]);
        fprintf(file, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" class=\"grid\"/>\n", at,
                at, TOP, HEIGHT - BOTTOM);
        snprintf(text, sizeof text, "%g", x->ticks[i]);
        write_label(file, at, HEIGHT - BOTTOM + 18, "middle", x_names ? x_names[i] : text);
    }
    for (int i = 0; i < y->n_ticks; i++) {
        const double at = y_of(y, y->ticks[i]);
        fprintf(file, "<line x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n",
                LEFT, LEFT + x->extent, at, at);
        snprintf(text, sizeof text, "%g", y->ticks[i]);
        write_label(file, LEFT - 8, at + 4, "end", text);
    }
    write_label(file, LEFT + x->extent / 2.0, HEIGHT - 12, "middle", axes->x_label);
    fprintf(file, "<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">",
            (TOP + HEIGHT - BOTTOM) / 2);
    plot_write_text(file, axes->y_label);
    fprintf(file, "</text>\n");
}

static bool is_shown(const plot_axes *axes, const plot_point *point)
{
    return isfinite(point->x) && isfinite(point->y) && (!axes->is_y_logarithmic || point->y > 0.0);
}

/* Where the labels of points lie. */
typedef struct label_places {
    int n;
    struct {
        double left;
        double right;
        double y;
    } at[MAX_LABELS];
} label_places;

static bool is_free(const label_places *places, double left, double right, double y)
{
    for (int i = 0; i < places->n; i++) {
        if (left < places->at[i].right && right > places->at[i].left &&
            fabs(y - places->at[i].y) < LINE_HEIGHT) {
            return false;
        }
    }
    return true;
}

/* The height nearest to y at which a label covers no other one: y, or some lines below or above. */
static double place_label(label_places *places, double left, double right, double y)
{
    double at = y;
    for (int i = 1; i < 9 && !is_free(places, left, right, at); i++) {
        at = y + (i % 2 ? 1 : -1) * (i + 1) / 2 * LINE_HEIGHT;
    }
    if (places->n < MAX_LABELS) {
        places->at[places->n].left = left;
        places->at[places->n].right = right;
        places->at[places->n++].y = at;
    }
    return at;
}

/* A point and its label, cut to what fits; all of it shows when the mouse is on the point. */
static void draw_point(FILE *file, double x, double y, const char *label, label_places *places)
{
    char text[LABEL_CHARACTERS + 8];
    const int length = (int)strlen(label);
    const bool is_cut = length > LABEL_CHARACTERS;
    int n_shown = is_cut ? LABEL_CHARACTERS - 1 : length;
    while (n_shown > 0 && ((unsigned char)label[n_shown] & 0xc0) == 0x80) {
        n_shown--; /* not inside of a character */
    }
    const double width = CHARACTER_WIDTH * (is_cut ? LABEL_CHARACTERS : length);
    const bool is_left = x + 9 + width > WIDTH;
    const double from = is_left ? x - 9 - width : x + 9;
    snprintf(text, sizeof text, "%.*s%s", n_shown, label, is_cut ? "\xe2\x80\xa6" : "");
    fprintf(file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"><title>", x, y);
    plot_write_text(file, label);
    fprintf(file, "</title></circle>\n");
    write_label(file, is_left ? x - 9 : x + 9, place_label(places, from, from + width, y + 4),
                is_left ? "end" : "start", text);
}

void plot_scatter(FILE *file, const plot_axes *axes, const plot_point *points, int n_points)
{
    double low[2] = {INFINITY, INFINITY};
    double high[2] = {-INFINITY, -INFINITY};
    label_places places = {0};
    for (int i = 0; i < n_points; i++) {
        if (is_shown(axes, &points[i])) {
            low[0] = fmin(low[0], points[i].x);
            high[0] = fmax(high[0], points[i].x);
            low[1] = fmin(low[1], points[i].y);
            high[1] = fmax(high[1], points[i].y);
        }
    }
    if (low[0] > high[0]) {
        return;
    }
    const double height = HEIGHT - TOP - BOTTOM;
    const axis x = linear_axis(low[0], high[0], WIDTH - LEFT - RIGHT);
    const axis y = axes->is_y_logarithmic ? logarithmic_axis(low[1], high[1], height)
                                          : linear_axis(low[1], high[1], height);
    begin_figure(file, HEIGHT, axes->title);
    draw_axes(file, axes, &x, &y, NULL);
    for (int i = 0; i < n_points; i++) {
        if (is_shown(axes, &points[i])) {
            draw_point(file, x_of(&x, points[i].x), y_of(&y, points[i].y), points[i].label,
                       &places);
        }
    }
    fprintf(file, "</svg>\n");
}

static void draw_curve(FILE *file, const plot_curves *c, int index, const axis *x, const axis *y)
{
    static const char *const colours[] = {"#1f2430", "#2b6cb0", "#2f855a", "#b7791f",
                                          "#c53030", "#6b46c1", "#0987a0"};
    const plot_curve *curve = &c->curves[index];
    fprintf(file, "<polyline stroke=\"%s\" points=\"",
            colours[(size_t)curve->colour % (sizeof colours / sizeof *colours)]);
    for (int i = 0; i < c->n_points; i++) {
        if (curve->values[i] > 0.0) {
            fprintf(file, "%.1f,%.1f ", x_of(x, c->x[i]), y_of(y, curve->values[i]));
        }
    }
    fprintf(file, "\"/>\n");
}

/* Names at the ends of the curves, moved apart from the top down where they would overlap. */
static void label_curves(FILE *file, const plot_curves *c, const axis *x, const axis *y)
{
    bool is_done[PLOT_MAX_CURVES] = {false};
    double lowest = 0.0;
    for (int n = 0; n < c->n_curves; n++) {
        int next = -1;
        for (int i = 0; i < c->n_curves; i++) {
            const bool is_higher = next < 0 || c->curves[i].values[c->n_points - 1] >
                                                   c->curves[next].values[c->n_points - 1];
            next = !is_done[i] && is_higher ? i : next;
        }
        const double value = next >= 0 ? c->curves[next].values[c->n_points - 1] : 0.0;
        if (value > 0.0 && c->curves[next].label[0]) {
            lowest = fmax(y_of(y, value) + 4.0, lowest + 14.0);
            write_label(file, LEFT + x->extent + 8.0, lowest, "start", c->curves[next].label);
        }
        is_done[next >= 0 ? next : 0] = true;
    }
}

void plot_write_curves(FILE *file, const plot_curves *given)
{
    plot_curves c = *given;
    double low = c.limit > 0.0 ? c.limit : INFINITY;
    double high = c.limit;
    c.n_curves = c.n_curves < PLOT_MAX_CURVES ? c.n_curves : PLOT_MAX_CURVES;
    for (int i = 0; i < c.n_curves; i++) {
        for (int j = 0; j < c.n_points; j++) {
            const double value = c.curves[i].values[j];
            low = value > 0.0 ? fmin(low, value) : low;
            high = fmax(high, value);
        }
    }
    if (c.n_points < 1 || !(high > 0.0) || !isfinite(low)) {
        return;
    }
    const bool is_point = c.x[0] >= c.x[c.n_points - 1];
    axis x = {.low = c.x[0],
              .high = is_point ? 2.0 * c.x[0] : c.x[c.n_points - 1],
              .is_logarithmic = true,
              .extent = WIDTH - LEFT - WIDE_RIGHT};
    while (x.n_ticks < c.n_points && x.n_ticks < MAX_TICKS) {
        x.ticks[x.n_ticks] = c.x[x.n_ticks];
        x.n_ticks++;
    }
    const axis y = logarithmic_axis(low, high, HEIGHT - TOP - BOTTOM);
    const plot_axes axes = {c.title, c.x_label, c.y_label, true};
    begin_figure(file, HEIGHT, c.title);
    draw_axes(file, &axes, &x, &y, c.x_names);
    for (int i = 0; i < c.n_curves; i++) {
        draw_curve(file, &c, i, &x, &y);
    }
    label_curves(file, &c, &x, &y);
    if (c.limit > 0.0) {
        const double at = y_of(&y, c.limit);
        fprintf(file, "<line x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"limit\"/>\n",
                LEFT, LEFT + x.extent, at, at);
        write_label(file, LEFT + 6, at - 6, "start", c.limit_label);
    }
    fprintf(file, "</svg>\n");
}

/* From red over yellow to green. */
static void cell_colour(double share, int rgb[3])
{
    static const int stops[3][3] = {{215, 76, 62}, {250, 222, 130}, {96, 173, 104}};
    const double at = 2.0 * fmin(fmax(share, 0.0), 1.0);
    const int from = at < 1.0 ? 0 : 1;
    for (int i = 0; i < 3; i++) {
        const double part = at - from;
        rgb[i] = (int)(stops[from][i] + part * (stops[from + 1][i] - stops[from][i]) + 0.5);
    }
}

void plot_heat_map(FILE *file, const plot_cells *c)
{
    const double width = (WIDTH - LEFT - RIGHT) / (double)c->n_columns;
    const double height = 34.0;
    const int total = (int)(TOP + c->n_rows * height + BOTTOM);
    begin_figure(file, total, c->title);
    for (int r = 0; r < c->n_rows; r++) {
        for (int k = 0; k < c->n_columns; k++) {
            const double value = c->values[r * c->n_columns + k];
            const double x = LEFT + k * width;
            const double y = TOP + r * height;
            int rgb[3];
            char text[16];
            cell_colour(value, rgb);
            fprintf(file,
                    "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                    "fill=\"rgb(%d,%d,%d)\"/>\n",
                    x, y, width - 2.0, height - 2.0, rgb[0], rgb[1], rgb[2]);
            snprintf(text, sizeof text, "%.0f %%", 100.0 * value);
            write_label(file, x + width / 2.0, y + height / 2.0 + 4, "middle", text);
        }
        write_label(file, LEFT - 8, TOP + (r + 0.5) * height + 4, "end", c->row_names[r]);
    }
    for (int k = 0; k < c->n_columns; k++) {
        write_label(file, LEFT + (k + 0.5) * width, TOP + c->n_rows * height + 18, "middle",
                    c->column_names[k]);
    }
    write_label(file, (LEFT + WIDTH - RIGHT) / 2.0, total - 12, "middle", c->column_label);
    write_label(file, 4, TOP - 4, "start", c->row_label);
    fprintf(file, "</svg>\n");
}
