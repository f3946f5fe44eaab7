/* Which layers have a sliding window. */
#include "model/geometry_reader.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define PATTERN "attention.sliding_window_pattern"

/* Layers with a sliding window among others without, as llama.cpp has them where the file does not
 * say it. */
typedef struct window_rule {
    const char *architecture;
    int period; /* of which one layer sees everything; 0: none does */
    bool is_first_full;
    int window;     /* if the file has none; 0: then there is none */
    int fixed;      /* the window, whatever the file says; 0: what it says */
    int only_depth; /* of models of that many layers only; 0: of all */
} window_rule;

static const window_rule rules[] = {
    {"gemma2", 2, false, 4096, 0, 0},    {"gemma3", 6, false, 0, 0, 0},
    {"gemma3n", 5, false, 0, 0, 0},      {"gemma-embedding", 6, false, 0, 0, 0},
    {"cohere2", 4, false, 0, 0, 0},      {"cohere2moe", 4, true, 0, 0, 0},
    {"olmo2", 4, false, 0, 0, 0},        {"gpt-oss", 2, false, 0, 0, 0},
    {"plamo3", 8, false, 0, 0, 0},       {"afmoe", 4, false, 0, 0, 0},
    {"llama4", 4, false, 8192, 8192, 0}, {"exaone4", 4, false, 4096, 0, 64},
    {"exaone-moe", 4, false, 128, 0, 0}, {"smallthinker", 4, true, 0, 4096, 0},
    {"modern-bert", 3, true, 0, 0, 0},   {"laguna", 4, true, 0, 0, 0},
    {"mellum", 4, false, 0, 0, 0},       {"muse-glimmer", 4, false, 0, 0, 0},
    {"lfm2", 0, false, 0, 0, 0},         {"deepseek4", 0, false, 0, 0, 0},
};

static const window_rule *find_rule(const tkv_geometry_reader *r)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (tkv_geometry_is(r, rules[i].architecture)) {
            return &rules[i];
        }
    }
    return NULL;
}

static int window_length(tkv_geometry_reader *r, const window_rule *rule, int layer)
{
    if (rule && rule->only_depth && rule->only_depth != r->n_trunk) {
        return 0;
    }
    const int window =
        tkv_geometry_count(r, "attention.sliding_window", layer, rule ? rule->window : 0, INT_MAX);
    return window > 0 && rule && rule->fixed ? rule->fixed : window;
}

/* A pattern says it of each layer, if it is no period; only of layers that draft it may be silent.
 */
static bool is_complete(tkv_geometry_reader *r, const tkv_gguf_value *pattern)
{
    const uint64_t n_given = tkv_gguf_array_length(pattern);
    if (n_given < (uint64_t)r->n_trunk) {
        r->status = tkv_fail(r->error, TKV_ERR_FORMAT,
                             "metadata key %s." PATTERN ": expected an array of %d elements, one "
                             "for each layer, or a period, found an array of %" PRIu64,
                             r->geometry->architecture, r->n_trunk, n_given);
    }
    return r->status == TKV_OK;
}

/* By the file's array or period, else the architecture's period. Where neither is there, the host
 * takes a window for all layers, and others for none: files carry windows that their models do not
 * use. */
static bool is_local(tkv_geometry_reader *r, const window_rule *rule, int layer)
{
    const tkv_gguf_value *given = tkv_geometry_find(r, PATTERN);
    const int block = layer % r->n_blocks;
    if (given && given->is_array) {
        return is_complete(r, given) && (uint64_t)block < tkv_gguf_array_length(given) &&
               tkv_geometry_count(r, PATTERN, layer, 0, INT_MAX) != 0;
    }
    const int period = tkv_geometry_count(r, PATTERN, layer, rule ? rule->period : 1, INT_MAX);
    if (!given && !rule) {
        return r->geometry->is_hosted;
    }
    const int full = rule && rule->is_first_full ? 0 : period - 1;
    return period == 0 || block % period != full;
}

tkv_geometry_window tkv_geometry_read_window(tkv_geometry_reader *r, int layer)
{
    const window_rule *rule = find_rule(r);
    const int length = window_length(r, rule, layer);
    const bool has_window = is_local(r, rule, layer);
    return (tkv_geometry_window){.is_local = has_window, .n_tokens = has_window ? length : 0};
}

void tkv_geometry_note_windows(tkv_geometry_reader *r)
{
    tkv_geometry *g = r->geometry;
    const tkv_gguf_value *pattern = tkv_geometry_find(r, PATTERN);
    const window_rule *rule = find_rule(r);
    const int window = window_length(r, rule, 0);
    if (rule || window == 0 || g->is_hosted || (pattern && pattern->is_array)) {
        return;
    }
    if (!pattern) {
        snprintf(g->assumption, sizeof g->assumption,
                 "the file has a window of %d tokens and does not say of which layers: assumed of "
                 "none",
                 window);
        return;
    }
    const int period = tkv_geometry_count(r, PATTERN, 0, 1, INT_MAX);
    if (period > 1) {
        snprintf(g->assumption, sizeof g->assumption,
                 "one of every %d layers has no window, the file does not say which: assumed the "
                 "last",
                 period);
    }
}
