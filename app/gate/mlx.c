#include "gate/mlx.h"

#include "common/try.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* app/gate/mlx_probe.py */
extern const char tkv_mlx_probe[];

enum { N_ROWS = 4, DIM = 128, N_KEYS = 40, OUTPUT_SIZE = 1 << 16 };

const char *tkv_mlx_verdict_name(tkv_mlx_verdict verdict)
{
    static const char *const names[] = {"ready", "partly", "unusable"};
    return names[verdict];
}

/* ---- Known answers -------------------------------------------------------------------------- */

static void fill(uint32_t *seed, int n, float *x)
{
    for (int i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            *seed = *seed * 1664525u + 1013904223u;
            sum += (float)(*seed >> 16) * 0x1p-15f - 1.0f;
        }
        x[i] = sum;
    }
}

static cJSON *row_to_json(int n, const float *x)
{
    cJSON *row = cJSON_CreateArray();
    for (int i = 0; i < n; i++) {
        cJSON_AddItemToArray(row, cJSON_CreateNumber((double)x[i]));
    }
    return row;
}

static void add_rows(cJSON *object, const char *name, int n_rows, int n, const float *x)
{
    cJSON *rows = cJSON_AddArrayToObject(object, name);
    for (int i = 0; i < n_rows; i++) {
        cJSON_AddItemToArray(rows, row_to_json(n, x + i * n));
    }
}

static void add_signs(cJSON *object, int head_dim)
{
    cJSON *rounds = cJSON_AddArrayToObject(object, "signs");
    for (int round = 0; round < 2; round++) {
        float signs[TKV_MAX_HEAD_DIM];
        for (int j = 0; j < head_dim; j++) {
            const uint32_t word = tkv_rotation_sign_words(round)[j / 32];
            signs[j] = word >> j % 32 & 1u ? -1.0f : 1.0f;
        }
        cJSON_AddItemToArray(rounds, row_to_json(head_dim, signs));
    }
}

static void add_rotations(cJSON *known, uint32_t *seed)
{
    static const int dims[] = {64, 80, 96, 128, 256};
    cJSON *cases = cJSON_AddArrayToObject(known, "rotation");
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        float x[N_ROWS * 256];
        cJSON *c = cJSON_CreateObject();
        fill(seed, N_ROWS * dims[i], x);
        add_rows(c, "x", N_ROWS, dims[i], x);
        (void)tkv_rotate(NULL, dims[i], N_ROWS, x, NULL); /* its arguments are right */
        add_rows(c, "y", N_ROWS, dims[i], x);
        add_signs(c, dims[i]);
        cJSON_AddItemToArray(cases, c);
    }
}

/* Rows of a codebook type: what they are coded to, and what that decodes to. */
static tkv_status add_coded_rows(cJSON *cases, tkv_type type, const float *x, tkv_error *error)
{
    const tkv_codebook *book = tkv_type_codebook(type);
    uint8_t records[N_ROWS * 2 * DIM];
    uint8_t codes[N_ROWS * DIM];
    uint16_t sides[N_ROWS];
    float decoded[N_ROWS * DIM];
    float values[N_ROWS * DIM];
    float levels[16];
    TKV_TRY(tkv_encode_rows(NULL, type, DIM, N_ROWS, x, records, error));
    TKV_TRY(tkv_decode_rows(NULL, type, DIM, N_ROWS, records, decoded, error));
    TKV_TRY(tkv_unpack_codes(type, DIM, N_ROWS, records, codes, sides, error));
    cJSON *c = cJSON_CreateObject();
    cJSON_AddItemToArray(cases, c);
    cJSON_AddStringToObject(c, "type", tkv_type_get_info(type)->name);
    add_rows(c, "x", N_ROWS, DIM, x);
    add_rows(c, "decoded", N_ROWS, DIM, decoded);
    for (int i = 0; i < N_ROWS * DIM; i++) {
        values[i] = (float)codes[i];
    }
    add_rows(c, "codes", N_ROWS, DIM, values);
    add_signs(c, DIM);
    tkv_halves_to_floats(N_ROWS, sides, values);
    for (int row = 0; row < N_ROWS; row++) {
        values[row] /= 64.0f;
    }
    cJSON_AddItemToObject(c, "scales", row_to_json(N_ROWS, values));
    for (int i = 0; i < book->n_levels; i++) {
        levels[i] = (float)book->levels[i];
    }
    cJSON_AddItemToObject(c, "levels", row_to_json(book->n_levels, levels));
    cJSON_AddItemToObject(c, "thresholds", row_to_json(book->n_levels - 1, book->thresholds));
    return TKV_OK;
}

/* The words of a turbo4 row, and its codes. */
static tkv_status add_words(cJSON *known, const float *x, tkv_error *error)
{
    uint8_t record[2 * DIM];
    uint8_t codes[DIM];
    uint16_t side;
    TKV_TRY(tkv_encode_rows(NULL, TKV_TYPE_TURBO4, DIM, 1, x, record, error));
    TKV_TRY(tkv_unpack_codes(TKV_TYPE_TURBO4, DIM, 1, record, codes, &side, error));
    cJSON *object = cJSON_AddObjectToObject(known, "words");
    cJSON *words = cJSON_AddArrayToObject(object, "words");
    cJSON *listed = cJSON_AddArrayToObject(object, "codes");
    for (int i = 0; i < DIM / 2; i += 4) {
        const uint32_t word = (uint32_t)record[i] | (uint32_t)record[i + 1] << 8 |
                              (uint32_t)record[i + 2] << 16 | (uint32_t)record[i + 3] << 24;
        cJSON_AddItemToArray(words, cJSON_CreateNumber((double)word));
    }
    for (int j = 0; j < DIM; j++) {
        cJSON_AddItemToArray(listed, cJSON_CreateNumber(codes[j]));
    }
    return TKV_OK;
}

/* Query, keys, values and output of one head. */
typedef struct attention_case {
    float q[DIM];
    float k[N_KEYS * DIM];
    float v[N_KEYS * DIM];
    float out[DIM];
} attention_case;

static tkv_status attend(tkv_cache *cache, attention_case *c, tkv_error *error)
{
    const tkv_attend_params params = {.n_queries = 1, .n_heads = 1, .first_position = N_KEYS - 1};
    TKV_TRY(tkv_cache_append(cache, 0, N_KEYS, c->k, c->v, error));
    return tkv_attend(cache, 0, &params, c->q, c->out, error);
}

/* On f16 keys and values, as the library's portable attention has it: other kernels may be wrong on
 * this machine. */
static tkv_status compute_attention(attention_case *c, tkv_error *error)
{
    const tkv_type f16 = TKV_TYPE_F16;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = N_KEYS,
                                     .types_k = &f16,
                                     .types_v = &f16};
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    TKV_TRY(tkv_context_create(&(tkv_context_params){.n_threads = 1, .kernels = "scalar"}, &context,
                               error));
    tkv_status status = tkv_cache_create(context, &params, &cache, error);
    if (status == TKV_OK) {
        status = attend(cache, c, error);
    }
    tkv_cache_free(cache);
    tkv_context_free(context);
    return status;
}

static tkv_status add_attention(cJSON *known, uint32_t *seed, tkv_error *error)
{
    attention_case c;
    fill(seed, DIM, c.q);
    fill(seed, N_KEYS * DIM, c.k);
    fill(seed, N_KEYS * DIM, c.v);
    TKV_TRY(compute_attention(&c, error));
    cJSON *object = cJSON_AddObjectToObject(known, "attention");
    const struct {
        const char *name;
        int n_rows;
        const float *rows;
    } arrays[] = {{"q", 1, c.q}, {"k", N_KEYS, c.k}, {"v", N_KEYS, c.v}, {"out", 1, c.out}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        cJSON *heads = cJSON_AddArrayToObject(object, arrays[i].name);
        cJSON *rows = cJSON_CreateArray();
        for (int t = 0; t < arrays[i].n_rows; t++) {
            cJSON_AddItemToArray(rows, row_to_json(DIM, arrays[i].rows + t * DIM));
        }
        cJSON_AddItemToArray(heads, rows);
    }
    return TKV_OK;
}

static tkv_status add_answers(cJSON *known, tkv_error *error)
{
    static const tkv_type types[] = {TKV_TYPE_TURBO4, TKV_TYPE_TURBO3, TKV_TYPE_TURBO2};
    uint32_t seed = 1;
    float x[N_ROWS * DIM];
    add_rotations(known, &seed);
    fill(&seed, N_ROWS * DIM, x);
    cJSON *rows = cJSON_AddArrayToObject(known, "rows");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        TKV_TRY(add_coded_rows(rows, types[i], x, error));
    }
    TKV_TRY(add_words(known, x, error));
    return add_attention(known, &seed, error);
}

tkv_status tkv_mlx_known_answers(char **json, tkv_error *error)
{
    cJSON *known = cJSON_CreateObject();
    const tkv_status status = add_answers(known, error);
    *json = status == TKV_OK ? cJSON_PrintUnformatted(known) : NULL;
    cJSON_Delete(known);
    return status == TKV_OK && !*json
               ? tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for known answers")
               : status;
}

/* ---- The check ------------------------------------------------------------------------------ */

static void add_step(tkv_mlx_gate *gate, const char *name, bool has_passed, const char *detail)
{
    if (gate->n_steps < TKV_MLX_MAX_STEPS) {
        tkv_mlx_step *step = &gate->steps[gate->n_steps++];
        step->has_passed = has_passed;
        snprintf(step->name, sizeof step->name, "%.60s", name);
        snprintf(step->detail, sizeof step->detail, "%.300s", detail);
    }
}

/* Takes what the program said line by line; other lines are not its own. `begun` [64] receives the
 * step that was begun and not ended; true: it came to its end. */
static bool read_steps(char *out, tkv_mlx_gate *gate, char begun[64])
{
    bool is_whole = false;
    char *rest = NULL;
    begun[0] = '\0';
    for (char *line = strtok_r(out, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        cJSON *json = cJSON_Parse(line);
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(json, "step"));
        const char *detail = cJSON_GetStringValue(cJSON_GetObjectItem(json, "detail"));
        if (name && detail && strcmp(name, "begin") == 0) {
            snprintf(begun, 64, "%.60s", detail);
        } else if (name && detail && strcmp(name, "end") == 0) {
            is_whole = true;
            begun[0] = '\0';
        } else if (name && detail) {
            add_step(gate, name, cJSON_IsTrue(cJSON_GetObjectItem(json, "ok")), detail);
            begun[0] = '\0';
        }
        cJSON_Delete(json);
    }
    return is_whole;
}

static const tkv_mlx_step *find_step(const tkv_mlx_gate *gate, const char *name)
{
    for (int i = 0; i < gate->n_steps; i++) {
        if (strcmp(gate->steps[i].name, name) == 0) {
            return &gate->steps[i];
        }
    }
    return NULL;
}

/* The last line of what the program complained of. */
static const char *last_line(char *text)
{
    size_t length = strlen(text);
    while (length > 0 && text[length - 1] == '\n') {
        text[--length] = '\0';
    }
    const char *line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

/* The program ended before its end. */
static void explain_end(tkv_mlx_gate *gate, const char *begun, int status, bool is_late,
                        int timeout_seconds, char *err)
{
    char detail[304];
    /* A wrapper around Python tells of its signals as a shell does. */
    const int number = WIFSIGNALED(status)         ? WTERMSIG(status)
                       : WEXITSTATUS(status) > 128 ? WEXITSTATUS(status) - 128
                                                   : 0;
    if (is_late) {
        snprintf(detail, sizeof detail, "not done after %d seconds", timeout_seconds);
    } else if (number > 0) {
        snprintf(detail, sizeof detail, "Python ended with signal %d (%s)", number,
                 strsignal(number));
    } else {
        snprintf(detail, sizeof detail, "ended with status %d: %.200s", WEXITSTATUS(status),
                 last_line(err));
    }
    add_step(gate, begun[0] ? begun : gate->n_steps > 0 ? "check" : "python", false, detail);
}

static void decide(tkv_mlx_gate *gate)
{
    const tkv_mlx_step *metal = find_step(gate, "metal");
    gate->verdict = TKV_MLX_READY;
    snprintf(gate->reason, sizeof gate->reason, "everything that a bridge needs is there");
    for (int i = 0; i < gate->n_steps; i++) {
        const tkv_mlx_step *step = &gate->steps[i];
        const bool is_needed = step != metal && strcmp(step->name, "mlx-lm") != 0;
        if (!step->has_passed && gate->verdict != TKV_MLX_UNUSABLE) {
            gate->verdict = is_needed ? TKV_MLX_UNUSABLE : TKV_MLX_PARTLY;
            snprintf(gate->reason, sizeof gate->reason, "%.60s: %.230s", step->name, step->detail);
        }
    }
    if (!metal && gate->verdict == TKV_MLX_READY) {
        gate->verdict = TKV_MLX_UNUSABLE;
        snprintf(gate->reason, sizeof gate->reason, "the check did not come to its end");
    }
}

tkv_status tkv_mlx_gate_run(const char *python, int timeout_seconds, tkv_mlx_gate *gate,
                            tkv_error *error)
{
    char *known = NULL;
    char begun[64];
    int ended = 0;
    bool is_late = false;
    tkv_error reason = {TKV_OK, ""};
    memset(gate, 0, sizeof *gate);
    snprintf(gate->python, sizeof gate->python, "%.250s", python);
    char *texts = malloc(2 * OUTPUT_SIZE);
    tkv_status status = texts ? tkv_mlx_known_answers(&known, error)
                              : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a check");
    if (status == TKV_OK) {
        const char *const argv[] = {python, "-c", tkv_mlx_probe, NULL};
        if (tkv_run_program(argv, known, timeout_seconds, texts, texts + OUTPUT_SIZE, OUTPUT_SIZE,
                            &ended, &is_late, &reason) != TKV_OK) {
            add_step(gate, "python", false, reason.message);
        } else {
            const bool is_whole = read_steps(texts, gate, begun);
            const tkv_mlx_step *mlx = find_step(gate, "mlx");
            if (!is_whole && !(mlx && !mlx->has_passed)) {
                explain_end(gate, begun, ended, is_late, timeout_seconds, texts + OUTPUT_SIZE);
            }
        }
        decide(gate);
    }
    free(known);
    free(texts);
    return status;
}
