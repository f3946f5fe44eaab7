/* Policies: presets and the text form. */
#include "policy/policy.h"
#include "base/error.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The threshold of "sparse-v auto": skips a tenth of the values with no effect on KLD that could be
 * told from none (docs/RESULTS.md). */
static const float SPARSE_V_AUTO = 1e-4f;

typedef struct preset {
    const char *name;
    tkv_policy policy;
} preset;

/* Sinks and the tokens of the means together are one page, so that at any length as many rows are
 * exact as f16 would hold. */
static const preset presets[] = {
    {"f16", {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16}},
    {"8bit", {.type_k = TKV_TYPE_TURBO8, .type_v = TKV_TYPE_TURBO8, .n_recent = 32}},
    {"4bit",
     {.type_k = TKV_TYPE_TURBO4,
      .type_v = TKV_TYPE_TURBO4,
      .n_sinks = 4,
      .n_recent = 32,
      .centre_tokens = 60}},
    {"3bit",
     {.type_k = TKV_TYPE_TRELLIS3,
      .type_v = TKV_TYPE_TRELLIS3,
      .n_sinks = 4,
      .n_recent = 32,
      .centre_tokens = 60}},
    {"2bit",
     {.type_k = TKV_TYPE_TRELLIS2,
      .type_v = TKV_TYPE_TRELLIS2,
      .n_sinks = 4,
      .n_recent = 32,
      .centre_tokens = 60}},
};

enum { N_PRESETS = sizeof presets / sizeof *presets };

tkv_status tkv_policy_preset(const char *name, tkv_policy *policy, tkv_error *error)
{
    if (!name || !policy) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "preset name or result is NULL");
    }
    char valid[80] = "";
    for (int i = 0; i < N_PRESETS; i++) {
        if (strcmp(name, presets[i].name) == 0) {
            *policy = presets[i].policy;
            return TKV_OK;
        }
        const size_t used = strlen(valid);
        snprintf(valid + used, sizeof valid - used, "%s%s", used ? ", " : "", presets[i].name);
    }
    return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "unknown preset '%.40s': expected one of %s",
                    name, valid);
}

const char *tkv_policy_preset_name(int index)
{
    return index >= 0 && index < N_PRESETS ? presets[index].name : NULL;
}

/* Reads a whole number from 0 up to the largest int. */
static tkv_status parse_count(const char *key, const char *text, int *count, tkv_error *error)
{
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || value > INT32_MAX) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: '%s' is '%.40s': expected a whole number from 0 to %d", key, text,
                        INT32_MAX);
    }
    *count = (int)value;
    return TKV_OK;
}

/* Reads TYPE or TYPE_K/TYPE_V. */
static tkv_status parse_types(const char *text, tkv_type *type_k, tkv_type *type_v,
                              tkv_error *error)
{
    char name_k[32];
    const char *slash = strchr(text, '/');
    const size_t length = slash ? (size_t)(slash - text) : strlen(text);
    snprintf(name_k, sizeof name_k, "%.*s", (int)(length < 31 ? length : 31), text);
    tkv_status status = tkv_type_from_name(name_k, type_k, error);
    if (status == TKV_OK) {
        status = tkv_type_from_name(slash ? slash + 1 : name_k, type_v, error);
    }
    return status;
}

/* Splits "HEAD:TAIL" in place. */
static tkv_status split_at_colon(const char *key, char *text, char **tail, tkv_error *error)
{
    char *colon = strchr(text, ':');
    if (!colon) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "policy: '%s' is '%.40s': expected '%s'",
                        key, text, strcmp(key, "layers") == 0 ? "FIRST-LAST:TYPE" : "LAYERS:TYPE");
    }
    *colon = '\0';
    *tail = colon + 1;
    return TKV_OK;
}

static tkv_status parse_boundary(char *text, tkv_policy *policy, tkv_error *error)
{
    char *types = NULL;
    tkv_status status = split_at_colon("boundary", text, &types, error);
    if (status == TKV_OK) {
        status = parse_count("boundary", text, &policy->boundary_layers, error);
    }
    if (status == TKV_OK) {
        status = parse_types(types, &policy->boundary_k, &policy->boundary_v, error);
    }
    return status;
}

static tkv_status parse_layers(char *text, tkv_policy *policy, tkv_error *error)
{
    if (policy->n_ranges == TKV_POLICY_MAX_RANGES) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "policy: more than %d layer ranges",
                        TKV_POLICY_MAX_RANGES);
    }
    tkv_layer_range range;
    char *types = NULL;
    TKV_TRY(split_at_colon("layers", text, &types, error));
    char *last = strchr(text, '-');
    if (last) {
        *last++ = '\0';
    }
    tkv_status status = parse_count("layers", text, &range.first, error);
    if (status == TKV_OK) {
        status = parse_count("layers", last ? last : text, &range.last, error);
    }
    if (status == TKV_OK && range.last < range.first) {
        status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                          "policy: layers %d-%d: expected the first before the last", range.first,
                          range.last);
    }
    if (status == TKV_OK) {
        status = parse_types(types, &range.type_k, &range.type_v, error);
    }
    if (status == TKV_OK) {
        policy->ranges[policy->n_ranges++] = range;
    }
    return status;
}

static tkv_status parse_sparse_v(const char *text, tkv_policy *policy, tkv_error *error)
{
    if (strcmp(text, "off") == 0) {
        policy->sparse_v = 0.0f;
        return TKV_OK;
    }
    if (strcmp(text, "auto") == 0) {
        policy->sparse_v = SPARSE_V_AUTO;
        return TKV_OK;
    }
    char *end;
    const float value = strtof(text, &end);
    if (end == text || *end || !(value >= 0.0f && value <= 1.0f)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: 'sparse-v' is '%.40s': expected off, auto or a threshold from 0 "
                        "to 1",
                        text);
    }
    policy->sparse_v = value;
    return TKV_OK;
}

static tkv_status apply_setting(const char *key, char *value, tkv_policy *policy, tkv_error *error)
{
    if (strcmp(key, "kv") == 0) {
        return tkv_policy_preset(value, policy, error);
    }
    if (strcmp(key, "k") == 0) {
        return tkv_type_from_name(value, &policy->type_k, error);
    }
    if (strcmp(key, "v") == 0) {
        return tkv_type_from_name(value, &policy->type_v, error);
    }
    if (strcmp(key, "sinks") == 0) {
        return parse_count(key, value, &policy->n_sinks, error);
    }
    if (strcmp(key, "recent") == 0) {
        return parse_count(key, value, &policy->n_recent, error);
    }
    if (strcmp(key, "centre") == 0) {
        return parse_count(key, value, &policy->centre_tokens, error);
    }
    if (strcmp(key, "boundary") == 0) {
        return parse_boundary(value, policy, error);
    }
    if (strcmp(key, "layers") == 0) {
        return parse_layers(value, policy, error);
    }
    if (strcmp(key, "sparse-v") == 0) {
        return parse_sparse_v(value, policy, error);
    }
    return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                    "policy: unknown key '%.40s': expected kv, k, v, sinks, recent, centre, "
                    "boundary, layers or sparse-v",
                    key);
}

/* Copies the next word into `word`, skipping blanks, '=' and comments. Returns where it ended, or
 * NULL if there is none; a word that does not fit is cut off, which no valid word is. */
static const char *next_word(const char *text, size_t size, char *word)
{
    for (;;) {
        while (isspace((unsigned char)*text) || *text == '=') {
            text++;
        }
        if (*text != '#') {
            break;
        }
        text += strcspn(text, "\n");
    }
    if (!*text) {
        return NULL;
    }
    const size_t length = strcspn(text, " \t\r\n\v\f=#");
    snprintf(word, size, "%.*s", (int)(length < size ? length : size - 1), text);
    return text + length;
}

tkv_status tkv_policy_parse(const char *text, tkv_policy *policy, tkv_error *error)
{
    if (!text || !policy) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "policy text or result is NULL");
    }
    tkv_policy changed = *policy;
    char key[64];
    char value[96];
    while ((text = next_word(text, sizeof key, key))) {
        const char *name = key + strspn(key, "-");
        text = next_word(text, sizeof value, value);
        if (!text) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "policy: '%s' has no value", name);
        }
        TKV_TRY(apply_setting(name, value, &changed, error));
    }
    *policy = changed;
    return TKV_OK;
}

static tkv_status check_types(const char *where, tkv_type type_k, tkv_type type_v, tkv_error *error)
{
    if (!tkv_type_get_info(type_k) || !tkv_type_get_info(type_v)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: KV types %d and %d %s: expected 0 to %d", (int)type_k, (int)type_v,
                        where, TKV_TYPE_COUNT - 1);
    }
    return TKV_OK;
}

static tkv_status check_range(const tkv_layer_range *range, tkv_error *error)
{
    if (range->first < 0 || range->last < range->first) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: layers %d-%d: expected the first, from 0, before the last",
                        range->first, range->last);
    }
    return check_types("of a range of layers", range->type_k, range->type_v, error);
}

tkv_status tkv_check_policy(const tkv_policy *policy, tkv_error *error)
{
    if (!policy) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "policy is NULL");
    }
    if (policy->n_sinks < 0 || policy->n_recent < 0 || policy->centre_tokens < 0 ||
        policy->boundary_layers < 0 || !(policy->sparse_v >= 0.0f && policy->sparse_v <= 1.0f)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: %d sinks, %d recent tokens, %d tokens for the means, %d boundary "
                        "layers, sparse_v %g: expected counts from 0 and a threshold from 0 to 1",
                        policy->n_sinks, policy->n_recent, policy->centre_tokens,
                        policy->boundary_layers, (double)policy->sparse_v);
    }
    if (policy->n_ranges < 0 || policy->n_ranges > TKV_POLICY_MAX_RANGES) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy: %d ranges of layers: expected 0 to %d", policy->n_ranges,
                        TKV_POLICY_MAX_RANGES);
    }
    tkv_status status = tkv_check_reserved(sizeof policy->reserved / sizeof *policy->reserved,
                                           policy->reserved, "tkv_policy", error);
    if (status == TKV_OK) {
        status = check_types("of all layers", policy->type_k, policy->type_v, error);
    }
    if (status == TKV_OK) {
        status = check_types("of the boundary", policy->boundary_k, policy->boundary_v, error);
    }
    for (int i = 0; status == TKV_OK && i < policy->n_ranges; i++) {
        status = check_range(&policy->ranges[i], error);
    }
    return status;
}

tkv_status tkv_check_policy_layers(const tkv_policy *policy, int n_layers, tkv_error *error)
{
    TKV_TRY(tkv_check_policy(policy, error));
    if (policy->boundary_layers > n_layers) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy names the first and last %d layers: %d keep keys and values",
                        policy->boundary_layers, n_layers);
    }
    for (int r = 0; r < policy->n_ranges; r++) {
        const tkv_layer_range *range = &policy->ranges[r];
        if (range->last >= n_layers) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "policy names layers %d-%d: layers 0 to %d keep keys and values",
                            range->first, range->last, n_layers - 1);
        }
    }
    return TKV_OK;
}

void tkv_policy_types_of_layer(const tkv_policy *policy, int n_layers, int layer, tkv_type *type_k,
                               tkv_type *type_v)
{
    const bool is_boundary =
        layer < policy->boundary_layers || layer >= n_layers - policy->boundary_layers;
    *type_k = is_boundary ? policy->boundary_k : policy->type_k;
    *type_v = is_boundary ? policy->boundary_v : policy->type_v;
    for (int r = policy->n_ranges - 1; r >= 0; r--) {
        const tkv_layer_range *range = &policy->ranges[r];
        if (layer >= range->first && layer <= range->last) {
            *type_k = range->type_k;
            *type_v = range->type_v;
            return;
        }
    }
}

tkv_status tkv_policy_layer_types(const tkv_policy *policy, int n_layers, tkv_type *types_k,
                                  tkv_type *types_v, tkv_error *error)
{
    if (!policy || !types_k || !types_v || n_layers < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "policy for %d layers: expected a policy, results and at least one layer",
                        n_layers);
    }
    const tkv_status status = tkv_check_policy_layers(policy, n_layers, error);
    for (int i = 0; i < n_layers && status == TKV_OK; i++) {
        tkv_policy_types_of_layer(policy, n_layers, i, &types_k[i], &types_v[i]);
    }
    return status;
}
