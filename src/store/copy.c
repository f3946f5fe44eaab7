/* Rows from slots to slots without coding anything anew, and keys that are moved to other
 * positions. */
#include "base/error.h"
#include "store/store.h"

#include <string.h>

/* Slots of one page that go to one page. */
typedef struct copy_piece {
    int64_t from; /* slot */
    int64_t to;
    int n;
} copy_piece;

typedef struct copy_job {
    tkv_store *to;
    const tkv_store *from;
    int64_t to_first;
    int64_t from_first;
    int64_t n_slots;
    bool is_backward; /* ranges overlap so that the last slot goes first */
    bool may_share;   /* no page is both source and destination */
} copy_job;

static uint64_t bits_of(const copy_piece *piece)
{
    return tkv_slot_bits((int)(piece->from % TKV_PAGE_TOKENS), piece->n);
}

static bool is_whole(const copy_job *job, const copy_piece *piece)
{
    return job->may_share && piece->n == TKV_PAGE_TOKENS;
}

/* The piece after `done` slots, counted from the end that goes first. */
static copy_piece piece_after(const copy_job *job, int64_t done)
{
    const int64_t left = job->n_slots - done;
    if (!job->is_backward) {
        const int64_t from = job->from_first + done;
        const int64_t to = job->to_first + done;
        const int n = tkv_slots_in_page(from, left);
        return (copy_piece){from, to, tkv_slots_in_page(to, n)};
    }
    const int64_t from_end = job->from_first + left;
    const int64_t to_end = job->to_first + left;
    const int64_t in_from = (from_end - 1) % TKV_PAGE_TOKENS + 1;
    const int64_t in_to = (to_end - 1) % TKV_PAGE_TOKENS + 1;
    int64_t n = in_from < in_to ? in_from : in_to;
    n = n < left ? n : left;
    return (copy_piece){from_end - n, to_end - n, (int)n};
}

static tkv_status reserve_turns(const tkv_store *store, tkv_store_entry *entry, tkv_error *error)
{
    if (!entry->turns) {
        entry->turns =
            tkv_allocate_zeroed(&store->context->allocator, TKV_PAGE_TOKENS * sizeof *entry->turns);
    }
    return entry->turns ? TKV_OK
                        : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                                   "no memory for the distances of a page of keys");
}

/* Memory for what a piece brings. */
static tkv_status prepare_piece(const copy_job *job, int order, const copy_piece *piece,
                                tkv_error *error)
{
    const tkv_store_entry *from = &job->from->sides[order].entries[piece->from / TKV_PAGE_TOKENS];
    tkv_store_entry *to = &job->to->sides[order].entries[piece->to / TKV_PAGE_TOKENS];
    const uint64_t rows = from->held & bits_of(piece);
    if (!rows) {
        return TKV_OK;
    }
    tkv_status status = from->turns ? reserve_turns(job->to, to, error) : TKV_OK;
    if (status == TKV_OK && !is_whole(job, piece)) {
        const uint64_t exact = rows & from->page->exact_rows;
        const int last = exact ? TKV_PAGE_TOKENS - 1 - __builtin_clzll(exact) : -1;
        const int n_exact =
            exact ? last + (int)(piece->to % TKV_PAGE_TOKENS - piece->from % TKV_PAGE_TOKENS) + 1
                  : 0;
        status = tkv_store_prepare(job->to, &job->to->sides[order], to, (rows & ~exact) != 0,
                                   n_exact, error);
    }
    return status;
}

static void copy_row(const copy_job *job, int order, const tkv_store_page *from, int from_slot,
                     tkv_store_page *to, int to_slot)
{
    const tkv_store_side *side = &job->to->sides[order];
    const size_t width = (size_t)side->padded_dim;
    const bool is_exact = from->exact_rows >> from_slot & 1;
    for (int head = 0; head < job->to->n_kv_heads; head++) {
        if (is_exact) {
            memmove(tkv_store_exact(side, to, head) + (size_t)to_slot * width,
                    tkv_store_exact(side, from, head) + (size_t)from_slot * width,
                    width * sizeof(uint16_t));
        } else {
            tkv_row_codes row;
            tkv_unpack_slot(side->type, side->order, side->padded_dim, from_slot,
                            tkv_store_coded(side, from, head), &row);
            tkv_pack_slot(side->type, side->order, side->padded_dim, to_slot, &row,
                          tkv_store_coded(side, to, head));
        }
    }
    to->exact_rows &= ~((uint64_t)1 << to_slot);
    to->exact_rows |= (uint64_t)is_exact << to_slot;
}

static void copy_rows(const copy_job *job, int order, const copy_piece *piece)
{
    const tkv_store_entry *from = &job->from->sides[order].entries[piece->from / TKV_PAGE_TOKENS];
    tkv_store_entry *to = &job->to->sides[order].entries[piece->to / TKV_PAGE_TOKENS];
    for (int i = 0; i < piece->n; i++) {
        const int at = job->is_backward ? piece->n - 1 - i : i;
        const int from_slot = (int)(piece->from % TKV_PAGE_TOKENS) + at;
        const int to_slot = (int)(piece->to % TKV_PAGE_TOKENS) + at;
        if (from->held >> from_slot & 1) {
            copy_row(job, order, from->page, from_slot, to->page, to_slot);
            to->held |= (uint64_t)1 << to_slot;
        } else {
            to->held &= ~((uint64_t)1 << to_slot);
        }
        if (to->turns) {
            to->turns[to_slot] = from->turns ? from->turns[from_slot] : 0;
        }
    }
}

static void share_page(const copy_job *job, int order, const copy_piece *piece)
{
    const int64_t to_page = piece->to / TKV_PAGE_TOKENS;
    const tkv_store_side *side = &job->to->sides[order];
    const tkv_store_entry *from = &job->from->sides[order].entries[piece->from / TKV_PAGE_TOKENS];
    tkv_store_entry *to = &side->entries[to_page];
    if (!from->page) {
        tkv_store_drop(job->to, side, to_page, ~(uint64_t)0);
        return;
    }
    atomic_fetch_add(&from->page->n_owners, 1);
    tkv_store_release(job->to, to->page);
    to->page = from->page;
    to->held = from->held;
    for (int t = 0; to->turns && t < TKV_PAGE_TOKENS; t++) {
        to->turns[t] = from->turns ? from->turns[t] : 0;
    }
}

/* The rows of a piece count as written now. */
static void note_piece(const copy_job *job, int order, const copy_piece *piece)
{
    const int64_t page = piece->to / TKV_PAGE_TOKENS;
    const tkv_store_side *side = &job->to->sides[order];
    const tkv_store_entry *entry = &side->entries[page];
    tkv_store_region *region = tkv_store_region_of(job->to, side, page);
    const uint64_t bits = tkv_slot_bits((int)(piece->to % TKV_PAGE_TOKENS), piece->n);
    region->n_written += __builtin_popcountll(entry->held & bits);
    if (entry->page && side->type != TKV_TYPE_F16 &&
        (entry->page->exact_rows & entry->held & bits & ~tkv_store_first_bits(job->to, page))) {
        tkv_store_list(job->to, side, page, region->n_written);
    }
}

/* Gives back pages that hold nothing, also those that were made ready. */
static void drop_empty(const copy_job *job)
{
    for (int order = 0; order < job->to->n_sides; order++) {
        for (int64_t done = 0; done < job->n_slots;) {
            const copy_piece piece = piece_after(job, done);
            tkv_store_drop(job->to, &job->to->sides[order], piece.to / TKV_PAGE_TOKENS, 0);
            done += piece.n;
        }
    }
}

static tkv_status prepare_copy(const copy_job *job, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int order = 0; order < job->to->n_sides; order++) {
        for (int64_t done = 0; status == TKV_OK && done < job->n_slots;) {
            const copy_piece piece = piece_after(job, done);
            status = prepare_piece(job, order, &piece, error);
            done += piece.n;
        }
    }
    return status;
}

tkv_status tkv_store_copy_rows(tkv_store *to, int64_t to_first, const tkv_store *from,
                               int64_t from_first, int64_t n_slots, tkv_error *error)
{
    copy_job job = {to, from, to_first, from_first, n_slots, false, true};
    if (to == from) {
        const int64_t distance = to_first - from_first;
        const int64_t size = distance < 0 ? -distance : distance;
        job.is_backward = distance > 0 && distance < n_slots;
        job.may_share = size >= n_slots + TKV_PAGE_TOKENS;
    }
    const tkv_status status = prepare_copy(&job, error);
    if (status != TKV_OK) {
        drop_empty(&job);
        return status;
    }
    for (int order = 0; order < to->n_sides; order++) {
        for (int64_t done = 0; done < n_slots;) {
            const copy_piece piece = piece_after(&job, done);
            if (is_whole(&job, &piece)) {
                share_page(&job, order, &piece);
            } else {
                copy_rows(&job, order, &piece);
            }
            note_piece(&job, order, &piece);
            done += piece.n;
        }
        tkv_store_settle(to, &to->sides[order]);
    }
    drop_empty(&job);
    return TKV_OK;
}

/* ---- Positions ---- */

tkv_status tkv_store_shift_keys(tkv_store *store, int64_t first, int64_t n_slots,
                                const int32_t *deltas, tkv_error *error)
{
    tkv_store_entry *entries = store->sides[TKV_ORDER_KEY].entries;
    for (int64_t i = 0; i < n_slots; i++) {
        tkv_store_entry *entry = &entries[(first + i) / TKV_PAGE_TOKENS];
        if (deltas[i] && entry->held) {
            const tkv_status status = reserve_turns(store, entry, error);
            if (status != TKV_OK) {
                return status;
            }
        }
    }
    for (int64_t i = 0; i < n_slots; i++) {
        const tkv_store_entry *entry = &entries[(first + i) / TKV_PAGE_TOKENS];
        const int t = (int)((first + i) % TKV_PAGE_TOKENS);
        if (deltas[i] && (entry->held >> t & 1)) {
            entry->turns[t] += deltas[i];
        }
    }
    return TKV_OK;
}
