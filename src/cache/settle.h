/* What happens to tokens as they age. */
#ifndef TKV_CACHE_SETTLE_H
#define TKV_CACHE_SETTLE_H

#include "cache/structs.h"

/* Freezes the means of a layer if it is time, codes the exact blocks that have left the recent
 * window of a query at `position`, and gives back what is behind the layer's window. A block for
 * which there is no memory stays exact until the next call. */
void tkv_layer_settle(tkv_cache_layer *layer, int position);

#endif
