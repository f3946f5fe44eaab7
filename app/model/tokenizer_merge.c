/* Merging symbols into tokens, best pair first: a linked list of symbols and a heap of candidate
 * pairs, O(n log n). */
#include "common/try.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct symbol {
    size_t start;
    size_t length; /* 0: merged into its left neighbour */
    int32_t id;    /* -1: no token */
    int previous;  /* -1: none */
    int next;
} symbol;

typedef struct candidate {
    double cost; /* lowest first, then leftmost */
    int left;
    int32_t merged;
    size_t length; /* of both symbols when it was found; another length now: out of date */
} candidate;

typedef struct merger {
    const tkv_tokenizer *tokenizer;
    const char *text;
    symbol *symbols;
    candidate *heap;
    size_t heap_size;
} merger;

static bool comes_first(const candidate *a, const candidate *b)
{
    return a->cost != b->cost ? a->cost < b->cost : a->left < b->left;
}

static void heap_push(merger *m, candidate added)
{
    size_t at = m->heap_size++;
    while (at > 0 && comes_first(&added, &m->heap[(at - 1) / 2])) {
        m->heap[at] = m->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    m->heap[at] = added;
}

static candidate heap_pop(merger *m)
{
    const candidate top = m->heap[0];
    const candidate last = m->heap[--m->heap_size];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < m->heap_size && comes_first(&m->heap[child + 1], &m->heap[child])) {
            child++;
        }
        if (child >= m->heap_size || !comes_first(&m->heap[child], &last)) {
            break;
        }
        m->heap[at] = m->heap[child];
        at = child;
    }
    m->heap[at] = last;
    return top;
}

static const tkv_token_entry *find_token(const tkv_tokenizer *tokenizer, const char *bytes,
                                         size_t length)
{
    const tkv_token_entry *entry;
    HASH_FIND(hh, tokenizer->by_bytes, bytes, length, entry);
    return entry;
}

/* Offers the pair that begins at symbol `left`, if the tokenizer can merge it. */
static void offer_pair(merger *m, int left)
{
    const symbol *a = &m->symbols[left];
    if (a->next < 0) {
        return;
    }
    const symbol *b = &m->symbols[a->next];
    candidate found = {.left = left, .length = a->length + b->length};
    if (m->tokenizer->is_sentencepiece) {
        const tkv_token_entry *entry =
            find_token(m->tokenizer, m->text + a->start, a->length + b->length);
        if (!entry) {
            return;
        }
        found.cost = -(double)entry->score;
        found.merged = entry->id;
    } else {
        const uint64_t pair = (uint64_t)(uint32_t)a->id << 32 | (uint32_t)b->id;
        const tkv_merge_entry *entry;
        HASH_FIND(hh, m->tokenizer->by_pair, &pair, sizeof pair, entry);
        if (!entry) {
            return;
        }
        found.cost = entry->rank;
        found.merged = entry->merged;
    }
    heap_push(m, found);
}

static size_t sequence_length(char first)
{
    const unsigned char c = (unsigned char)first;
    return c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
}

/* Symbols of one byte, or of one UTF-8 sequence. Returns how many. */
static int split_symbols(merger *m, size_t length)
{
    int n = 0;
    for (size_t at = 0; at < length; n++) {
        size_t size = m->tokenizer->is_sentencepiece ? sequence_length(m->text[at]) : 1;
        size = size < length - at ? size : length - at;
        m->symbols[n] = (symbol){at, size, -1, n - 1, n + 1};
        if (m->tokenizer->is_sentencepiece) {
            const tkv_token_entry *entry = find_token(m->tokenizer, m->text + at, size);
            m->symbols[n].id = entry ? entry->id : -1;
        } else {
            m->symbols[n].id = m->tokenizer->byte_tokens[(unsigned char)m->text[at]];
        }
        at += size;
    }
    m->symbols[n - 1].next = -1;
    return n;
}

static void merge_all(merger *m, int n_symbols)
{
    for (int i = 0; i + 1 < n_symbols; i++) {
        offer_pair(m, i);
    }
    while (m->heap_size > 0) {
        const candidate best = heap_pop(m);
        symbol *a = &m->symbols[best.left];
        if (a->length == 0 || a->next < 0 ||
            a->length + m->symbols[a->next].length != best.length) {
            continue;
        }
        symbol *b = &m->symbols[a->next];
        a->length = best.length;
        a->id = best.merged;
        b->length = 0;
        a->next = b->next;
        if (b->next >= 0) {
            m->symbols[b->next].previous = best.left;
        }
        if (a->previous >= 0) {
            offer_pair(m, a->previous);
        }
        offer_pair(m, best.left);
    }
}

/* A symbol that is no token becomes byte tokens, or the unknown token. */
static tkv_status push_symbol(const merger *m, const symbol *s, tkv_tokens *tokens,
                              tkv_error *error)
{
    if (s->id >= 0) {
        return tkv_tokens_push(tokens, s->id, error);
    }
    for (size_t i = 0; i < s->length; i++) {
        const int32_t byte = m->tokenizer->byte_tokens[(unsigned char)m->text[s->start + i]];
        if (byte < 0) {
            if (m->tokenizer->unknown_token < 0) {
                return tkv_fail(error, TKV_ERR_FORMAT,
                                "the vocabulary has no token for byte 0x%02x and no unknown token",
                                (unsigned char)m->text[s->start + i]);
            }
            return tkv_tokens_push(tokens, m->tokenizer->unknown_token, error);
        }
        TKV_TRY(tkv_tokens_push(tokens, byte, error));
    }
    return TKV_OK;
}

tkv_status tkv_tokenizer_merge(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                               tkv_tokens *tokens, tkv_error *error)
{
    if (length == 0) {
        return TKV_OK;
    }
    if (tokenizer->tries_whole_pieces) {
        const tkv_token_entry *entry = find_token(tokenizer, text, length);
        if (entry) {
            return tkv_tokens_push(tokens, entry->id, error);
        }
    }
    /* Every symbol but the last is offered once, and every merge offers two more pairs. */
    merger m = {.tokenizer = tokenizer,
                .text = text,
                .symbols = length < INT32_MAX ? malloc(length * sizeof(symbol)) : NULL,
                .heap = length < INT32_MAX ? malloc(3 * length * sizeof(candidate)) : NULL};
    tkv_status status = TKV_OK;
    if (m.symbols && m.heap) {
        merge_all(&m, split_symbols(&m, length));
        for (int i = 0; i >= 0 && status == TKV_OK; i = m.symbols[i].next) {
            status = push_symbol(&m, &m.symbols[i], tokens, error);
        }
    } else {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    free(m.symbols);
    free(m.heap);
    return status;
}
