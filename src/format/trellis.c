#include "format/trellis.h"
#include "format/type_table.h"

#include <math.h>
#include <string.h>

#define TRELLIS(level_bits, n_levels)                                                              \
    static const int8_t levels##n_levels[n_levels] = TKV_TRELLIS_LEVELS_##n_levels;                \
    static const tkv_trellis trellis##n_levels = {(level_bits)-2, TKV_TRELLIS_UNIT_##n_levels,     \
                                                  levels##n_levels};                               \
    _Static_assert(n_levels == 1 << level_bits, "levels of so many bits");

TKV_TRELLISES(TRELLIS)

/* There is one for each type that needs it. */
#define BIT(level_bits, n_levels) | 1 << level_bits
#define CHECK_TYPE(id, name, number, kind, plane0, plane1, plane2, level_bits, ...)                \
    _Static_assert(TKV_CODE_##kind != TKV_CODE_TRELLIS ||                                          \
                       ((0 TKV_TRELLISES(BIT)) >> level_bits & 1),                                 \
                   "the trellis of " name);
TKV_TYPES(CHECK_TYPE)

#define CASE(level_bits, n_levels)                                                                 \
    case level_bits: return &trellis##n_levels;

const tkv_trellis *tkv_trellis_get(int level_bits)
{
    switch (level_bits) {
        TKV_TRELLISES(CASE)
    }
    return NULL;
}

static const tkv_trellis_effort efforts[TKV_EFFORT_COUNT] = {
    [TKV_EFFORT_DEFAULT] = {TKV_TRELLIS_STATE_BITS, 1, {1.0f}},
    [TKV_EFFORT_FAST] = {5, 1, {1.0f}},
    [TKV_EFFORT_BEST] = {TKV_TRELLIS_STATE_BITS, 3, {1.0f, 0.97f, 1.03f}},
};

const tkv_trellis_effort *tkv_trellis_get_effort(tkv_effort effort)
{
    return &efforts[effort];
}

/* Targets beyond this are clamped: metrics must fit 16 bits, and the outermost levels win anyway.
 */
#define TARGET_LIMIT 190
#define UNREACHED 65535u
#define RENORMALISE_STEPS 4

/* The nearest level of a subset to a target: its free bits; *cost is the squared distance. */
static int nearest_free(const tkv_trellis *trellis, int subset, int target, uint32_t *cost)
{
    int best = 0;
    *cost = UINT32_MAX;
    for (int free = 0; free < 1 << trellis->free_bits; free++) {
        const int distance = target - trellis->levels[4 * free + subset];
        if ((uint32_t)(distance * distance) < *cost) {
            *cost = (uint32_t)(distance * distance);
            best = free;
        }
    }
    return best;
}

static void subset_costs(const tkv_trellis *trellis, int target, uint32_t costs[4])
{
    for (int subset = 0; subset < 4; subset++) {
        nearest_free(trellis, subset, target, &costs[subset]);
        costs[subset] = costs[subset] < UNREACHED ? costs[subset] : UNREACHED;
    }
}

/* The survivors: for each value of the newest path bits the cheapest path that ends on it. */
typedef struct survivors {
    uint32_t metric[TKV_TRELLIS_N_STATES];
    uint8_t state[TKV_TRELLIS_N_STATES]; /* the last eight path bits */
} survivors;

/* Bit i: survivor i came from the upper of its two predecessors. */
typedef struct step_record {
    uint32_t from_upper[TKV_TRELLIS_N_STATES / 32];
} step_record;

static uint32_t add_saturating(uint32_t a, uint32_t b)
{
    return a + b < UNREACHED ? a + b : UNREACHED;
}

static void renormalise(int n, survivors *s)
{
    uint32_t minimum = UNREACHED;
    for (int i = 0; i < n; i++) {
        minimum = s->metric[i] < minimum ? s->metric[i] : minimum;
    }
    for (int i = 0; i < n; i++) {
        s->metric[i] -= minimum;
    }
}

/* One coordinate: every survivor's new bit is 0 or 1; of the two paths that meet the cheaper stays,
 * the one from the lower predecessor if they are equal. */
static void advance(int n, const uint32_t costs[4], const survivors *before, survivors *after,
                    step_record *record)
{
    for (int i = 0; i < n; i++) {
        const int lower = i >> 1;
        const int upper = lower + n / 2;
        const unsigned w_lower = (unsigned)before->state[lower] << 1 | (unsigned)(i & 1);
        const unsigned w_upper = (unsigned)before->state[upper] << 1 | (unsigned)(i & 1);
        const int z_lower = tkv_trellis_index(w_lower, 0);
        const int z_upper = tkv_trellis_index(w_upper, 0);
        const uint32_t cost_lower = add_saturating(before->metric[lower], costs[z_lower]);
        const uint32_t cost_upper = add_saturating(before->metric[upper], costs[z_upper]);
        const bool is_upper = cost_upper < cost_lower;
        after->metric[i] = is_upper ? cost_upper : cost_lower;
        after->state[i] = (uint8_t)(is_upper ? w_upper : w_lower);
        record->from_upper[i / 32] |= (uint32_t)is_upper << (i % 32);
    }
}

static void begin(int n, survivors *s)
{
    for (int i = 0; i < n; i++) {
        s->metric[i] = i < 1 << TKV_TRELLIS_START_BITS ? 0 : UNREACHED;
        s->state[i] = (uint8_t)i;
    }
}

static int target_of(const tkv_trellis *trellis, float gain, float z)
{
    const float target = rintf(z * (trellis->unit * gain));
    return (int)fmaxf(-TARGET_LIMIT, fminf(target, TARGET_LIMIT));
}

/* The path bits that lead to the cheapest survivor, into codes; returns the start bits. */
static unsigned trace_back(int n, const survivors *last, const step_record *records, int head_dim,
                           uint8_t *codes)
{
    int at = 0;
    for (int i = 1; i < n; i++) {
        at = last->metric[i] < last->metric[at] ? i : at;
    }
    for (int j = head_dim - 1; j >= 0; j--) {
        const bool is_upper = records[j].from_upper[at / 32] >> (at % 32) & 1u;
        codes[j] = (uint8_t)(at & 1);
        at = (at >> 1) + (is_upper ? n / 2 : 0);
    }
    return (unsigned)at & ((1u << TKV_TRELLIS_START_BITS) - 1);
}

static void add_free_bits(const tkv_trellis *trellis, int head_dim, const int16_t *targets,
                          tkv_trellis_path *path)
{
    unsigned window = path->start;
    for (int j = 0; j < head_dim; j++) {
        uint32_t cost;
        window = (window << 1 | path->codes[j]) & 0x1ffu;
        const int free = nearest_free(trellis, tkv_trellis_index(window, 0), targets[j], &cost);
        path->codes[j] = (uint8_t)(free | path->codes[j] << trellis->free_bits);
    }
}

void tkv_trellis_search(const tkv_trellis *trellis, int survivor_bits, float gain, int head_dim,
                        const float *z, tkv_trellis_path *path)
{
    const int n = 1 << survivor_bits;
    step_record records[TKV_MAX_HEAD_DIM];
    int16_t targets[TKV_MAX_HEAD_DIM];
    survivors buffers[2];
    begin(n, &buffers[0]);
    memset(records, 0, (size_t)head_dim * sizeof *records);
    for (int j = 0; j < head_dim; j++) {
        uint32_t costs[4];
        if (j > 0 && j % RENORMALISE_STEPS == 0) {
            renormalise(n, &buffers[j & 1]);
        }
        targets[j] = (int16_t)target_of(trellis, gain, z[j]);
        subset_costs(trellis, targets[j], costs);
        advance(n, costs, &buffers[j & 1], &buffers[~j & 1], &records[j]);
    }
    path->start = trace_back(n, &buffers[head_dim & 1], records, head_dim, path->codes);
    add_free_bits(trellis, head_dim, targets, path);
}

void tkv_trellis_levels(const tkv_trellis *trellis, int head_dim, const uint8_t *codes,
                        unsigned start, float *levels)
{
    unsigned window = start;
    for (int j = 0; j < head_dim; j++) {
        const int free = codes[j] & ((1 << trellis->free_bits) - 1);
        window = (window << 1 | (unsigned)codes[j] >> trellis->free_bits) & 0x1ffu;
        levels[j] = (float)trellis->levels[tkv_trellis_index(window, free)];
    }
}
