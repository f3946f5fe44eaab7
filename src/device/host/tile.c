#include "device/host/tile.h"
#include "kernels/sums.h"

#include <math.h>
#include <string.h>

void tkv_host_start(const tkv_host_state *state, int tile_rows, size_t sum_floats)
{
    for (int r = 0; r < tile_rows; r++) {
        state->maximum[r] = -INFINITY;
        state->sum[r] = 0.0f;
    }
    memset(state->sums, 0, sum_floats * sizeof(float));
}

void tkv_host_prepare(const tkv_host_tile *tile, int key_kind)
{
    const tkv_type type = key_kind == TKV_HOST_EXACT ? TKV_TYPE_F16 : tile->type_k;
    if (type != TKV_TYPE_F16) {
        tile->kernels->rotate(tile->head_dim_k, tile->n_rows, tile->scratch.queries);
    }
    tile->kernels->prepare_queries(type, tile->head_dim_k, tile->n_rows, tile->scratch.queries,
                                   tile->scratch.prepared[key_kind]);
}

static void rescale_sums(const tkv_host_tile *tile, float *sums)
{
    const size_t width = (size_t)tile->sum_dim;
    const size_t n = tkv_sum_floats(tile->type_v, tile->sum_dim, tile->n_rows);
    for (size_t i = 0; i < n; i++) {
        sums[i] *= tile->scratch.rescale[i / width % (size_t)tile->n_rows];
    }
}

/* Zeroes the weights below the threshold; returns whether any weight is left. A row's weights are
 * relative to its running maximum. */
static bool drop_small_weights(const tkv_host_tile *tile, const tkv_host_mask *mask)
{
    const tkv_host_scratch *scratch = &tile->scratch;
    bool is_any_left = false;
    for (int r = 0; r < tile->n_rows; r++) {
        float *weights = scratch->scores + r * TKV_PAGE_TOKENS;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            if (mask->seen && !(mask->seen[r] >> t & 1)) {
                continue;
            }
            tile->counts->n_weights++;
            if (weights[t] < tile->sparse_v) {
                weights[t] = 0.0f;
                tile->counts->n_skipped++;
            } else {
                is_any_left = true;
            }
        }
    }
    return is_any_left;
}

/* What tkv_kernels.accumulate does, with rows as they are. */
static void accumulate_rows(const tkv_host_tile *tile, float *sums)
{
    const tkv_host_scratch *scratch = &tile->scratch;
    const size_t width = (size_t)tile->sum_dim;
    rescale_sums(tile, sums);
    for (int r = 0; r < tile->n_rows; r++) {
        float *sum = sums + (size_t)r * width;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            const float weight = scratch->scores[r * TKV_PAGE_TOKENS + t];
            const float *row = scratch->rows + (size_t)t * width;
            for (int j = 0; j < tile->n_value_dims; j++) {
                sum[j] += weight * row[j];
            }
        }
    }
}

/* Scores to logits, what the mask adds included; what is not seen is far below all that is. */
static void mask_scores(const tkv_host_tile *tile, const tkv_host_mask *mask)
{
    const float cap = tile->softcap;
    for (int r = 0; r < tile->n_rows; r++) {
        float *row = tile->scratch.scores + r * TKV_PAGE_TOKENS;
        const float *added = mask->added ? mask->added + r * TKV_PAGE_TOKENS : NULL;
        for (int t = tile->scratch.first[r]; t < tile->scratch.end[r]; t++) {
            const float logit = row[t] * tile->scale;
            const float capped = cap > 0.0f ? cap * tanhf(logit / cap) : logit;
            const bool is_seen = mask->seen[r] >> t & 1;
            row[t] = is_seen ? capped + (added ? added[t] : 0.0f) : -INFINITY;
        }
    }
}

/* The weights of what is not seen, which softmax may have left tiny. */
static void clear_unseen(const tkv_host_tile *tile, const uint64_t *seen)
{
    for (int r = 0; r < tile->n_rows; r++) {
        float *row = tile->scratch.scores + r * TKV_PAGE_TOKENS;
        for (int t = tile->scratch.first[r]; t < tile->scratch.end[r]; t++) {
            row[t] = seen[r] >> t & 1 ? row[t] : 0.0f;
        }
    }
}

static void softmax(const tkv_host_tile *tile, const tkv_host_mask *mask,
                    const tkv_host_state *state)
{
    const tkv_host_scratch *scratch = &tile->scratch;
    const bool is_masked = mask->seen;
    const tkv_softmax_span span = {tile->n_rows, scratch->first, scratch->end,
                                   is_masked ? 1.0f : tile->scale,
                                   is_masked ? 0.0f : tile->softcap};
    if (is_masked) {
        mask_scores(tile, mask);
    }
    tile->kernels->softmax(&span, scratch->scores, state->maximum, state->sum, scratch->rescale);
    if (is_masked) {
        clear_unseen(tile, mask->seen);
    }
}

void tkv_host_attend_page(const tkv_host_tile *tile, const tkv_page_read *keys, int key_kind,
                          const tkv_page_read *values, int value_kind, const float *bias,
                          const tkv_host_mask *mask)
{
    const tkv_host_scratch *scratch = &tile->scratch;
    const tkv_host_state *state = &tile->states[value_kind];
    tile->kernels->scores(keys, tile->n_rows, scratch->prepared[key_kind], scratch->scores,
                          scratch->kernel);
    for (int i = 0; bias && i < tile->n_rows * TKV_PAGE_TOKENS; i++) {
        scratch->scores[i] += bias[i / TKV_PAGE_TOKENS];
    }
    softmax(tile, mask, state);
    if (tile->sparse_v > 0.0f && !drop_small_weights(tile, mask)) {
        rescale_sums(tile, state->sums);
    } else if (!values) {
        accumulate_rows(tile, state->sums);
    } else {
        tile->kernels->accumulate(values, tile->n_rows, scratch->scores, scratch->rescale,
                                  state->sums, scratch->kernel);
    }
}

float tkv_host_merge(const tkv_host_state *state, int r, int n_rows, size_t width, size_t n,
                     float maximum, float *out)
{
    if (state->sum[r] == 0.0f) {
        return 0.0f;
    }
    const float factor = expf(state->maximum[r] - maximum);
    for (size_t done = 0; done < n; done += width) {
        const float *sums = state->sums + done * (size_t)n_rows + (size_t)r * width;
        for (size_t j = 0; j < width; j++) {
            out[done + j] += factor * sums[j];
        }
    }
    return factor * state->sum[r];
}
