#include "policy/cost.h"

/* A layer at a length. */
typedef struct counted_layer {
    const tkv_costed_layer *layer;
    int head;
    int n_tokens;
    int position; /* of the first query of the newest append */
    bool can_code;
} counted_layer;

static bool is_coded(const counted_layer *c, int block)
{
    const int last = tkv_block_place(c->head, block + 1) - 1;
    return c->can_code && tkv_is_aged(&c->layer->ageing, c->head, block, last, c->position);
}

static size_t block_bytes(const counted_layer *c, int block)
{
    const tkv_costed_layer *layer = c->layer;
    const bool coded = is_coded(c, block);
    const int start = tkv_block_place(c->head, block);
    const int next = tkv_block_place(c->head, block + 1);
    const int filled = (c->n_tokens < next ? c->n_tokens : next) - start;
    const int n_slots =
        coded ? TKV_PAGE_TOKENS : tkv_exact_slots(filled, next - start, TKV_EXACT_ROWS);
    size_t bytes = 0;
    for (int order = 0; order < 2; order++) {
        const tkv_type type = coded ? layer->types[order] : TKV_TYPE_F16;
        bytes += tkv_stored_page_bytes((int)type, layer->padded[order], n_slots);
    }
    return (size_t)layer->n_kv_heads * bytes;
}

/* Coded blocks are many and alike. */
static size_t blocks_bytes(const counted_layer *c, int first, int end, bool *has_coded)
{
    size_t bytes = 0;
    for (int b = first; b < end;) {
        int n = 1;
        while (is_coded(c, b) && b + n < end && is_coded(c, b + n)) {
            n++;
        }
        *has_coded |= is_coded(c, b);
        bytes += (size_t)n * block_bytes(c, b);
        b += n;
    }
    return bytes;
}

tkv_layer_cost tkv_count_layer(const tkv_costed_layer *layer, int n_tokens, int n_batch)
{
    const tkv_ageing *ageing = &layer->ageing;
    const counted_layer c = {.layer = layer,
                             .head = tkv_head_tokens(ageing),
                             .n_tokens = n_tokens,
                             .position = n_tokens > n_batch ? n_tokens - n_batch : 0,
                             .can_code = tkv_can_have_means(ageing, 0, n_tokens)};
    /* Blocks behind the window are gone, and what the means are made of with them. */
    const int oldest = tkv_oldest_kept(ageing, layer->window, c.position);
    const int first = oldest > 0 ? tkv_block_of_place(c.head, oldest) : 0;
    const int end = tkv_block_of_place(c.head, n_tokens - 1) + 1;
    bool has_means = ageing->is_coded && c.can_code &&
                     (oldest > 0 || tkv_freezes_with_head(ageing, c.head, n_tokens));
    const size_t pages = blocks_bytes(&c, first, end, &has_means);
    const size_t width = (size_t)layer->n_kv_heads * (size_t)(layer->padded[0] + layer->padded[1]);
    return (tkv_layer_cost){.pages = pages,
                            .means = has_means && ageing->centre_tokens ? width * sizeof(float) : 0,
                            .n_blocks = end - first};
}
