/* Tokens of exact blocks into coded ones. */
#ifndef TKV_CACHE_CODE_H
#define TKV_CACHE_CODE_H

#include "cache/structs.h"

/* Codes the exact blocks [first, end) of a segment. Those for which there is no memory, and all if
 * the device fails, stay exact. */
void tkv_layer_code(tkv_cache_layer *layer, const tkv_segment *segment, int first, int end);

/* Codes the tokens of a segment's first block into another block, in the same slots. */
tkv_status tkv_layer_fill(tkv_cache_layer *layer, const tkv_segment *segment, tkv_block *coded);

#endif
