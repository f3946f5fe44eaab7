#include "gate/mlx.h"

#include "base/error.h"
#include "base/half.h"
#include "device/context.h"
#include "format/codec.h"

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
            const uint32_t word = tkv_rotation_signs[round][j / 32];
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
        for (int row = 0; row < N_ROWS; row++) {
            tkv_rotate_row(dims[i], x + row * dims[i]);
        }
        add_rows(c, "y", N_ROWS, dims[i], x);
        add_signs(c, dims[i]);
        cJSON_AddItemToArray(cases, c);
    }
}

/* Rows of a codebook type: what they are coded to, and what that decodes to. */
static void add_coded_rows(cJSON *cases, tkv_type type, const float *x)
{
    const tkv_codebook *book = tkv_codebook_get(tkv_type_level_bits(type));
    float decoded[N_ROWS * DIM];
    float scales[N_ROWS];
    float codes[N_ROWS * DIM];
    float levels[16];
    for (int row = 0; row < N_ROWS; row++) {
        tkv_row_codes coded;
        tkv_encode_row(type, TKV_EFFORT_DEFAULT, DIM, x + row * DIM, &coded);
        tkv_dequantise_row(type, DIM, &coded, decoded + row * DIM);
        tkv_unrotate_row(DIM, decoded + row * DIM);
        scales[row] = tkv_half_to_float(coded.side[0]) / 64.0f;
        for (int j = 0; j < DIM; j++) {
            codes[row * DIM + j] = (float)coded.codes[j];
        }
    }
    for (int i = 0; i < book->n_levels; i++) {
        levels[i] = (float)book->levels[i];
    }
    cJSON *c = cJSON_CreateObject();
    cJSON_AddStringToObject(c, "type", tkv_type_get_info(type)->name);
    add_rows(c, "x", N_ROWS, DIM, x);
    add_rows(c, "decoded", N_ROWS, DIM, decoded);
    add_rows(c, "codes", N_ROWS, DIM, codes);
    add_signs(c, DIM);
    cJSON_AddItemToObject(c, "scales", row_to_json(N_ROWS, scales));
    cJSON_AddItemToObject(c, "levels", row_to_json(book->n_levels, levels));
    cJSON_AddItemToObject(c, "thresholds", row_to_json(book->n_levels - 1, book->thresholds));
    cJSON_AddItemToArray(cases, c);
}

/* The words of a turbo4 row, and its codes. */
static void add_words(cJSON *known, const float *x)
{
    tkv_row_codes coded;
    uint8_t record[2 * DIM];
    cJSON *object = cJSON_AddObjectToObject(known, "words");
    cJSON *words = cJSON_AddArrayToObject(object, "words");
    cJSON *codes = cJSON_AddArrayToObject(object, "codes");
    tkv_encode_row(TKV_TYPE_TURBO4, TKV_EFFORT_DEFAULT, DIM, x, &coded);
    tkv_pack_row(TKV_TYPE_TURBO4, DIM, &coded, record);
    for (int i = 0; i < DIM / 2; i += 4) {
        const uint32_t word = (uint32_t)record[i] | (uint32_t)record[i + 1] << 8 |
                              (uint32_t)record[i + 2] << 16 | (uint32_t)record[i + 3] << 24;
        cJSON_AddItemToArray(words, cJSON_CreateNumber((double)word));
    }
    for (int j = 0; j < DIM; j++) {
        cJSON_AddItemToArray(codes, cJSON_CreateNumber(coded.codes[j]));
    }
}

/* One query on a context of f16 keys and values, as the library's portable attention has it:
 * another table may be wrong on this machine. */
static tkv_status add_attention(cJSON *known, uint32_t *seed, tkv_error *error)
{
    const tkv_type f16 = TKV_TYPE_F16;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = N_KEYS,
                                     .types_k = &f16,
                                     .types_v = &f16};
    const tkv_attend_params attend = {.n_queries = 1, .n_heads = 1, .first_position = N_KEYS - 1};
    float q[DIM];
    float out[DIM];
    float kv[2][N_KEYS * DIM];
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    fill(seed, DIM, q);
    fill(seed, N_KEYS * DIM, kv[0]);
    fill(seed, N_KEYS * DIM, kv[1]);
    tkv_status status = tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, error);
    if (status == TKV_OK) {
        context->kernels = &tkv_kernels_scalar;
        status = tkv_cache_create(context, &params, &cache, error);
    }
    if (status == TKV_OK) {
        status = tkv_cache_append(cache, 0, N_KEYS, kv[0], kv[1], error);
    }
    if (status == TKV_OK) {
        status = tkv_attend(cache, 0, &attend, q, out, error);
    }
    if (status == TKV_OK) {
        cJSON *object = cJSON_AddObjectToObject(known, "attention");
        const char *const names[] = {"q", "k", "v", "out"};
        const float *const values[] = {q, kv[0], kv[1], out};
        for (int i = 0; i < 4; i++) {
            cJSON *heads = cJSON_AddArrayToObject(object, names[i]);
            cJSON *rows = cJSON_CreateArray();
            for (int t = 0; t < (i == 1 || i == 2 ? N_KEYS : 1); t++) {
                cJSON_AddItemToArray(rows, row_to_json(DIM, values[i] + t * DIM));
            }
            cJSON_AddItemToArray(heads, rows);
        }
    }
    tkv_cache_free(cache);
    tkv_context_free(context);
    return status;
}

tkv_status tkv_mlx_known_answers(char **json, tkv_error *error)
{
    static const tkv_type types[] = {TKV_TYPE_TURBO4, TKV_TYPE_TURBO3, TKV_TYPE_TURBO2};
    uint32_t seed = 1;
    float x[N_ROWS * DIM];
    cJSON *known = cJSON_CreateObject();
    *json = NULL;
    add_rotations(known, &seed);
    fill(&seed, N_ROWS * DIM, x);
    cJSON *rows = cJSON_AddArrayToObject(known, "rows");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        add_coded_rows(rows, types[i], x);
    }
    add_words(known, x);
    const tkv_status status = add_attention(known, &seed, error);
    if (status == TKV_OK) {
        *json = cJSON_PrintUnformatted(known);
    }
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
