#include "cli/page.h"

#include "cli/plot.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static const char style[] =
    "body{font:15px/1.5 system-ui,sans-serif;color:#1f2430;background:#fff;max-width:60rem;"
    "margin:2rem auto;padding:0 1rem}\n"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}\n"
    "table{border-collapse:collapse;margin:1rem 0}\n"
    "th,td{padding:.3rem .8rem;border-bottom:1px solid #d9dce3;text-align:right}\n"
    "th:first-child,td:first-child,.facts td{text-align:left}th{font-weight:600}\n"
    "td code{color:#5a6272;font-size:.85em}svg{display:block;margin:1rem 0;max-width:100%}\n"
    "svg text{font:12px system-ui,sans-serif;fill:#1f2430}svg .title{font-size:14px;"
    "font-weight:600}\n"
    "svg .grid{stroke:#e3e6ec}svg circle{fill:#2b6cb0}p.note{color:#5a6272}\n"
    "svg polyline{fill:none;stroke-width:2}svg .limit{stroke:#1f2430;stroke-dasharray:6 4}\n";

static const char beginning[] = "<!DOCTYPE html>";

/* A report takes the place of an older one, not of a text, a model or a saved evaluation. */
static tkv_status check_old_file(const char *path, tkv_error *error)
{
    struct stat info;
    char text[sizeof beginning] = "";
    FILE *file = stat(path, &info) == 0 && S_ISREG(info.st_mode) ? fopen(path, "rb") : NULL;
    const size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) {
        fclose(file);
    }
    return n == 0 || strcmp(text, beginning) == 0
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_IO,
                          "%s is there and is no HTML page: a report would overwrite it; name "
                          "another file or remove it",
                          path);
}

tkv_status page_check(const char *path, tkv_error *error)
{
    const tkv_status status = check_old_file(path, error);
    FILE *file = status == TKV_OK ? fopen(path, "a") : NULL;
    if (status != TKV_OK) {
        return status;
    }
    if (!file || fclose(file) != 0) {
        return tkv_fail(error, TKV_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return TKV_OK;
}

tkv_status page_open(const char *path, const char *title, FILE **file, tkv_error *error)
{
    const tkv_status status = check_old_file(path, error);
    *file = status == TKV_OK ? fopen(path, "w") : NULL;
    if (status != TKV_OK) {
        return status;
    }
    if (!*file) {
        return tkv_fail(error, TKV_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    fprintf(*file,
            "%s\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width\">\n"
            "<title>%s</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>%s</h1>\n",
            beginning, title, style, title);
    return TKV_OK;
}

tkv_status page_close(FILE *file, const char *path, const char *note, tkv_error *error)
{
    fprintf(file, "<p class=\"note\">%s</p>\n</body>\n</html>\n", note);
    const bool is_written = !ferror(file);
    if (fclose(file) != 0 || !is_written) {
        return tkv_fail(error, TKV_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return TKV_OK;
}

void page_write_cell(FILE *file, const char *text)
{
    fputs("<td>", file);
    plot_write_text(file, text);
    fputs("</td>", file);
}
