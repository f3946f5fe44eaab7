/* Reading sources without compiling them: tokens, and the few shapes in which kernels, tables,
 * switches and types are written. */
#include "gate/evidence.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Larger tables are no codebooks, signs or midpoints of codes that this gate judges. */
#define MAX_VALUES 256

/* Tokens before a kernel's name among which its qualifier is. */
#define LOOK_BACK 16

/* Tokens of the longest argument list or table that is looked at. */
#define LOOK_AHEAD 2048

#define TYPE_PREFIX "GGML_TYPE_"

typedef enum token_kind { TOKEN_NAME, TOKEN_NUMBER, TOKEN_STRING, TOKEN_SIGN } token_kind;

typedef struct token {
    token_kind kind;
    int line;
    const char *text; /* of a string: without its quotes */
    int length;
} token;

typedef struct scan {
    const char *at;
    const char *end;
    int line;
    token *tokens;
    int n_tokens;
    int capacity;
    const tkv_words *words; /* NULL: a survey of all types */
    tkv_source_report *report;
    tkv_status status;
    tkv_error *error;
} scan;

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* Past a comment, if one begins here. */
static bool skip_comment(scan *s)
{
    if (s->end - s->at < 2 || s->at[0] != '/' || (s->at[1] != '/' && s->at[1] != '*')) {
        return false;
    }
    const bool is_block = s->at[1] == '*';
    s->at += 2;
    while (s->at < s->end && (is_block ? !(s->at[0] == '*' && s->end - s->at > 1 && s->at[1] == '/')
                                       : *s->at != '\n')) {
        s->line += *s->at++ == '\n';
    }
    if (is_block) {
        s->at += s->end - s->at < 2 ? s->end - s->at : 2;
    }
    return true;
}

static void add_token(scan *s, token_kind kind, const char *text, const char *end)
{
    if (s->n_tokens == s->capacity) {
        const int capacity = s->capacity ? 2 * s->capacity : 4096;
        token *tokens = realloc(s->tokens, (size_t)capacity * sizeof *tokens);
        if (!tokens) {
            s->status =
                tkv_fail(s->error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d words", capacity);
            return;
        }
        s->tokens = tokens;
        s->capacity = capacity;
    }
    s->tokens[s->n_tokens++] = (token){kind, s->line, text, (int)(end - text)};
}

/* A string or a character; one that the line does not end is cut there. */
static void read_quoted(scan *s)
{
    const char quote = *s->at++;
    const char *text = s->at;
    while (s->at < s->end && *s->at != quote && *s->at != '\n') {
        s->at += *s->at == '\\' && s->end - s->at > 1 && s->at[1] != '\n' ? 2 : 1;
    }
    if (quote == '"') {
        add_token(s, TOKEN_STRING, text, s->at);
    }
    s->at += s->at < s->end && *s->at == quote;
}

static void read_tokens(scan *s)
{
    while (s->at < s->end && s->status == TKV_OK) {
        const char *text = s->at;
        if (skip_comment(s)) {
            continue;
        }
        if (*text == '"' || *text == '\'') {
            read_quoted(s);
        } else if (isdigit((unsigned char)*text) ||
                   (*text == '.' && s->end - text > 1 && isdigit((unsigned char)text[1]))) {
            /* "1e-5f" and "0x1p-3": a sign belongs to the number after an exponent's letter. */
            while (s->at < s->end &&
                   (is_name_char(*s->at) || *s->at == '.' ||
                    ((*s->at == '-' || *s->at == '+') && strchr("eEpP", s->at[-1])))) {
                s->at++;
            }
            add_token(s, TOKEN_NUMBER, text, s->at);
        } else if (is_name_char(*text)) {
            while (s->at < s->end && is_name_char(*s->at)) {
                s->at++;
            }
            add_token(s, TOKEN_NAME, text, s->at);
        } else {
            s->at++;
            s->line += *text == '\n';
            if (!isspace((unsigned char)*text)) {
                add_token(s, TOKEN_SIGN, text, s->at);
            }
        }
    }
}

static bool is_sign(const scan *s, int i, char sign)
{
    return i >= 0 && i < s->n_tokens && s->tokens[i].kind == TOKEN_SIGN &&
           *s->tokens[i].text == sign;
}

static bool is_name(const scan *s, int i, const char *name)
{
    return i >= 0 && i < s->n_tokens && s->tokens[i].kind == TOKEN_NAME &&
           (size_t)s->tokens[i].length == strlen(name) &&
           strncmp(s->tokens[i].text, name, strlen(name)) == 0;
}

/* The token after the bracket that closes the one at i; the last one's if it is far away. */
static int after_bracket(const scan *s, int i, char open, char close)
{
    const int end = s->n_tokens - i > LOOK_AHEAD ? i + LOOK_AHEAD : s->n_tokens;
    int depth = 0;
    for (; i < end; i++) {
        depth += is_sign(s, i, open) ? 1 : 0;
        if (is_sign(s, i, close) && --depth == 0) {
            return i + 1;
        }
    }
    return s->n_tokens;
}

static tkv_evidence begin_item(const scan *s, int i, tkv_evidence_kind kind)
{
    const token *t = &s->tokens[i];
    tkv_evidence item = {.kind = kind, .role = TKV_LLAMA_NO_ROLE, .line = t->line};
    const size_t length = (size_t)t->length;
    memcpy(item.name, t->text, length < sizeof item.name ? length : sizeof item.name - 1);
    return item;
}

static void add_item(scan *s, tkv_evidence *item)
{
    if (s->status == TKV_OK) {
        s->status = tkv_report_add(s->report, item, s->error);
    }
}

static void add_code(scan *s, int i, tkv_evidence_kind kind)
{
    tkv_evidence item = begin_item(s, i, kind);
    item.role = tkv_role_of_name(item.name);
    if (item.role == TKV_LLAMA_ATTENTION) {
        tkv_read_attention_name(&item);
    }
    add_item(s, &item);
}

static bool is_ours(const scan *s, const char *name)
{
    return tkv_has_any_word(name, strlen(name), s->words);
}

/* A transform may be shared by types, and have a name of its own. */
static bool is_transform(const char *name)
{
    return tkv_name_contains(name, "wht") || tkv_name_contains(name, "hadamard");
}

/* Of a survey: the type that a name says it encodes. */
static void add_encoded_type(scan *s, int i)
{
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_TYPE);
    char type[16];
    item.role = TKV_LLAMA_SET_ROWS;
    tkv_encoded_type(item.name, type);
    snprintf(item.name, sizeof item.name, "%s", type);
    if (type[0]) {
        add_item(s, &item);
    }
}

/* Of a survey: what rotates, and what encodes with a body [begin, end) that calls a rotation. */
static void survey_code(scan *s, int i, int begin, int end)
{
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_FUNCTION);
    item.role = tkv_role_of_name(item.name);
    add_encoded_type(s, i);
    for (int j = begin; item.role == TKV_LLAMA_SET_ROWS && j < end; j++) {
        const tkv_evidence word = begin_item(s, j, TKV_EVIDENCE_FUNCTION);
        item.rotates = item.rotates || (s->tokens[j].kind == TOKEN_NAME && is_transform(word.name));
    }
    if (item.role == TKV_LLAMA_ROTATE || item.rotates) {
        add_item(s, &item);
    }
}

static bool has_kernel_qualifier(const scan *s, int i)
{
    for (int j = i - 1; j >= 0 && j > i - LOOK_BACK; j--) {
        if (is_sign(s, j, ';') || is_sign(s, j, '{') || is_sign(s, j, '}')) {
            return false;
        }
        if (is_name(s, j, "__global__") || is_name(s, j, "kernel") || is_name(s, j, "__kernel")) {
            return true;
        }
    }
    return false;
}

/* A definition: arguments in brackets, then a body. */
static void look_for_code(scan *s, int i)
{
    int next = after_bracket(s, i + 1, '(', ')');
    while (is_name(s, next, "const") || is_name(s, next, "noexcept")) {
        next++;
    }
    if (is_sign(s, next, '{') && !s->words) {
        survey_code(s, i, next, after_bracket(s, next, '{', '}'));
    } else if (is_sign(s, next, '{')) {
        add_code(s, i, has_kernel_qualifier(s, i) ? TKV_EVIDENCE_KERNEL : TKV_EVIDENCE_FUNCTION);
    }
}

static tkv_evidence_kind kind_of_table(const char *name)
{
    return tkv_name_contains(name, "mid")        ? TKV_EVIDENCE_MIDPOINTS
           : tkv_name_contains(name, "_mag")     ? TKV_EVIDENCE_MAGNITUDES
           : tkv_name_contains(name, "sign")     ? TKV_EVIDENCE_SIGNS
           : tkv_name_contains(name, "centroid") ? TKV_EVIDENCE_CODEBOOK
           : tkv_name_contains(name, "codebook") ? TKV_EVIDENCE_CODEBOOK
                                                 : TKV_EVIDENCE_KINDS;
}

/* Numbers between braces, which begin at i; false if there is something else among them. */
static bool read_values(const scan *s, int i, tkv_evidence *item)
{
    float values[MAX_VALUES];
    const int end = after_bracket(s, i, '{', '}');
    bool is_negative = false;
    for (; i < end; i++) {
        const token *t = &s->tokens[i];
        if (t->kind == TOKEN_NUMBER) {
            char digits[64];
            snprintf(digits, sizeof digits, "%.*s", t->length, t->text);
            const float value = strtof(digits, NULL);
            if (item->n_values == MAX_VALUES || !isfinite(value)) {
                return false;
            }
            values[item->n_values++] = is_negative ? -value : value;
            is_negative = false;
        } else if (t->kind == TOKEN_SIGN && strchr("{},-+", *t->text)) {
            is_negative = *t->text == '-';
        } else {
            return false;
        }
    }
    const size_t bytes = (size_t)item->n_values * sizeof *values;
    item->values = bytes ? malloc(bytes) : NULL;
    if (item->values) {
        memcpy(item->values, values, bytes);
    }
    return item->values != NULL;
}

/* "name[16] = { ... }" */
static void look_for_table(scan *s, int i)
{
    const int next = after_bracket(s, i + 1, '[', ']');
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_CODEBOOK);
    item.kind = kind_of_table(item.name);
    const bool is_wanted =
        item.kind == TKV_EVIDENCE_CODEBOOK || (s->words && is_ours(s, item.name));
    if (is_wanted && item.kind != TKV_EVIDENCE_KINDS && is_sign(s, next, '=') &&
        is_sign(s, next + 1, '{') && read_values(s, next + 1, &item)) {
        add_item(s, &item);
    }
}

/* Attention that a macro makes for types, and head sizes, that it is given. */
static void look_for_instance(scan *s, int i)
{
    const int end = after_bracket(s, i + 1, '(', ')');
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_KERNEL);
    char types[2][16] = {"", ""};
    int n_types = 0;
    int n_dims = 0;
    bool is_wanted = false;
    for (int j = i + 2; j < end; j++) {
        const token *t = &s->tokens[j];
        if (t->kind == TOKEN_NAME && t->length > 10 && strncmp(t->text, TYPE_PREFIX, 10) == 0) {
            char type[16];
            tkv_short_type_name(t->text + 10, (size_t)t->length - 10, type);
            is_wanted = is_wanted || is_ours(s, type);
            memcpy(types[n_types > 0], type, sizeof type);
            n_types++;
        } else if (t->kind == TOKEN_NUMBER && n_dims < 2) {
            char digits[16]; /* nothing ends the text behind its last token */
            snprintf(digits, sizeof digits, "%.*s", t->length, t->text);
            *(n_dims++ ? &item.dim_v : &item.dim_k) = tkv_number_of_name(digits);
        }
    }
    if (!is_wanted) {
        return;
    }
    item.role = TKV_LLAMA_ATTENTION;
    item.dim_v = n_dims == 1 ? item.dim_k : item.dim_v;
    memcpy(item.type_k, types[0], sizeof item.type_k);
    memcpy(item.type_v, types[n_types > 1], sizeof item.type_v);
    snprintf(item.name, sizeof item.name, "flash_attn_k%s_v%s_dk%d_dv%d", item.type_k, item.type_v,
             item.dim_k, item.dim_v);
    add_item(s, &item);
}

/* Host names of kernels, names of pipelines, environment variables. */
static void look_at_string(scan *s, int i)
{
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_KERNEL);
    for (const char *c = item.name; *c; c++) {
        if (!is_name_char(*c)) {
            return;
        }
    }
    if (!s->words) {
        add_encoded_type(s, i);
    } else if (is_sign(s, i - 1, '(') && is_name(s, i - 2, "getenv")) {
        if (is_ours(s, item.name) || tkv_name_contains(item.name, "attn_rot")) {
            item.kind = TKV_EVIDENCE_SWITCH;
            add_item(s, &item);
        }
    } else if (is_ours(s, item.name) && (is_name(s, i - 2, "host_name") ||
                                         tkv_role_of_name(item.name) != TKV_LLAMA_NO_ROLE)) {
        add_code(s, i, TKV_EVIDENCE_KERNEL);
    }
}

/* "GGML_TYPE_Q8_0 = 8" */
static void look_for_type(scan *s, int i)
{
    tkv_evidence item = begin_item(s, i, TKV_EVIDENCE_TYPE);
    const char *name = s->tokens[i].text + strlen(TYPE_PREFIX);
    tkv_short_type_name(name, (size_t)s->tokens[i].length - strlen(TYPE_PREFIX), item.name);
    if (is_sign(s, i + 1, '=') && i + 2 < s->n_tokens && s->tokens[i + 2].kind == TOKEN_NUMBER &&
        strcmp(item.name, "count") != 0 && (!s->words || is_ours(s, item.name))) {
        add_item(s, &item);
    }
}

static void look_at_name(scan *s, int i)
{
    const tkv_evidence word = begin_item(s, i, TKV_EVIDENCE_TYPE);
    const bool is_wanted = !s->words || is_ours(s, word.name) || is_transform(word.name);
    if (strncmp(word.name, TYPE_PREFIX, strlen(TYPE_PREFIX)) == 0 && is_sign(s, i + 1, '=')) {
        look_for_type(s, i);
    } else if (is_sign(s, i + 1, '[')) {
        look_for_table(s, i);
    } else if (is_sign(s, i + 1, '(') && is_wanted) {
        look_for_code(s, i);
    } else if (s->words && is_sign(s, i + 1, '(') &&
               (strstr(word.name, "FATTN") || strstr(word.name, "_FA") ||
                strstr(word.name, "FA_"))) {
        look_for_instance(s, i);
    }
}

static bool has_transform(const char *text, size_t size)
{
    for (size_t i = 0; i + 8 <= size; i++) {
        const char c = (char)tolower((unsigned char)text[i]);
        if ((c == 'w' && strncasecmp(text + i, "wht", 3) == 0) ||
            (c == 'h' && strncasecmp(text + i, "hadamard", 8) == 0)) {
            return true;
        }
    }
    return false;
}

static void count_lines(const char *text, size_t size, const tkv_words *words,
                        tkv_source_report *report)
{
    for (const char *line = text, *end = text + size; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const size_t length = (size_t)((stop ? stop : end) - line);
        report->n_lines++;
        report->n_mentions += tkv_has_any_word(line, length, words);
        line = stop ? stop + 1 : end;
    }
}

/* Adds what is in a text to the report. */
static tkv_status read_source(const char *text, size_t size, const tkv_words *words,
                              tkv_source_report *report, tkv_error *error)
{
    scan s = {.at = text,
              .end = text + size,
              .line = 1,
              .words = words,
              .report = report,
              .error = error};
    if (size > INT_MAX / 2) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "a source of %zu bytes", size);
    }
    read_tokens(&s);
    for (int i = 0; i < s.n_tokens && s.status == TKV_OK; i++) {
        if (s.tokens[i].kind == TOKEN_STRING) {
            look_at_string(&s, i);
        } else if (s.tokens[i].kind == TOKEN_NAME) {
            look_at_name(&s, i);
        }
    }
    free(s.tokens);
    return s.status;
}

tkv_status tkv_source_scan(const char *text, size_t size, const tkv_words *words,
                           tkv_source_report *report, tkv_error *error)
{
    *report = (tkv_source_report){0};
    count_lines(text, size, words, report);
    const bool is_worth = report->n_mentions > 0 || (words->n > 0 && has_transform(text, size));
    const tkv_status status = is_worth ? read_source(text, size, words, report, error) : TKV_OK;
    if (status != TKV_OK) {
        tkv_source_report_free(report);
    }
    return status;
}

tkv_status tkv_source_survey(const char *text, size_t size, tkv_source_report *report,
                             tkv_error *error)
{
    return read_source(text, size, NULL, report, error);
}
