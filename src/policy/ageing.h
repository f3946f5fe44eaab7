/* How tokens of a layer age: which stay exact, when the others are coded, and which are given back.
 * Functions of numbers alone: src/cache does what they say, and bytes are counted without a cache.
 *
 *     position   0    sinks   centre       window's end                recent             length
 *                | exact . exact | coded ...     | coded ... coded      | exact ... exact |
 *                 \___ head ____/  given back if
 *                                  no query sees it
 *
 * A block is coded when all of its tokens have left the recent window of a query, so that those of
 * one append are exact to each other's queries. Means are made of the tokens behind the sinks and
 * then frozen; before they are, nothing is coded. */
#ifndef TKV_POLICY_AGEING_H
#define TKV_POLICY_AGEING_H

#include "device/geometry.h"

/* Tokens that a layer keeps behind its window, so that drafts can be taken back. */
#define TKV_KEPT_BEHIND_WINDOW 32

typedef struct tkv_ageing {
    bool is_coded; /* keys, values or both: otherwise nothing ages */
    int n_sinks;   /* first tokens, which stay exact */
    int n_recent;  /* the newest ones before a query, which are exact to it; 0: itself is coded */
    int centre_tokens; /* tokens behind the sinks that the means are made of; 0: no means */
} tkv_ageing;

/* Of a layer whose old keys and values have these types. */
static inline tkv_ageing tkv_ageing_of(tkv_type type_k, tkv_type type_v, int n_sinks, int n_recent,
                                       int centre_tokens)
{
    return (tkv_ageing){type_k != TKV_TYPE_F16 || type_v != TKV_TYPE_F16, n_sinks, n_recent,
                        centre_tokens};
}

/* The type of old values, of which a layer of keys only has none: sums of keys are not in the
 * domain of codes. */
static inline tkv_type tkv_stored_value_type(tkv_type type_v, int head_dim_v)
{
    return head_dim_v > 0 ? type_v : TKV_TYPE_F16;
}

/* Tokens that a layer keeps exact: the sinks and what the means are made of, in whole steps of
 * TKV_EXACT_ROWS. */
static inline int tkv_head_tokens(const tkv_ageing *ageing)
{
    const int64_t n =
        ((int64_t)ageing->n_sinks + ageing->centre_tokens + TKV_EXACT_ROWS - 1) / TKV_EXACT_ROWS;
    /* More than any cache holds is enough. */
    return !ageing->is_coded ? 0 : n < INT32_MAX / 64 ? (int)n * TKV_EXACT_ROWS : INT32_MAX / 4 + 1;
}

/* The first tokens of a layer that must all be there until its means are frozen; 0: there are no
 * means. */
static inline int64_t tkv_mean_tokens(const tkv_ageing *ageing)
{
    return ageing->is_coded && ageing->centre_tokens
               ? (int64_t)ageing->n_sinks + ageing->centre_tokens
               : 0;
}

/* The position of the first token that means are made of, in a layer that holds those from
 * first_held on. */
static inline int tkv_first_of_means(const tkv_ageing *ageing, int first_held)
{
    return first_held > ageing->n_sinks ? first_held : ageing->n_sinks;
}

/* Whether a layer of n_tokens holds what its means are made of, or wants none. */
static inline bool tkv_can_have_means(const tkv_ageing *ageing, int first_held, int n_tokens)
{
    return ageing->centre_tokens == 0 ||
           n_tokens - tkv_first_of_means(ageing, first_held) >= ageing->centre_tokens;
}

/* Whether means are frozen as soon as the head is full, so that the next token is coded as it
 * comes. */
static inline bool tkv_freezes_with_head(const tkv_ageing *ageing, int head, int n_places)
{
    return ageing->is_coded && ageing->n_recent == 0 && n_places >= head;
}

/* Whether a block of a segment never ages. */
static inline bool tkv_stays_exact(const tkv_ageing *ageing, int head, int block)
{
    return !ageing->is_coded || block < tkv_head_blocks(head);
}

/* Whether a block is exact when it is new. */
static inline bool tkv_starts_exact(const tkv_ageing *ageing, bool is_centred, int head, int block)
{
    return tkv_stays_exact(ageing, head, block) || ageing->n_recent > 0 ||
           (ageing->centre_tokens > 0 && !is_centred);
}

/* Whether a block whose last token is at position `last`, of those that it has or will have, is to
 * be coded as soon as there are means, for a query at `position`. */
static inline bool tkv_is_aged(const tkv_ageing *ageing, int head, int block, int last,
                               int position)
{
    return !tkv_stays_exact(ageing, head, block) &&
           (ageing->n_recent == 0 || last <= position - ageing->n_recent);
}

/* First position that must be kept for queries from `position` on; 0 or less: all. As long as a
 * truncation could reach a token that the means are made of (it can go back to where a window
 * begins in the first page that is held), those are held too. */
static inline int tkv_oldest_kept(const tkv_ageing *ageing, int window, int position)
{
    const int oldest =
        window && position > window ? position - window + 1 - TKV_KEPT_BEHIND_WINDOW : 0;
    return oldest - TKV_PAGE_TOKENS + window < tkv_mean_tokens(ageing) ? 0 : oldest;
}

#endif
